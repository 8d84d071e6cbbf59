"""Doing it whole or not at all: everything is staged and verified beside its place, the plan is on disk before the first move, and a plan that was
cut short (an error, kill -9) is undone, at once or by whoever applies next."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from bailiwick.cli.changeset import Archive, Change, checked, conflicts, is_applied, name_of, parent_of, refuse_conflicts
from bailiwick.kernel.errors import BackendError, BailiwickError, Conflict, PeerError

STAGING = ".bailiwick-apply"

_PLAN = "plan.json"
_NAME = re.compile(r"(new|old|gone)\.\d{1,9}")

Step = dict[str, Any]


def apply(root: int, archive: Archive, since_ns: int) -> int:
    """Returns how many changes were made. Conflict, naming every path, when anything stands against it: then nothing was done."""
    if not archive.complete:
        raise Conflict("the list of the run's changes is cut, deletions may be missing from it; take changes.tar from the API and apply it by hand")
    with _locked(root):
        undo(root)
        refuse_conflicts(conflicts(root, archive, since_ns))
        todo = [change for change in archive.changes if not is_applied(root, change)]
        if not todo:
            return 0
        try:
            os.mkdir(STAGING, 0o700, dir_fd=root)
            with _staging(root) as staging:
                steps = [*_plan(root, staging, archive, todo)]
                _write_plan(staging, steps)
                for step in steps:
                    _do(root, staging, step)
                os.unlink(_PLAN, dir_fd=staging)  # from here on it is done, and not undone
        except (OSError, BailiwickError, KeyboardInterrupt) as error:
            _take_back(root)
            if isinstance(error, OSError):
                raise BackendError(f"applying failed and was undone: {error.strerror}: {error.filename!r}") from error
            raise
        with contextlib.suppress(OSError):  # what is left of the staging directory is cleared by who applies next
            undo(root)
        return len(todo)


def undo(root: int) -> bool:
    """Takes back what a plan that was cut short has done, and clears the staging directory. Whether there was one."""
    try:
        with _staging(root) as staging:
            with contextlib.suppress(FileNotFoundError):
                for step in reversed(_read_plan(staging)):
                    _undo(root, staging, step)
            for name in os.listdir(staging):  # noqa: PTH208  a descriptor has no path
                os.unlink(name, dir_fd=staging)
    except FileNotFoundError:
        return False
    os.rmdir(STAGING, dir_fd=root)
    return True


def _take_back(root: int) -> None:
    try:
        undo(root)
    except OSError as error:
        raise BackendError(f"applying failed and is half undone ({error.strerror}); apply again when there is room: it is undone first") from error


@contextlib.contextmanager
def _locked(root: int) -> Iterator[None]:
    try:
        fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Conflict("another `bailiwick apply` works on this directory; wait until it is done") from error
    try:
        yield
    finally:
        fcntl.flock(root, fcntl.LOCK_UN)


@contextlib.contextmanager
def _staging(root: int) -> Iterator[int]:
    descriptor = os.open(STAGING, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _plan(root: int, staging: int, archive: Archive, todo: list[Change]) -> Iterator[Step]:
    """Directories first, parents before children; then files and links; then deletions, children before parents."""
    owner = os.fstat(root) if os.geteuid() == 0 else None
    for change in sorted((change for change in todo if change.kind == "directory"), key=lambda change: change.path):
        yield {"do": "mkdir", "path": change.path.hex(), "mode": change.mode, "owner": [owner.st_uid, owner.st_gid] if owner else None}
    for number, change in enumerate(change for change in todo if change.kind in ("file", "link")):
        existing = _status(root, change.path)
        _stage(staging, f"new.{number}", archive, change, existing or owner if owner else None)
        yield {"do": "place", "path": change.path.hex(), "new": f"new.{number}", "old": f"old.{number}" if existing else None}
    for number, change in enumerate(sorted((change for change in todo if change.kind == "deleted"), key=lambda change: change.path, reverse=True)):
        existing = _status(root, change.path)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            yield {"do": "rmdir", "path": change.path.hex(), "mode": stat.S_IMODE(existing.st_mode)}
        elif existing is not None:
            yield {"do": "remove", "path": change.path.hex(), "old": f"gone.{number}"}


def _stage(staging: int, name: str, archive: Archive, change: Change, owner: os.stat_result | None) -> None:
    if change.kind == "link":
        os.symlink(change.target, name, dir_fd=staging)
    else:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=staging)
        digest = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as file:
            for chunk in archive.content(change):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != change.sha256:
                raise PeerError(f"{change.shown!r} in the archive is not what the run left (its SHA-256 differs); nothing is applied")
            os.fchmod(file.fileno(), (0o777 if change.mode & 0o100 else 0o666) & ~_umask())
            file.flush()
            os.fsync(file.fileno())
    if owner is not None:
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=staging, follow_symlinks=False)


def _do(root: int, staging: int, step: Step) -> None:
    path = bytes.fromhex(step["path"])
    name = name_of(path)
    with parent_of(root, path) as parent:
        if parent is None:
            raise FileNotFoundError(2, "its directory is gone", os.fsdecode(path))
        match step["do"]:
            case "mkdir":
                os.mkdir(name, step["mode"] & 0o777 & ~_umask() | 0o700, dir_fd=parent)
                if step["owner"]:
                    os.chown(name, *step["owner"], dir_fd=parent, follow_symlinks=False)
            case "place":
                if step["old"]:
                    os.rename(name, step["old"], src_dir_fd=parent, dst_dir_fd=staging)
                os.link(step["new"], name, src_dir_fd=staging, dst_dir_fd=parent, follow_symlinks=False)  # fails where something appeared
            case "remove":
                os.rename(name, step["old"], src_dir_fd=parent, dst_dir_fd=staging)
            case "rmdir":
                os.rmdir(name, dir_fd=parent)


def _undo(root: int, staging: int, step: Step) -> None:
    """Of a step that was done, half done or not begun."""
    path = bytes.fromhex(step["path"])
    name = name_of(path)
    with parent_of(root, path) as parent:
        if parent is None:
            return
        match step["do"]:
            case "mkdir":
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
            case "place":
                if _is(parent, name, staging, step["new"]):
                    os.unlink(name, dir_fd=parent)
                if step["old"]:
                    _move_back(staging, step["old"], parent, name)
            case "remove":
                _move_back(staging, step["old"], parent, name)
            case "rmdir":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, step["mode"], dir_fd=parent)


def _move_back(staging: int, old: str, parent: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(old, name, src_dir_fd=staging, dst_dir_fd=parent)


def _is(parent: int, name: bytes, staging: int, new: str) -> bool:
    """Whether what stands in the place is the very file that was staged."""
    try:
        one, other = os.stat(name, dir_fd=parent, follow_symlinks=False), os.stat(new, dir_fd=staging, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(one, other)


def _status(root: int, path: bytes) -> os.stat_result | None:
    with parent_of(root, path) as parent:
        if parent is None:
            return None
        try:
            return os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None


def _write_plan(staging: int, steps: list[Step]) -> None:
    descriptor = os.open(_PLAN, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=staging)
    with os.fdopen(descriptor, "w") as file:
        json.dump(steps, file)
        file.flush()
        os.fsync(file.fileno())
    os.fsync(staging)


def _read_plan(staging: int) -> list[Step]:
    with os.fdopen(os.open(_PLAN, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging)) as file:
        try:
            steps: list[Step] = json.load(file)
            return [_trusted(step) for step in steps]
        except ValueError:
            return []  # it was cut short while it was written: nothing had been moved yet


def _trusted(step: Step) -> Step:
    """A plan may have come with a directory from elsewhere: it moves nothing out of this one. PeerError for one that would."""
    checked(bytes.fromhex(step["path"]), "a step of an unfinished plan")
    if not all(_NAME.fullmatch(step[key]) for key in ("new", "old") if step.get(key)):
        raise PeerError(f"{STAGING} holds a plan that is not ours; look at it and remove it")
    return step


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
