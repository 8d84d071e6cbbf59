"""The story of `make demo`, whole, by its own command: every claim holds, as root and as whoever runs the tests."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]


def test_every_claim_of_the_demo_holds() -> None:
    """The demo ends with 0 and each of its claims was checked and holds; a second process approves."""
    done = subprocess.run([sys.executable, "-m", "bailiwick.cli", "demo", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    claims = json.loads(done.stdout)
    assert [claim for claim in claims if not claim["passed"]] == []
    assert len(claims) >= 12
    assert done.returncode == 0, done.stderr
