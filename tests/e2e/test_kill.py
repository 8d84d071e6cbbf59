"""kill -9 of any process at any moment: nothing acknowledged is lost, nothing is done twice, nothing is left behind, and all goes on by itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.installation import ROOT
from tests.e2e.kills import PROCESSES, SUPERVISOR, trial

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

ROUNDS = 5
SEED = 20261124


@pytest.mark.timeout(240)
def test_kill_of_every_process_at_random_moments_under_load() -> None:
    """Each process, and the parent of them all, is killed five times while runs read, write and wait for sign-off. `make faults` does it fifty times."""
    with trial(seed=SEED, runs=3) as tried:
        until = time.monotonic() + 150.0
        for _ in range(ROUNDS):
            tried.round()
            assert time.monotonic() < until, "a round takes seconds; this machine, or what comes back on it, is too slow"
        tried.conclude()
    assert {name: found for name, found in tried.findings.all().items() if found} == {}
    assert dict(tried.kills) == dict.fromkeys((*PROCESSES, SUPERVISOR), ROUNDS)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="who is an ordinary user has done it above; root becomes one here")
def test_the_same_as_an_ordinary_user() -> None:
    """One account for every process, no control group to write: a smaller round, and the same findings: none."""
    as_nobody = Path(__file__).parent / "hostile" / "as_nobody.py"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(as_nobody), "65534"]
    command += [sys.executable, "-m", "tests.e2e.kills", "--rounds", "1", "--seed", str(SEED), "--runs", "2"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert json.loads(done.stdout)["kills"] == dict.fromkeys(sorted((*PROCESSES, SUPERVISOR)), 1)
