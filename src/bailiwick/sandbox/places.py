"""The operator's directories, opened once: what a path leads to is looked at through the descriptor that is used afterwards.

Root opens them on behalf of whoever may write their parents, so a link on the way is followed only when root made it, or when who made it owns what it
leads to; and a workspace is read with the rights of the last ordinary user who could have put it there. An ordinary user's launcher has only that
user's rights, and its cradle sees everybody else as nobody: there no owner is asked after.

Called by the cradle in its new mount namespace: what was opened before cannot be mounted in it.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox import spec as specification

_LINKS_MAX = 40  # the kernel's own MAXSYMLINKS
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Place:
    """`descriptor` is an O_PATH one. `owner` is the last on the way who is not root; None when every step is root's."""

    descriptor: int
    real: Path
    owner: int | None


def open_workspace(workspace: str, state: Path, *, separate: bool) -> Place:
    """CallerError for a place that is not there, or that is not what the linter lets through: it is asked again of what was opened."""
    shown = f"workspace: {workspace!r}"
    place = open_place(shown, workspace, separate=separate)
    specification.lint_workspace_at(shown, place.real, state)
    return place


def open_tree(tree: str, state: Path, *, separate: bool) -> Place:
    shown = f"trees: {tree!r}"
    place = open_place(shown, tree, separate=separate)
    specification.lint_tree_at(shown, place.real, state)
    return place


def open_place(shown: str, path: str, *, separate: bool) -> Place:
    """Step by step from the root, so that every link and every owner on the way is seen. The caller closes the descriptor."""
    way = _Way(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        _follow(way, path, shown)
        owner = os.fstat(way.at).st_uid
        for link in way.link_owners:
            if separate and link not in (_ROOT, owner):
                raise CallerError(
                    f"{shown} leads over a link of uid {link} to what uid {owner} owns; must be reached without it; give {way.real()} if that is what is meant"
                )
        return Place(os.dup(way.at), way.real(), way.owner if separate else None)
    except OSError as error:
        raise CallerError(f"{shown} cannot be opened: {error.strerror}; must be a file or directory of this machine") from error
    finally:
        os.close(way.at)


@dataclass(slots=True)
class _Way:
    at: int
    owner: int | None = None
    link_owners: list[int] = field(default_factory=list)

    def go(self, descriptor: int) -> None:
        os.close(self.at)
        self.at = descriptor

    def real(self) -> Path:
        return Path(f"/proc/self/fd/{self.at}").readlink()


def _follow(way: _Way, path: str, shown: str) -> None:
    steps = _steps(path)
    while steps:
        step = os.open(steps.pop(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way.at)
        status = os.fstat(step)
        if status.st_uid != _ROOT:
            way.owner = status.st_uid
        if not stat.S_ISLNK(status.st_mode):
            way.go(step)
            continue
        try:
            target = os.readlink("", dir_fd=step)
        finally:
            os.close(step)
        way.link_owners.append(status.st_uid)
        if len(way.link_owners) > _LINKS_MAX:
            raise CallerError(f"{shown} leads over more than {_LINKS_MAX} links; must end at a file or directory; give the path itself")
        if target.startswith("/"):
            way.go(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        steps += _steps(target)


def _steps(path: str) -> list[str]:
    """The last first."""
    return [step for step in reversed(path.split("/")) if step not in ("", ".")]
