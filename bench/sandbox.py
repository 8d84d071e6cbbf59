"""From the order to the agent's first output, sealed and attested, beside bare bubblewrap that seals and attests nothing, in interleaved rounds.

    python -m bench.sandbox [--rounds 40]

Ours is the real launcher in a process of its own: namespace, routes, listeners handed over, tap, limits, workspace, the probe's findings, then the agent.
As root, and as an ordinary user where root can become one. Ends with one line of JSON; times in milliseconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import anyio
from tests.fakes.sandboxes import ORDINARY_UID, Installation, installed

from bailiwick.sandbox.messages import DestroySandbox, StartAgent

BAR_MS = 25.0
_SYSTEM = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
BARE = ["bwrap", "--unshare-all", *_SYSTEM, "--proc", "/proc", "--dev", "/dev", "/bin/echo", "ready"]


async def one(here: Installation) -> tuple[float, float, int]:
    """To sealed and attested, to first output, and how many findings held."""
    begun = time.perf_counter()
    name, created = await here.create(here.spec("/bin/echo", "ready"))
    attested = time.perf_counter()
    await here.call(StartAgent(run=name))
    assert "ready" in await here.read(name, "stdout", until="ready")
    first = time.perf_counter()
    assert all(finding.held for finding in created.findings)
    await here.exit_of(name)
    await here.call(DestroySandbox(run=name))
    return 1e3 * (attested - begun), 1e3 * (first - begun), len(created.findings)


def bare() -> float:
    begun = time.perf_counter()
    subprocess.run(BARE, check=True, capture_output=True)
    return 1e3 * (time.perf_counter() - begun)


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(part * len(values)))], 1)


async def measure(uid: int, rounds: int) -> dict[str, float]:
    attested, ready, bares, findings = [], [], [], 0
    async with installed(uid) as here:
        await one(here)  # the first pays for what is made once
        for _ in range(rounds):
            to_attested, to_ready, findings = await one(here)
            attested.append(to_attested)
            ready.append(to_ready)
            bares.append(bare())
    return {
        "attested_ms_p50": percentile(attested, 0.5),
        "ready_ms_min": round(min(ready), 1),
        "ready_ms_p50": percentile(ready, 0.5),
        "ready_ms_p99": percentile(ready, 0.99),
        "bare_ms_p50": percentile(bares, 0.5),
        "ratio_bare": round(statistics.median(ready) / statistics.median(bares), 2),
        "findings": findings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox")
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    found = {("bubblewrap" if uid == 0 else "bubblewrap_rootless"): anyio.run(measure, uid, rounds) for uid in users()}
    flat = {f"{backend}_{name}": value for backend, values in found.items() for name, value in values.items()}
    for backend, values in found.items():
        word = "met" if values["ready_ms_p50"] <= BAR_MS else "MISSED"
        print(f"{backend}: ready p50 {values['ready_ms_p50']} ms (bar {BAR_MS:g}, {word}), p99 {values['ready_ms_p99']}; bare bwrap {values['bare_ms_p50']}")
    print(json.dumps({**flat, "bar_ms": BAR_MS, "rounds": rounds, "load": round(os.getloadavg()[0], 1)}))


def users() -> list[int]:
    return [0, ORDINARY_UID] if os.getuid() == 0 else [os.getuid()]


if __name__ == "__main__":
    main()
