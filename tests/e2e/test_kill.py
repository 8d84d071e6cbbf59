"""kill -9 of any process at any moment: nothing acknowledged is lost, nothing is done twice, nothing is left behind, and all goes on by itself."""

import time

import pytest
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
