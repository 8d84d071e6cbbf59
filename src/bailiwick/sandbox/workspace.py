"""A workspace goes in: an operator's directory, copied file by file through descriptors, so that nothing it holds can lead elsewhere.

Links stay links and are never followed. What could act (devices, sockets, pipes, setuid bits) is not copied and is reported. The copy's manifest
is the baseline that `sandbox.changes` compares against at the end.
"""

import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox import namespaces

_CHUNK_BYTES = 1 << 20
DEPTH_MAX = 200  # directories deep; each level holds a descriptor or two
_REPORTED_MAX = 200
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_GROUP = 65_534
FINGERPRINT_EMPTY = hashlib.sha256(b"").hexdigest()


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One thing in a workspace. `kind` is file, directory or link; `mark` (inode, size, mtime, ctime) is what cannot stay the same if it was written."""

    path: bytes
    kind: str
    mode: int
    size: int = 0
    sha256: str = FINGERPRINT_EMPTY
    target: bytes = b""
    mark: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(slots=True)
class Copied:
    entries: list[Entry] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose rights every name of the source is opened with: what its owner may not read, root does not read for them. None is this process."""

    uid: int | None = None

    def join_groups(self) -> None:
        """Takes on the user's groups, and gives up root's, for the rest of this process."""
        if self.uid is None:
            return
        try:
            user = pwd.getpwuid(self.uid)
            gid, groups = user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)
        except KeyError:
            gid, groups = _NO_GROUP, []
        os.setgroups(groups)
        namespaces.touch_files_as_group(gid)

    def __enter__(self) -> None:
        if self.uid is not None:
            namespaces.touch_files_as(self.uid)

    def __exit__(self, *_: object) -> None:
        if self.uid is not None:
            namespaces.touch_files_as(os.geteuid())


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a copy may hold; the owner of what is made."""

    size: int
    files: int
    uid: int
    gid: int


def copy_in(source: int, into: int, bound: Bound, reader: Reader) -> Copied:
    """Copies the content of one directory into another, both open. CallerError when some of it cannot be read, or it is too large."""
    copied = Copied()
    reader.join_groups()
    try:
        with reader:
            reading = os.open(".", _READ_DIRECTORY, dir_fd=source)
    except OSError as error:
        raise CallerError(f"workspace cannot be read{_as_whom(reader)}: {error.strerror}; must be a directory that its owner may list") from error
    try:
        _copy_directory(reading, into, b"", copied, bound, reader)
    finally:
        os.close(reading)
    return copied


def mark_of(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def fingerprint(descriptor: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _copy_directory(source: int, into: int, path: bytes, copied: Copied, bound: Bound, reader: Reader) -> None:
    if path.count(b"/") >= DEPTH_MAX:
        raise CallerError(f"workspace is more than {DEPTH_MAX} directories deep at {text(path)[-200:]!r}; flatten it or give a smaller one")
    for name in sorted(os.listdir(source)):
        raw = os.fsencode(name)
        inner = path + b"/" + raw if path else raw
        try:
            with reader:
                status = os.stat(name, dir_fd=source, follow_symlinks=False)
            _copy_one(source, into, raw, inner, status, copied, bound, reader)
        except FileNotFoundError:
            continue  # taken away by its owner meanwhile
        except PermissionError as error:
            raise CallerError(f"workspace file {text(inner)!r} cannot be read{_as_whom(reader)}: {error.strerror}; change its mode or leave it out") from error
        except OSError as error:
            raise CallerError(f"workspace file {text(inner)!r} cannot be copied: {error.strerror}; raise limits.disk if it is full") from error


def _copy_one(source: int, into: int, name: bytes, path: bytes, status: os.stat_result, copied: Copied, bound: Bound, reader: Reader) -> None:
    mode = stat.S_IMODE(status.st_mode) & 0o777
    copied.files += 1
    if copied.files > bound.files:
        raise CallerError(f"workspace holds more than {bound.files} files; leave some out or raise limits.disk")
    if stat.S_ISDIR(status.st_mode):
        with reader:
            inner = os.open(name, _READ_DIRECTORY, dir_fd=source)
        try:
            os.mkdir(name, 0o700, dir_fd=into)
            made = os.open(name, _READ_DIRECTORY, dir_fd=into)
            try:
                copied.entries.append(Entry(path, "directory", mode))
                _copy_directory(inner, made, path, copied, bound, reader)
                os.fchown(made, bound.uid, bound.gid)
                os.fchmod(made, mode)
            finally:
                os.close(made)
        finally:
            os.close(inner)
    elif stat.S_ISLNK(status.st_mode):
        with reader:
            target = os.readlink(name, dir_fd=source)
        os.symlink(target, name, dir_fd=into)
        os.chown(name, bound.uid, bound.gid, dir_fd=into, follow_symlinks=False)
        copied.entries.append(Entry(path, "link", 0o777, target=os.fsencode(target)))
    elif stat.S_ISREG(status.st_mode):
        _copy_file(source, into, name, path, copied, bound, reader)
    else:
        _report(copied.refused, path, _kind(status.st_mode))


def _copy_file(source: int, into: int, name: bytes, path: bytes, copied: Copied, bound: Bound, reader: Reader) -> None:
    # Not blocking: what was a file when it was looked at may be a pipe by now. What is copied is what was opened.
    with reader:
        reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            _report(copied.refused, path, _kind(status.st_mode))
            return
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            _report(copied.refused, path, "setuid or setgid bit (the file is copied without it)")
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=into)
        try:
            size, sha256 = _copy_bytes(reading, writing, status, path, copied, bound)
            os.fchown(writing, bound.uid, bound.gid)
            mode = stat.S_IMODE(status.st_mode) & 0o777
            os.fchmod(writing, mode)
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            copied.entries.append(Entry(path, "file", mode, size, sha256, mark=mark_of(os.fstat(writing))))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_bytes(reading: int, writing: int, status: os.stat_result, path: bytes, copied: Copied, bound: Bound) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(reading):
        size += len(chunk)
        copied.size += len(chunk)
        if copied.size > bound.size:
            raise CallerError(f"workspace is larger than {bound.size} bytes at {text(path)!r}; leave files out or raise limits.disk")
        digest.update(chunk)
        if not chunk.strip(b"\0"):
            os.lseek(writing, len(chunk), os.SEEK_CUR)  # a hole stays a hole
            continue
        view = memoryview(chunk)
        while view:
            view = view[os.write(writing, view) :]
    os.ftruncate(writing, size)
    return size, digest.hexdigest()


def _as_whom(reader: Reader) -> str:
    return "" if reader.uid is None else f" with the rights of uid {reader.uid}, whose it is"


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        yield chunk


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISBLK, "block device"), (stat.S_ISCHR, "character device"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in kinds if test(mode)), "not a file, directory or link")


def _report(refused: list[str], path: bytes, reason: str) -> None:
    if len(refused) < _REPORTED_MAX:
        refused.append(f"{text(path)[-300:]}: {reason}")
    elif len(refused) == _REPORTED_MAX:
        refused.append("... and more")
