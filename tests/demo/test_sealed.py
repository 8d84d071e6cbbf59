"""The counterpart of `test_control`: the same agent and the same dials, with a bailiwick, in a world outside that notices every packet."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.world import outside

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]

DEMO = ("-m", "bailiwick.cli", "demo", "--no-input", "--json")


def told(seen: outside.Seen) -> None:
    """Every claim held, and nothing was noticed outside."""
    assert seen.output, seen.errors[-3000:]
    assert [claim for claim in json.loads(seen.output) if not claim["passed"]] == []
    assert seen.status == 0
    assert seen.contacts == []


def test_every_claim_holds_and_nothing_leaks(tmp_path: Path) -> None:
    """Not one packet, loopback service or abstract socket of the world outside was touched while the story was told."""
    told(outside.run([sys.executable, *DEMO], directory=tmp_path))


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root")
def test_it_holds_for_an_ordinary_user(tmp_path: Path) -> None:
    """The same for a user without any privilege, by an interpreter that user can reach."""
    uid = 65_534  # nobody, who has an entry in every passwd
    home = tmp_path / "home"
    home.mkdir()
    shutil.chown(home, uid, uid)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    try:
        subprocess.run([sys.executable, "-c", "import bailiwick, openai"], cwd=home, user=uid, group=uid, extra_groups=[], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"an ordinary user cannot run {sys.executable}: it lies in somebody's home")
    told(outside.run([sys.executable, *DEMO], directory=home, uid=uid, environment={"PATH": os.environ["PATH"], "HOME": str(home)}))
