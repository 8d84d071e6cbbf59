import os
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_changeset import FUTURE, workspace
from tests.fakes.governance import tar_of

from bailiwick.governor.views import ChangesView


def changed(
    cli: Any, tmp_path: Path, files: dict[str, bytes], *, deleted: tuple[str, ...] = (), requested: str = "2126-01-01T00:00:00.000000Z"
) -> tuple[str, Path]:
    import hashlib

    place = workspace(tmp_path)
    run = cli("run", "deployer", "--detach").strip()
    changes: list[dict[str, Any]] = [
        {"path": name, "change": "modified" if (place / name).exists() else "added", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    changes += [{"path": name, "change": "deleted", "size": 0, "sha256": ""} for name in deleted]
    cli.do(lambda: cli.governance.end(run))
    cli.do(lambda: cli.governance.change(run, requested=requested))
    cli.governance.known_changes[run] = ChangesView(run=run, workspace=str(place), changes=changes, refused=["dev/null: a device, socket or pipe"])
    cli.governance.archives[run] = tar_of(tmp_path / "changes.tar", files)
    return run, place


def test_a_diff_is_one_that_patch_takes(cli: Any, tmp_path: Path) -> None:
    """Files are listed, text is shown against what is there, and what is no text is named."""
    _, place = changed(cli, tmp_path, {"src/a.py": b"old\nnew\n", "b.bin": b"\0\1", "c.txt": b"c"}, deleted=("gone.txt",))
    shown = cli("diff", "last")
    for line in (
        "--- a/src/a.py",
        "+++ b/src/a.py",
        "+new",
        "binary or large file b.bin added",
        "--- /dev/null",
        "+++ b/c.txt",
        "+c",
        "-gone",
        "+++ /dev/null",
    ):
        assert line in shown.splitlines()
    for words in ("A b.bin", "M src/a.py", "D gone.txt", "not brought back: dev/null"):
        assert words in cli.err
    assert cli("diff", "last", "--names") == ""
    assert cli.json("diff", "last")["workspace"] == str(place)


def test_applied_and_noted(cli: Any, tmp_path: Path) -> None:
    """The directory has what the run left, and the governor knows where it went."""
    run, place = changed(cli, tmp_path, {"src/a.py": b"new", "c.txt": b"c"}, deleted=("gone.txt",))
    assert "3 of 3 changes made" in cli("apply", "last", "--yes")
    assert (place / "src/a.py").read_bytes() == b"new"
    assert not (place / "gone.txt").exists()
    assert cli.governance.known_changes[run].applied == str(place)
    assert "run.applied" in [event.event["kind"] for event in cli.governance.log]


def test_without_a_terminal_nothing_is_applied_unasked(cli: Any, tmp_path: Path) -> None:
    """A script that applies says --yes."""
    _, place = changed(cli, tmp_path, {"c.txt": b"c"})
    cli("apply", "last", status=2, input="y\n")
    assert "error: no terminal to ask at; use --yes" in cli.err
    assert not (place / "c.txt").exists()


def test_applied_elsewhere(cli: Any, tmp_path: Path) -> None:
    """Another directory is as good, where what is modified is there."""
    _, place = changed(cli, tmp_path, {"c.txt": b"c"})
    other = tmp_path / "other"
    other.mkdir()
    cli("apply", "last", "--to", str(other), "--yes")
    assert os.listdir(other) == ["c.txt"]
    assert not (place / "c.txt").exists()
    cli("apply", "last", "--to", str(tmp_path / "none"), "--yes", status=4)
    assert "--to" in cli.err


def test_conflicts_are_named_and_nothing_is_noted(cli: Any, tmp_path: Path) -> None:
    """Somebody's later change is never overwritten, and the status says so."""
    run, place = changed(cli, tmp_path, {"src/a.py": b"new", "c.txt": b"c"}, requested="1999-01-01T00:00:00.000000Z")
    cli("apply", "last", "--yes", status=4)
    assert "src/a.py: was changed here since" in cli.err
    assert not (place / "c.txt").exists()
    assert cli.governance.known_changes[run].applied is None


def test_there_may_be_nothing_to_apply(cli: Any) -> None:
    """A run that goes on, one that changed nothing, one without a workspace: each says what it is."""
    run = cli("run", "deployer", "--detach").strip()
    cli("apply", "last", status=4)
    assert "once it has ended" in cli.err
    cli.do(lambda: cli.governance.end(run))
    cli("apply", "last")
    cli("diff", "last")
    assert "changed nothing" in cli.err


@pytest.mark.parametrize("since", [FUTURE])
def test_an_archive_that_is_none(cli: Any, tmp_path: Path, since: int) -> None:
    """Ours that broke, and said as such."""
    run, _ = changed(cli, tmp_path, {"c.txt": b"c"})
    cli.governance.archives[run].write_bytes(b"not a tar at all" * 100)
    cli("apply", "last", "--yes", status=5)
    assert "is not a tar" in cli.err
