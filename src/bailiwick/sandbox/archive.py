"""Where a collected workspace is put: a file of the governor's, in its own directory.

That directory belongs to a process with less privilege than this one, so no link in it is followed, and nothing there is written over. A file has its
name once it is whole; one that is not is taken away, by the launcher's successor if need be.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.layout import Layout

_WITHIN = "workspaces"
_UNFINISHED = ".unfinished"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Making:
    """`target` is to be written into; `path` is where it will be, if it is `wanted` at the end."""

    target: int
    path: Path
    wanted: bool = False


@contextlib.contextmanager
def made(layout: Layout, accounts: Accounts, run: str) -> Iterator[Making]:
    """BackendError when it cannot be made. Nothing is left of it unless the body ends well and says that it is wanted."""
    layout.governor.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = accounts.named("governor")
    final, unfinished = f"{run}.tar", f"{run}.tar{_UNFINISHED}"
    directory = _directory(layout, run, make=True)
    try:
        for old in (final, unfinished):
            _unlink(old, directory)
        target = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        making = Making(target, layout.governor / _WITHIN / final)
        try:
            if accounts.separate:
                os.fchown(directory, owner.uid, owner.gid)
                os.fchown(target, owner.uid, owner.gid)
            yield making
            if making.wanted:
                os.rename(unfinished, final, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(target)
            _unlink(unfinished, directory)
    except OSError as error:
        raise BackendError(f"archive of {run} cannot be made in {layout.governor}: {error.strerror}") from error
    finally:
        os.close(directory)


def forget_unfinished(layout: Layout) -> None:
    """What a launcher that was killed was writing: nobody was told of it."""
    with contextlib.suppress(BackendError, FileNotFoundError):
        directory = _directory(layout, "an earlier run", make=False)
        try:
            with os.scandir(directory) as entries:
                names = [entry.name for entry in entries if entry.name.endswith(_UNFINISHED)]
            for name in names:
                _unlink(name, directory)
        finally:
            os.close(directory)


def _directory(layout: Layout, run: str, *, make: bool) -> int:
    within = os.open(layout.governor, _OPEN_DIRECTORY)
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(_WITHIN, 0o700, dir_fd=within)
        return os.open(_WITHIN, _OPEN_DIRECTORY, dir_fd=within)
    except OSError as error:
        raise BackendError(f"archive of {run} cannot be made in {layout.governor}: {error.strerror}") from error
    finally:
        os.close(within)


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
