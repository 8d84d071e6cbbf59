"""What a run changed, applied to a directory of the operator's: checked whole, then done whole or not at all.

The archive was written by a run's own uid and is hostile: names are walked one step at a time from the directory's descriptor and no link is ever
followed. A file that changed since the run was asked for is somebody's work: it is a conflict, and then nothing is applied.
"""

import contextlib
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import CallerError, Conflict, PeerError

FILES_MAX = 200_000

_CHUNK_BYTES = 1 << 20
_INCOMPLETE = "are in the archive and not in this list"  # how sandbox.changes says that its list was cut
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Kind = Literal["file", "link", "directory", "deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`path` is relative and as the file system has it; `shown` is how the record writes it."""

    path: bytes
    shown: str
    kind: Kind
    change: str  # added, modified, deleted, mode
    sha256: str = ""
    size: int = 0
    mode: int = 0
    target: bytes = b""
    member: tarfile.TarInfo | None = None


class Archive:
    """The run's list of changes and the tar of what it added and modified, brought together. PeerError when they do not fit each other."""

    def __init__(self, listed: Sequence[dict[str, Any]], refused: Sequence[str], tar: tarfile.TarFile | None) -> None:
        self.complete = not any(reason.endswith(_INCOMPLETE) for reason in refused)
        self._tar = tar
        by_name = {str(entry.get("path")): entry for entry in listed}
        members = {text(os.fsencode(member.name)): member for member in tar.getmembers()} if tar is not None else {}
        if len(by_name) != len(listed) or (tar is not None and len(members) != len(tar.getmembers())):
            raise PeerError("the run's changes name a path twice; look at `bailiwick diff --json` and apply them by hand")
        if len(by_name) > FILES_MAX:
            raise CallerError(f"the run changed {len(by_name)} files; at most {FILES_MAX} are applied, take changes.tar from the API")
        if self.complete and set(members) - set(by_name):
            raise PeerError(f"the archive holds {sorted(set(members) - set(by_name))[0]!r}, which is not among the run's changes")
        self.changes = [_change(name, entry, members.get(name)) for name, entry in by_name.items()]

    def content(self, change: Change) -> Iterator[bytes]:
        assert self._tar is not None
        assert change.member is not None
        file = self._tar.extractfile(change.member)
        assert file is not None
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CallerError(f"directory {str(directory)!r} cannot be opened: {error.strerror}; name another with --to") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def conflicts(root: int, archive: Archive, since_ns: int) -> list[str]:
    """What stands against applying: each path with the reason. Empty when all of it can be."""
    made = {change.path for change in archive.changes if change.kind == "directory"}
    found = []
    for change in archive.changes:
        try:
            reason = _conflict(root, change, made, since_ns)
        except OSError as error:
            reason = f"cannot be looked at: {error.strerror}"
        if reason:
            found.append(f"{change.shown}: {reason}")
    return found


def is_applied(root: int, change: Change) -> bool:
    """Whether the directory holds already what the run left there."""
    with _parent(root, change.path) as parent:
        return (parent is None and change.kind == "deleted") or (parent is not None and _same(parent, change))


def read(root: int, path: bytes, bytes_max: int) -> bytes | None:
    """A file's content; None when it is missing, too large, or no file."""
    with _parent(root, path) as parent:
        if parent is None:
            return None
        try:
            descriptor = os.open(name_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            return file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= bytes_max else None


@contextlib.contextmanager
def _parent(root: int, path: bytes) -> Iterator[int | None]:
    """The directory `path` is in, reached without following a link; None when it does not exist. CallerError when a step of it is no directory."""
    current = os.dup(root)
    try:
        for step in path.split(b"/")[:-1]:
            try:
                following = os.open(step, _OPEN_DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                yield None
                return
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


parent_of = _parent


def name_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _change(name: str, entry: dict[str, Any], member: tarfile.TarInfo | None) -> Change:
    change = str(entry.get("change"))
    if change == "deleted":
        return Change(path=checked(_unescaped(name), name), shown=name, kind="deleted", change=change, sha256=str(entry.get("sha256", "")))
    if member is None:
        raise PeerError(f"the archive lacks {name!r}, which the run {change}")
    path = checked(os.fsencode(member.name), name)
    mode = member.mode & 0o777
    if member.isdir():
        return Change(path=path, shown=name, kind="directory", change=change, mode=mode | 0o700, member=member)
    if member.issym():
        target = os.fsencode(member.linkname)
        if not _stays_inside(path, target):
            raise PeerError(f"the link {name!r} leads out of the workspace, to {text(target)!r}; it is not applied")
        return Change(path=path, shown=name, kind="link", change=change, target=target, member=member)
    if not member.isreg():
        raise PeerError(f"{name!r} is neither file, directory nor link; it is not applied")
    return Change(path=path, shown=name, kind="file", change=change, mode=mode, size=member.size, sha256=str(entry.get("sha256", "")), member=member)


def checked(path: bytes, name: str) -> bytes:
    path = path.rstrip(b"/")
    steps = path.split(b"/")
    if not path or b"\0" in path or any(step in (b"", b".", b"..") for step in steps):
        raise PeerError(f"{name!r} is not a path inside a workspace; nothing is applied")
    if steps[0].startswith(b".bailiwick-apply"):
        raise PeerError(f"{name!r} is a name that applying uses itself; nothing is applied")
    return path


def _unescaped(name: str) -> bytes:
    """The bytes behind `kernel.canonical.text`. A name that really holds `\\xNN` reads the same: it is then not found, which deletes nothing."""
    if "\\x" not in name:
        return name.encode()
    import re

    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name.encode())


def _stays_inside(path: bytes, target: bytes) -> bool:
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    steps = [step for step in target.split(b"/") if step not in (b"", b".")]
    ups = next((index for index, step in enumerate(steps) if step != b".."), len(steps))
    return ups <= path.count(b"/") and b".." not in steps[ups:]


def _conflict(root: int, change: Change, made: set[bytes], since_ns: int) -> str:
    try:
        with _parent(root, change.path) as parent:
            if parent is None:
                if change.kind == "deleted" or change.path.rpartition(b"/")[0] in made:
                    return ""
                return "its directory is not there any more"
            return _conflict_in(parent, change, since_ns)
    except NotADirectoryError:
        return "a directory above it is a link or a file now"
    except OSError as error:
        if error.errno == 40:  # ELOOP: O_NOFOLLOW met a link
            return "a directory above it is a link or a file now"
        raise


def _conflict_in(parent: int, change: Change, since_ns: int) -> str:
    try:
        status = os.stat(name_of(change.path), dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return "" if change.change == "added" or change.kind in ("deleted", "directory") else "is not there any more"
    is_directory = stat.S_ISDIR(status.st_mode)
    if change.kind == "directory":
        return "" if is_directory else "is no directory here"
    if change.kind == "deleted":
        return "" if is_directory or status.st_ctime_ns <= since_ns else "was changed here since the run was asked for, and deleted by it"
    if is_directory:
        return f"is a directory here and a {change.kind} in the run"
    if _same(parent, change):
        return ""
    if change.change == "added":
        return "exists here already, with another content"
    return "" if status.st_ctime_ns <= since_ns else "was changed here since the run was asked for"


def _same(parent: int, change: Change) -> bool:
    name = name_of(change.path)
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if change.kind == "link":
            return stat.S_ISLNK(status.st_mode) and os.fsencode(os.readlink(name, dir_fd=parent)) == change.target
        if change.kind == "directory":
            return stat.S_ISDIR(status.st_mode)
        if change.kind == "deleted" or not stat.S_ISREG(status.st_mode) or status.st_size != change.size or (status.st_mode ^ change.mode) & 0o100:
            return False
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == change.sha256
    except FileNotFoundError:
        return change.kind == "deleted"


def refuse_conflicts(found: list[str]) -> None:
    """Conflict, with every path that stands in the way."""
    if found:
        listed = "\n".join(found[:50] + ([f"... and {len(found) - 50} more"] if len(found) > 50 else []))
        raise Conflict(f"nothing is applied, {len(found)} conflict{'s' if len(found) > 1 else ''}:\n{listed}")
