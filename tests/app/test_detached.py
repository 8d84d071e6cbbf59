import os
from pathlib import Path

import pytest

from bailiwick.app import detached
from bailiwick.app.processes import _only_group
from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.layout import Layout


def make(root: Path, fault: str) -> Path:
    """A state directory with a fault."""
    root.mkdir(mode=0o755)
    match fault:
        case "a file":
            (root / "state").write_text("")
            return root / "state"
        case "below a file":
            (root / "file").write_text("")
            return root / "file" / "state"
        case "written by all":
            root.chmod(0o1777)
        case "written by a group":
            root.chmod(0o775)
        case "of another":
            (root / "notes.txt").write_text("")
        case "a directory for a log":
            (root / "up.log").mkdir()
    return root


FAULTS = {
    "a file": "is not a directory", "below a file": "cannot be made", "written by all": "written by others", "written by a group": "chmod go-w",
    "of another": "is not empty",
}  # fmt: skip


@pytest.mark.parametrize("fault", [*FAULTS, "a directory for a log"])
def test_a_state_directory_that_will_not_do_is_the_callers(tmp_path: Path, fault: str) -> None:
    """The directory, what is wrong and the way out; nothing is started and nothing is written there."""
    root = make(tmp_path / "it", fault)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CallerError, match=FAULTS.get(fault, "cannot be written")) as caught:
        detached.start_detached(None, Layout(root))
    assert str(root) in str(caught.value)
    assert "BAILIWICK_STATE" in str(caught.value)
    if fault in FAULTS:
        with pytest.raises(CallerError, match=FAULTS[fault]), _only_group(Layout(root)):
            pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_of_ours_is_taken_again(tmp_path: Path) -> None:
    """New, empty, left by a start that failed, or with whatever an installation has put beside its lock."""
    root = tmp_path / "new" / "state"
    detached.prepare(Layout(root))
    detached.prepare(Layout(root))
    (root / "up.log").write_text("")
    detached.prepare(Layout(root))
    with _only_group(Layout(root)):
        (root / "of-a-later-version").mkdir()
        detached.prepare(Layout(root))
        assert os.stat(root / "lock").st_mode & 0o777 == 0o600
