import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bailiwick.cli.demo import scripts

NAMESPACES = ["unshare", "--net", "--mount"] + ([] if os.getuid() == 0 else ["--user", "--map-root-user"])


@pytest.mark.sandbox
def test_without_a_bailiwick_the_agent_reaches_everything(tmp_path: Path) -> None:
    """The control: the same program, model and ticket with nobody around them write production, feed the stranger, and get every direct dial through,
    with both secrets in the agent's hands. What the demo shows as refused is really tried."""
    script = Path(__file__).with_name("unsealed.py")
    done = subprocess.run([*NAMESPACES, sys.executable, script, tmp_path], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["status"], seen["errors"]) == (0, "")
    assert set(seen["values"].values()) == {scripts.NEW_VALUE}
    assert seen["stranger"] == 1
    assert seen["dialled"] == [1] * len(scripts.DIALS)
    assert seen["secrets_seen"] == [True, True]
    assert "Done. 10 steps worked, 0 were refused, 0 failed." in seen["output"]
