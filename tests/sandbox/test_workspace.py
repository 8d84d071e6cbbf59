"""Copies in and changes out, on hostile trees. What goes in cannot lead elsewhere; what comes back can be extracted anywhere."""

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.sandbox.changes import Collected, collect, stays_inside
from bailiwick.sandbox.workspace import Bound, Copied, Reader, copy_in

ROOM = 10 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def copy(source: Path, into: Path, *, size: int = ROOM, files: int = 1_000) -> Copied:
    reading, writing = os.open(source, os.O_PATH), os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return copy_in(reading, writing, Bound(size, files, os.getuid(), os.getgid()), Reader())
    finally:
        os.close(reading)
        os.close(writing)


def changes(into: Path, copied: Copied, *, disk: int = ROOM) -> tuple[Collected, dict[str, tarfile.TarInfo], bytes]:
    root, raw = os.open(into, os.O_RDONLY | os.O_DIRECTORY), io.BytesIO()
    try:
        collected = collect(root, copied.entries, raw, disk)
    finally:
        os.close(root)
    with tarfile.open(fileobj=io.BytesIO(raw.getvalue())) as archive:
        return collected, {member.name: member for member in archive}, raw.getvalue()


def test_files_links_and_names_go_in_as_they_are(source: Path, into: Path) -> None:
    """Content, modes, times, links and names that are not UTF-8 are the same in the copy; an untouched copy has no changes."""
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(b"content")
    (source / "deep/er/file").chmod(0o751)
    os.utime(source / "deep/er/file", ns=(1_000_000_000, 2_000_000_000))
    os.symlink("/etc/passwd", source / "out")
    os.symlink("deep/er/file", source / "in")
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9\n")).write_bytes(b"latin")
    os.link(source / "deep/er/file", source / "hard")
    (source / "sparse").touch()
    os.truncate(source / "sparse", 5 << 20)
    copied = copy(source, into)
    assert (into / "deep/er/file").read_bytes() == (into / "hard").read_bytes() == b"content"
    assert (into / "deep/er/file").stat().st_mode & 0o7777 == 0o751
    assert (into / "deep/er/file").stat().st_mtime_ns == 2_000_000_000
    assert os.readlink(into / "out") == "/etc/passwd"
    assert os.listdir(os.fsencode(into)).count(b"caf\xe9\n") == 1
    assert (into / "sparse").stat().st_size == 5 << 20
    assert (into / "sparse").stat().st_blocks < 100
    assert copied.refused == []
    collected, members, _ = changes(into, copied)
    assert (collected.changes, collected.refused, members) == ([], [], {})


def test_what_could_act_stays_out(source: Path, into: Path) -> None:
    """Pipes, sockets, devices and setuid bits are not copied, and each is reported."""
    os.mkfifo(source / "pipe")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(source / "sock"))
    (source / "setuid").write_text("x")
    (source / "setuid").chmod(0o4755)
    if os.getuid() == 0:
        os.mknod(source / "device", 0o20666, os.makedev(1, 3))
    copied = copy(source, into)
    sock.close()
    assert sorted(os.listdir(into)) == ["setuid"]
    assert (into / "setuid").stat().st_mode & 0o7777 == 0o755
    told = "\n".join(copied.refused)
    assert "pipe: named pipe" in told
    assert "sock: socket" in told
    assert "setuid: setuid" in told
    if os.getuid() == 0:
        assert "device: character device" in told


def test_bounds_are_errors_that_say_what_to_do(source: Path, into: Path, tmp_path: Path) -> None:
    """Too large, too many and too deep are the caller's errors; nothing is followed out to be counted."""
    (source / "big").write_bytes(b"x" * 5_000)
    with pytest.raises(CallerError, match=r"larger than 4999 bytes at 'big'; leave files out or raise limits\.disk"):
        copy(source, into, size=4_999)
    for number in range(4):
        (source / f"f{number}").touch()
    (tmp_path / "again").mkdir()
    with pytest.raises(CallerError, match="more than 4 files"):
        copy(source, tmp_path / "again", files=4)
    with pytest.raises(CallerError, match="must be a directory"):
        copy(source / "big", into)
    deep = os.open(source, os.O_RDONLY)
    for _ in range(210):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    (tmp_path / "third").mkdir()
    with pytest.raises(CallerError, match="200 directories deep"):
        copy(source, tmp_path / "third")


def test_every_kind_of_change_is_found(source: Path, into: Path) -> None:
    """Added, modified, deleted and mode, each with its digest; a file rewritten with the same bytes is none, whatever its times say."""
    for name in ("modified", "deleted", "mode", "same", "forged"):
        (source / name).write_text(f"{name} before")
    (source / "gone/deep").mkdir(parents=True)
    os.symlink("same", source / "link")
    copied = copy(source, into)
    (into / "modified").write_text("after")
    (into / "deleted").unlink()
    (into / "mode").chmod(0o700)
    (into / "same").write_text("same before")
    times = (into / "forged").stat()
    (into / "forged").write_text("forged AFTER_")  # the same length, and the old time put back
    os.utime(into / "forged", ns=(times.st_atime_ns, times.st_mtime_ns))
    (into / "gone/deep").rmdir()
    (into / "gone").rmdir()
    (into / "new").mkdir()
    (into / "new/file").write_text("new")
    (into / "new/file").chmod(0)
    os.unlink(into / "link")
    os.symlink("mode", into / "link")
    collected, members, _ = changes(into, copied)
    found = {change.path: change.change for change in collected.changes}
    assert found == {
        "modified": "modified", "deleted": "deleted", "mode": "mode", "forged": "modified", "gone": "deleted", "gone/deep": "deleted", "new": "added",
        "new/file": "added", "link": "modified",
    }  # fmt: skip
    import hashlib

    assert next(change.sha256 for change in collected.changes if change.path == "new/file") == hashlib.sha256(b"new").hexdigest()
    assert set(members) == {"modified", "mode", "forged", "new", "new/file", "link"}


def test_what_is_never_brought_back(source: Path, into: Path) -> None:
    """Links that lead out, by any way, pipes and sockets are refused by name and not in the tar; setuid bits are taken off."""
    copied = copy(source, into)
    (into / "dir").mkdir()
    for name, target in (("abs", "/etc/passwd"), ("up", "../x"), ("deep", "dir/../../x"), ("via", "dir/../y"), ("dir/upup", "../../z")):
        os.symlink(target, into / name)
    os.symlink("../ok", into / "dir/fine")
    os.mkfifo(into / "pipe")
    (into / "suid").write_text("x")
    (into / "suid").chmod(0o6755)
    collected, members, _ = changes(into, copied)
    told = "\n".join(collected.refused)
    for name in ("abs", "up", "deep", "via", "dir/upup"):
        assert f"{name}: link to" in told
    assert "pipe: a device, socket or pipe" in told
    assert "suid: setuid" in told
    assert set(members) == {"dir", "dir/fine", "suid"}
    assert members["suid"].mode == 0o755


def test_the_tar_is_no_larger_than_the_disk(source: Path, into: Path) -> None:
    """Holes, hard links and names in any number do not make it larger; what has no room is refused by name, unread, and the rest comes back."""
    (source / "kept").write_bytes(b"x" * 1_000)
    copied = copy(source, into)
    (into / "a-hole").touch()
    os.truncate(into / "a-hole", 1 << 40)
    (into / "b").write_bytes(b"y" * 900_000)
    for number in range(5):
        os.link(into / "b", into / f"b-{number}")
    (into / "z-small").write_text("small")
    os.truncate(into / "kept", 1 << 41)
    collected, members, raw = changes(into, copied, disk=1 << 20)
    assert set(members) == {"b", "z-small"}
    assert len(raw) < (1 << 20) + 20_000
    told = "\n".join(collected.refused)
    for name in ("a-hole: 1099511627776 bytes", "kept: ", *(f"b-{number}: 900000 bytes" for number in range(5))):
        assert name in told
    assert {change.path: change.change for change in collected.changes} == {"b": "added", "z-small": "added"}


def test_a_tar_that_cannot_be_written_on_is_an_error(into: Path) -> None:
    """A full disk of the host is not taken for a file that cannot be read: the tar would be broken from there on."""
    (into / "file").write_bytes(b"x" * 100_000)
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(BackendError, match="archive cannot be written: No space left"):
        collect(root, [], full, ROOM)
    os.close(root)


def test_the_tar_extracts_under_the_strictest_filter(source: Path, into: Path, tmp_path: Path) -> None:
    """Names that are not UTF-8, long names and links come out where they were, by Python's own `data` filter."""
    copied = copy(source, into)
    raw_name = os.fsencode(into) + b"/\xff\xfe name"
    with open(raw_name, "wb") as file:
        file.write(b"bytes")
    (into / ("d" * 120)).mkdir()
    (into / ("d" * 120) / ("f" * 200)).write_text("long")
    os.symlink("d" * 120, into / "link")
    collected, _, raw = changes(into, copied)
    assert "\\xff\\xfe name" in {change.path for change in collected.changes}
    (tmp_path / "out").mkdir()
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        strictest = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        archive.extractall(tmp_path / "out", **strictest)
    assert Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"/\xff\xfe name")).read_bytes() == b"bytes"
    assert (tmp_path / "out/link" / ("f" * 200)).read_text() == "long"


@given(path=st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=4), target=st.lists(st.sampled_from([b"..", b".", b"", b"a", b"b"]), max_size=6))
@settings(max_examples=300, deadline=None)
def test_a_link_that_stays_inside_does(path: list[bytes], target: list[bytes]) -> None:
    """Whatever `stays_inside` accepts, resolved step by step from the link's own directory, never rises above the workspace."""
    joined = b"/".join(target)
    if stays_inside(b"/".join(path), joined):
        depth = len(path) - 1
        for step in joined.split(b"/"):
            depth += -1 if step == b".." else 0 if step in (b"", b".") else 1
            assert depth >= 0
        assert not joined.startswith(b"/")
