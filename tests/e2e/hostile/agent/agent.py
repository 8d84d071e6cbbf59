"""A hostile agent: it makes every attempt it knows to get out of where it runs, or around what is decided, and says of each whether it got out.

    python agent.py GROUP...        # the attempts of these groups, or single attempts by their names

Standard library only. What an attacker might have learned before stands in facts.json beside it. Each attempt is made in a process of its own, with a
deadline, and told as one JSON line: {"number", "attempt", "got_out", "broke", "detail"}. `broke` means that the attempt itself is faulty and has shown nothing.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import exhaustion
import files
import http_tricks
import names
import network
import request_tricks
from attempts import ATTEMPTS, FACTS, Attempt

import kernel

GROUPS = {"network": network, "names": names, "http": http_tricks, "request": request_tricks, "files": files, "kernel": kernel, "exhaustion": exhaustion}
ATTEMPT_SECONDS_MAX = 40.0


def chosen(words: list[str]) -> list[tuple[int, Attempt]]:
    """By group or by name, numbered among all there are."""
    numbered = list(enumerate(ATTEMPTS.values(), 1))
    found = [(number, each) for number, each in numbered if each.group in words or each.name in words]
    unknown = set(words) - {each.group for each in ATTEMPTS.values()} - set(ATTEMPTS)
    if unknown:
        sys.exit(f"no such attempt or group: {', '.join(sorted(unknown))}; known: {', '.join(GROUPS)}")
    return found


def make(attempt: Attempt) -> dict[str, object]:
    """In a child, which may be killed, become something else or leave others behind: only what it says through the pipe counts."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        os.write(writing, json.dumps(verdict_of(attempt)).encode())
        os._exit(0)
    os.close(writing)
    raw, until = b"", time.monotonic() + ATTEMPT_SECONDS_MAX
    while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(reading, 65_536)
        raw += piece
        if not piece or raw.endswith(b"}"):
            break
    os.close(reading)
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        verdict: dict[str, object] = json.loads(raw)
        return verdict
    except ValueError:
        return {"got_out": False, "broke": not attempt.may_die, "detail": "killed, or not over in time"}


def verdict_of(attempt: Attempt) -> dict[str, object]:
    try:
        got_out, detail = attempt.make()
    except OSError as error:
        return {"got_out": False, "broke": False, "detail": f"refused: {error}"[:300]}
    except BaseException as error:  # an attempt that breaks has shown nothing, and that is said
        return {"got_out": False, "broke": True, "detail": f"{type(error).__name__}: {error}"[:300]}
    return {"got_out": bool(got_out), "broke": False, "detail": str(detail)[:300]}


def main(words: list[str]) -> None:
    if os.getuid() == 0:
        sys.exit("it is not run as root: where nothing holds it, some of its attempts would harm the machine")
    os.chdir(Path(__file__).parent)
    for number, attempt in chosen(words):
        verdict = make(attempt)
        print(json.dumps({"number": number, "attempt": attempt.name, **verdict}), flush=True)
    print(json.dumps({"over": words, "uid": os.getuid(), "facts": len(FACTS)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
