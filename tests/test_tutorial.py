"""The commands of the documents, given as they stand there."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.installation import Installation

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]


def transcript(page: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/transcript"), "--check", page], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tutorial_is_what_happens() -> None:
    """Hold, sign-off, trace, diff, apply, export and the altered copy that is found: each command prints what the page shows, ids and times apart."""
    transcript("docs/tutorials/first-run.md")


def test_the_commands_of_the_readme_work() -> None:
    """Every block that is marked to be run ends with 0, command by command."""
    transcript("README.md")


def test_every_finding_of_the_probe_is_documented() -> None:
    """What the probe says it tried is in the reference."""
    page = (ROOT / "docs/reference/sandbox.md").read_text()
    with Installation() as installed:
        done = installed.run("--no-workspace", "--", "true")
    found = {finding["check"] for finding in done.of("run.probed")[0]["body"]["findings"]}
    assert len(found) > 30
    assert {name for name in found if f"`{name}`" not in page} == set()
