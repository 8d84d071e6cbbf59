"""The examination of the process that waits to become the agent: what it holds, read when its shell has put away what it needed for a moment."""

import threading
from pathlib import Path

from bailiwick.sandbox import probe


def _open(proc: Path, *descriptors: int) -> None:
    (proc / "fd").mkdir(exist_ok=True)
    for descriptor in descriptors:
        (proc / "fd" / str(descriptor)).touch()


def test_a_descriptor_the_shell_is_about_to_put_away_is_no_finding(tmp_path: Path) -> None:
    """dash saves standard output at 10 while it says that it is ready; a busy machine may show that."""
    _open(tmp_path, 0, 1, 2, 6, 10)
    later = threading.Timer(0.02, (tmp_path / "fd" / "10").unlink)
    later.start()
    assert probe._settled_descriptors(tmp_path) == [0, 1, 2, 6]
    later.join()


def test_a_descriptor_that_stays_is_one(tmp_path: Path) -> None:
    """What is still open when the time is up is what the agent would inherit."""
    _open(tmp_path, 0, 1, 2, 6, 10)
    assert probe._settled_descriptors(tmp_path) == [0, 1, 2, 6, 10]
