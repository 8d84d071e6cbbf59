"""A workspace comes back: what differs from the copy taken at the start, and a tar of it that is safe to extract anywhere.

Run by a child under the run's own uid, once no process of the run is left: what it reads is hostile, and it holds nothing worth having. The tar has
relative names without `..`, directories, regular files and links that stay inside; everything else is refused by name, and so is what would make it
larger than the run's disk: sizes of files are the agent's to choose, and a hole costs it nothing.
"""

import contextlib
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, cast

from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox.messages import Change
from bailiwick.sandbox.workspace import DEPTH_MAX, FINGERPRINT_EMPTY, Entry, fingerprint, mark_of

_SHOWN_BYTES_MAX = 2 << 20  # of paths in an answer; the tar holds all
_REFUSED_MAX = 1_000
_MEMBER_BYTES = 3 * 1024  # of a member at most, beside its name and target: header, extended header with its own, padding
_NAMES_BYTES_MIN = 64 << 20


@dataclass(slots=True)
class Collected:
    changes: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    shown_bytes: int = 0
    unshown: int = 0
    content_left: int = 0  # bytes of files, and of names, that the tar may still take
    names_left: int = 0

    def add(self, path: bytes, change: str, size: int = 0, sha256: str = FINGERPRINT_EMPTY) -> None:
        shown = text(path)
        self.shown_bytes += len(shown) + 120
        if self.shown_bytes > _SHOWN_BYTES_MAX:
            self.unshown += 1
            return
        self.changes.append(Change(shown, change, size, sha256))

    def takes(self, path: bytes, size: int = 0, target: bytes = b"") -> bool:
        """Whether the tar has room for this; what it takes is counted, what it does not is refused by name."""
        names = len(path) + len(target) + _MEMBER_BYTES
        if size > self.content_left or names > self.names_left:
            self.refuse(path, f"{size} bytes are more than the archive, bounded by limits.disk, has left")
            return False
        self.content_left -= size
        self.names_left -= names
        return True

    def refuse(self, path: bytes, reason: str) -> None:
        if len(self.refused) < _REFUSED_MAX:
            self.refused.append(f"{text(path)[-300:]}: {reason}")
        elif len(self.refused) == _REFUSED_MAX:
            self.refused.append("... and more")


def archive_bytes_max(disk_bytes: int) -> int:
    """No tar is larger: as many bytes of files as the disk, as many again of names and headers, and the end's own blocks."""
    return 2 * max(disk_bytes, _NAMES_BYTES_MIN) + tarfile.RECORDSIZE


def collect(root: int, baseline: Iterable[Entry], into: IO[bytes], disk_bytes: int) -> Collected:
    """Compares the directory behind `root` with the baseline and writes the tar."""
    before = {entry.path: entry for entry in baseline}
    collected = Collected(content_left=disk_bytes, names_left=max(disk_bytes, _NAMES_BYTES_MIN))
    seen: set[bytes] = set()
    with tarfile.open(fileobj=cast("IO[bytes]", _Sink(into)), mode="w", format=tarfile.PAX_FORMAT) as archive:
        _walk(root, b"", before, seen, collected, archive)
    for path, entry in sorted(before.items()):
        if path not in seen:
            collected.add(path, "deleted", entry.size, entry.sha256)
    if collected.unshown:
        collected.refused.append(f"{collected.unshown} more changes are in the archive and not in this list")
    return collected


@dataclass(frozen=True, slots=True)
class _Sink:
    """A tar that cannot be written on is broken from there on: unlike a file that cannot be read, it is the end of the collection."""

    into: IO[bytes]

    def write(self, data: bytes) -> int:
        try:
            return self.into.write(data)
        except OSError as error:
            raise BackendError(f"archive cannot be written: {error.strerror}") from error

    def tell(self) -> int:
        return self.into.tell()


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a link at `path` can only lead into the workspace. `..` may only stand in front: past a name it depends on what that name is by then."""
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    steps = [step for step in target.split(b"/") if step not in (b"", b".")]
    ups = 0
    while ups < len(steps) and steps[ups] == b"..":
        ups += 1
    return ups <= path.count(b"/") and b".." not in steps[ups:]


def _walk(directory: int, path: bytes, before: dict[bytes, Entry], seen: set[bytes], collected: Collected, archive: tarfile.TarFile) -> None:
    if path.count(b"/") >= DEPTH_MAX:
        collected.refuse(path, f"more than {DEPTH_MAX} directories deep")
        return
    for name in sorted(os.listdir(directory), key=os.fsencode):
        inner = path + b"/" + os.fsencode(name) if path else os.fsencode(name)
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            _compare(directory, name, inner, status, before, seen, collected, archive)
        except OSError as error:
            seen.add(inner)
            collected.refuse(inner, f"cannot be read: {error.strerror}")


def _compare(
    directory: int, name: str, path: bytes, status: os.stat_result, before: dict[bytes, Entry], seen: set[bytes], collected: Collected, archive: tarfile.TarFile
) -> None:
    seen.add(path)
    was, mode = before.get(path), stat.S_IMODE(status.st_mode)
    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(status.st_mode):
        collected.refuse(path, "setuid or setgid bit (brought back without it)")
    mode &= 0o777
    if stat.S_ISDIR(status.st_mode):
        change = "added" if was is None or was.kind != "directory" else "mode" if was.mode != mode else ""
        if change and collected.takes(path):
            collected.add(path, change)
            archive.addfile(_member(path, tarfile.DIRTYPE, mode | 0o700, status))
        _make_readable(directory, name, mode, 0o700)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            _walk(inner, path, before, seen, collected, archive)
        finally:
            os.close(inner)
    elif stat.S_ISLNK(status.st_mode):
        target = os.fsencode(os.readlink(name, dir_fd=directory))
        if was is not None and was.kind == "link" and was.target == target:
            return
        if not stays_inside(path, target):
            collected.refuse(path, f"link to {text(target)[:200]!r} may lead out of the workspace")
            return
        if not collected.takes(path, 0, target):
            return
        collected.add(path, "added" if was is None else "modified", len(target), hashlib.sha256(target).hexdigest())
        member = _member(path, tarfile.SYMTYPE, 0o777, status)
        member.linkname = os.fsdecode(target)
        archive.addfile(member)
    elif stat.S_ISREG(status.st_mode):
        if was is None or was.kind != "file" or was.mark != mark_of(status) or was.mode != mode:
            _compare_file(directory, name, path, mode, was, collected, archive)
    else:
        collected.refuse(path, "a device, socket or pipe")


def _compare_file(directory: int, name: str, path: bytes, mode: int, was: Entry | None, collected: Collected, archive: tarfile.TarFile) -> None:
    _make_readable(directory, name, mode, 0o400)
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > collected.content_left and (was is None or status.st_size != was.size):
            collected.takes(path, status.st_size)  # refused unread: reading it could take as long as it claims to be
            return
        sha256 = fingerprint(file.fileno())
        if was is not None and was.kind == "file" and was.sha256 == sha256 and was.size == status.st_size:
            if was.mode == mode:
                return
            change = "mode"
        else:
            change = "added" if was is None else "modified"
        if not collected.takes(path, status.st_size):
            return
        collected.add(path, change, status.st_size, sha256)
        file.seek(0)
        member = _member(path, tarfile.REGTYPE, mode, status)
        member.size = status.st_size
        archive.addfile(member, file)


def _make_readable(directory: int, name: str, mode: int, needed: int) -> None:
    """The run's uid owns what the run left, so it may always give itself the right to read it."""
    if mode & needed != needed:
        with contextlib.suppress(OSError):
            os.chmod(name, mode | needed, dir_fd=directory)


def _member(path: bytes, kind: bytes, mode: int, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(os.fsdecode(path))
    member.type, member.mode, member.mtime = kind, mode, int(status.st_mtime)
    return member
