import contextlib
import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bailiwick.cli import applying, changeset
from bailiwick.cli.changeset import Archive
from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import BailiwickError, Conflict, PeerError

Entry = tuple[bytes, str, Any]  # path, kind, content or target or mode

FUTURE = 2**62
PAST = 0


def archive_of(entries: list[Entry], deleted: list[bytes] = (), *, change: str = "added", lie: bool = False) -> Archive:  # type: ignore[assignment]
    raw = io.BytesIO()
    listed = []
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, kind, value in entries:
            member = tarfile.TarInfo(os.fsdecode(path))
            content = b""
            if kind == "directory":
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif kind == "link":
                member.type, member.linkname, content = tarfile.SYMTYPE, os.fsdecode(value), value
            elif kind == "device":
                member.type = tarfile.CHRTYPE
            else:
                member.size, member.mode, content = len(value), 0o755 if kind == "program" else 0o644, value
            tar.addfile(member, io.BytesIO(value) if member.isreg() else None)
            digest = "0" * 64 if lie else hashlib.sha256(content).hexdigest()
            listed.append({"path": text(path), "change": change, "size": len(content), "sha256": digest})
    listed += [{"path": text(path), "change": "deleted", "size": 0, "sha256": ""} for path in deleted]
    raw.seek(0)
    return Archive(listed, [], tarfile.open(fileobj=raw))


@contextlib.contextmanager
def root_of(path: Path) -> Iterator[int]:
    with changeset.opened(path) as root:
        yield root


def apply(path: Path, archive: Archive, since_ns: int = FUTURE) -> int:
    with root_of(path) as root:
        return applying.apply(root, archive, since_ns)


def tree(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in sorted(path.rglob("*")):
        name = str(each.relative_to(path))
        found[name] = f"-> {each.readlink()}" if each.is_symlink() else "/" if each.is_dir() else each.read_bytes()
    return found


def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "w"
    (place / "src").mkdir(parents=True)
    (place / "src" / "a.py").write_bytes(b"old")
    (place / "gone.txt").write_bytes(b"gone")
    (place / "empty").mkdir()
    return place


def test_everything_a_run_can_do_comes_back(tmp_path: Path) -> None:
    """Added, modified, deleted, made executable; directories, links, names that are not UTF-8; and applied twice is applied."""
    place = workspace(tmp_path)
    added = [
        (b"new", "directory", None),
        (b"new/x\xff.txt", "file", b"x"),
        (b"new/run", "program", b"#!"),
        (b"new/link", "link", b"../src/a.py"),
        (b"src/a.py", "file", b"new"),
    ]
    archive = archive_of(added, [b"gone.txt", b"empty"], change="modified")
    assert apply(place, archive) == 7
    assert tree(place) == {
        "new": "/", os.fsdecode(b"new/x\xff.txt"): b"x", "new/run": b"#!", "new/link": "-> ../src/a.py", "src": "/", "src/a.py": b"new",
    }  # fmt: skip
    assert (place / "new" / "run").stat().st_mode & 0o100
    assert apply(place, archive) == 0


def test_what_changed_meanwhile_is_a_conflict_and_nothing_is_done(tmp_path: Path) -> None:
    """Every conflict is named, with its reason; the directory is as it was, to the byte."""
    place = workspace(tmp_path)
    before = tree(place)
    archive = archive_of(
        [(b"src/a.py", "file", b"new"), (b"missing/b", "file", b"b"), (b"fresh", "file", b"f"), (b"empty", "file", b"")], [b"gone.txt"], change="modified"
    )
    with pytest.raises(Conflict) as caught:
        apply(place, archive, since_ns=PAST)
    for words in (
        "src/a.py: was changed here",
        "missing/b: its directory is not there",
        "fresh: is not there any more",
        "empty: is a directory here",
        "gone.txt: was changed here",
    ):
        assert words in str(caught.value)
    assert tree(place) == before
    with pytest.raises(Conflict, match="exists here already"):
        apply(place, archive_of([(b"src/a.py", "file", b"new")]))
    assert tree(place) == before


def test_a_file_changed_since_is_known_by_the_kernels_clock(tmp_path: Path) -> None:
    """Setting the modification time back does not hide a change."""
    place = workspace(tmp_path)
    since = time.time_ns()
    deadline = time.monotonic() + 5
    while (place / "src/a.py").stat().st_ctime_ns <= since:
        (place / "src/a.py").write_bytes(b"mine")
        assert time.monotonic() < deadline
    os.utime(place / "src/a.py", (0, 0))
    with pytest.raises(Conflict, match="was changed here"):
        apply(place, archive_of([(b"src/a.py", "file", b"new")], change="modified"), since_ns=since)


def test_a_link_in_the_way_is_never_followed(tmp_path: Path) -> None:
    """A directory that is a link now, or a file that is one, leads nowhere: what it points at is untouched."""
    place = workspace(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_bytes(b"precious")
    (place / "src" / "a.py").unlink()
    (place / "src").rmdir()
    (place / "src").symlink_to(outside)
    with pytest.raises(Conflict, match="a directory above it is a link"):
        apply(place, archive_of([(b"src/a.py", "file", b"new")], change="modified"))
    with pytest.raises(Conflict, match="a directory above it is a link"):
        apply(place, archive_of([], [b"src/a.py"]))
    (place / "gone.txt").unlink()
    (place / "gone.txt").symlink_to(outside / "a.py")
    assert apply(place, archive_of([(b"gone.txt", "file", b"new")], change="modified")) == 1
    assert (place / "gone.txt").read_bytes() == b"new"
    assert not (place / "gone.txt").is_symlink()
    assert (outside / "a.py").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "entry",
    [
        (b"../x", "file", b""), (b"/x", "file", b""), (b"a/../../x", "file", b""), (b"a//x", "file", b""), (b".", "directory", None), (b"d", "device", None),
        (b"l", "link", b"/etc/passwd"), (b"l", "link", b"../x"), (b"a/l", "link", b"../../x"), (b"l", "link", b"a/../../x"),
        (b".bailiwick-apply/plan.json", "file", b"[]"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_hostile_archive_is_refused(tmp_path: Path, entry: Entry) -> None:
    """Names and links that lead out, devices, and our own staging: nothing is applied, and the name is said."""
    place = workspace(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(PeerError):
        apply(place, archive_of([(b"ok", "file", b"ok"), entry]))
    assert tree(tmp_path) == before


def test_list_and_archive_must_fit_each_other(tmp_path: Path) -> None:
    """A file too many, one too few, another content, a list that is cut: refused before anything is touched."""
    place = workspace(tmp_path)
    before = tree(place)
    with pytest.raises(PeerError, match="is not what the run left"):
        apply(place, archive_of([(b"ok", "file", b"ok")], lie=True))
    assert tree(place) == before
    with pytest.raises(PeerError, match="lacks 'b'"):
        Archive([{"path": "b", "change": "added"}], [], None)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("extra"))
    raw.seek(0)
    with pytest.raises(PeerError, match="'extra'"), tarfile.open(fileobj=raw) as tar:
        Archive([], [], tar)
    with pytest.raises(Conflict, match="is cut"):
        apply(place, Archive([], ["7 more changes are in the archive and not in this list"], None))


STEPS_FAILING = 14
STEPS_BEFORE_DONE = 9  # of those below: after them the plan is gone, and only the staging directory is left to remove


@pytest.mark.parametrize("fail_at", range(STEPS_FAILING))
def test_cut_short_anywhere_it_is_undone(tmp_path: Path, fail_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error at any step leaves the directory as it was; so does a death at any step, once the next one applies."""
    place = workspace(tmp_path)
    before = tree(place)
    entries = [(b"new", "directory", None), (b"new/x", "file", b"x"), (b"new/l", "link", b"x"), (b"src/a.py", "file", b"new"), (b"z", "file", b"z")]
    archive = archive_of(entries, [b"gone.txt", b"empty"], change="modified")
    archive.changes = [change if change.shown != "z" else changeset.Change(**{**_fields(change), "change": "added"}) for change in archive.changes]
    calls = 0

    def failing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at + 1:
                raise OSError(28, "no space left on device", "x")
            return real(*args, **kwargs)

        return call

    class Died(BaseException):
        pass

    def dies(_: int) -> bool:
        if calls:
            raise Died
        return False

    for how in ("error", "death"):
        calls = 0
        with monkeypatch.context() as patch:
            for name in ("mkdir", "link", "rename", "rmdir", "symlink"):
                patch.setattr(applying.os, name, failing(getattr(os, name)))
            if how == "death":  # nothing of ours runs any more: not even the undoing
                patch.setattr(applying, "undo", dies)
            with contextlib.suppress(BailiwickError, Died):
                apply(place, archive)
                if calls <= fail_at:
                    return  # all steps are behind: there is nothing left to fail at
        with root_of(place) as root:
            applying.undo(root)
        done = tree(place)
        assert done == before or (fail_at >= STEPS_BEFORE_DONE and "new/x" in done and "gone.txt" not in done), (how, fail_at)
    assert apply(place, archive) in (0, 7)
    assert applying.STAGING not in os.listdir(place)


def _fields(change: Any) -> dict[str, Any]:
    return {name: getattr(change, name) for name in change.__slots__}


def test_a_plan_from_elsewhere_moves_nothing_out(tmp_path: Path) -> None:
    """A directory that came with an unfinished plan in it (a hostile repository) is not a way out of itself."""
    place = workspace(tmp_path)
    (tmp_path / "victim").write_bytes(b"precious")
    staging = place / applying.STAGING
    staging.mkdir()
    (staging / "old.0").write_bytes(b"evil")
    for step in ({"do": "remove", "path": b"../victim".hex(), "old": "old.0"}, {"do": "remove", "path": b"x".hex(), "old": "../../victim"}):
        import json

        (staging / "plan.json").write_text(json.dumps([step]))
        with pytest.raises(PeerError):
            apply(place, archive_of([(b"ok", "file", b"ok")]))
        assert (tmp_path / "victim").read_bytes() == b"precious"


def test_two_do_not_apply_at_once(tmp_path: Path) -> None:
    """The second is told to wait, and does nothing."""
    place = workspace(tmp_path)
    with root_of(place) as root, applying._locked(root), pytest.raises(Conflict, match="another"):
        apply(place, archive_of([(b"ok", "file", b"ok")]))


NAMES = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"\xff", b"\\x41"]), min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=NAMES, target=NAMES, kind=st.sampled_from(["file", "link", "directory", "program"]))
def test_nothing_ever_leaves_the_directory(path: bytes, target: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever names an archive holds: either it is refused, or all of it is inside."""
    base = tmp_path_factory.mktemp("apply")
    place = base / "w"
    place.mkdir()
    entries: list[Entry] = [(path, kind, target if kind == "link" else b"x")]
    parents = path.split(b"/")[:-1]
    entries = [(b"/".join(parents[: n + 1]), "directory", None) for n in range(len(parents))] + entries
    with contextlib.suppress(BailiwickError):
        apply(place, archive_of(entries))
    assert [each.name for each in base.iterdir()] == ["w"]
    for each in place.rglob("*"):
        assert Path(os.path.realpath(each)).is_relative_to(place)  # a link that loops leads nowhere
