"""`make fuzz`: mutated bytes against every parser that hostile bytes reach, for a stated time, with what must never happen written beside each.

    python -m tests.fuzz --minutes 60 [--target http1-request] [--seed 7]

A target takes bytes and raises only what it says it raises. Anything else, or a broken property, prints the input (hex) and the seed, and ends with 1.
A slow input (over a second) is a finding as well: a parser that can be made to hang is a way to stop a worker.
"""

import argparse
import json
import random
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS, Target

_SLICE_SECONDS = 5.0
_SLOW_SECONDS = 1.0
_INPUT_BYTES_MAX = 70_000


def mutated(target: Target, chance: random.Random) -> bytes:
    data = bytearray(chance.choice(target.seeds))
    for _ in range(1 + int(chance.expovariate(0.4))):
        where = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 if data:
                data[where % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[where:where] = chance.choice(target.words)
            case 2:
                del data[where : where + chance.randrange(1, 16)]
            case 3:
                other = chance.choice(target.seeds)
                begin = chance.randrange(len(other) + 1)
                data[where:where] = other[begin : begin + chance.randrange(64)]
            case 4 if data:
                data[where % len(data)] = chance.choice(b"\x00\r\n\t :;,\xff\x7f/0-+.%")
            case 5:
                data[where:where] = data[where : where + 32] * chance.randrange(1, 20)
            case 6:
                del data[where:]
            case _:
                data[where:where] = chance.randbytes(chance.randrange(1, 8))
    return bytes(data[:_INPUT_BYTES_MAX])


def hammer(target: Target, chance: random.Random, seconds: float) -> int:
    """How many inputs were tried. Raises what the target should not have raised, with the input as a note."""
    until = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < until:
        data = mutated(target, chance)
        begun = time.monotonic()
        try:
            target.run(data, chance)
        except Exception as error:
            error.add_note(f"target {target.name}, input {data.hex()}")
            raise
        if (took := time.monotonic() - begun) > _SLOW_SECONDS:
            raise AssertionError(f"target {target.name} took {took:.1f} s for input {data[:200].hex()}... of {len(data)} bytes")
        tried += 1
    return tried


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzz every parser that hostile bytes reach")
    parser.add_argument("--minutes", type=float, default=60.0, help="in all, shared by the targets")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only these")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    targets = [TARGETS[name] for name in chosen.target or sorted(TARGETS)]
    tried = dict.fromkeys((target.name for target in targets), 0)
    until = time.monotonic() + 60 * chosen.minutes
    while (left := until - time.monotonic()) > 0:
        for target in targets:
            try:
                tried[target.name] += hammer(target, chance, min(_SLICE_SECONDS, left / len(targets)))
            except Exception:
                traceback.print_exc()
                print(f"seed {seed}", file=sys.stderr)
                return 1
        print(f"\r{left / 60:5.1f} minutes left, {sum(tried.values()):,} inputs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(json.dumps({"minutes": chosen.minutes, "seed": seed, "findings": 0, "inputs": tried}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
