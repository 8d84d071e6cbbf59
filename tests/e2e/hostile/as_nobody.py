"""Becomes an ordinary user who can reach the interpreter and this repository, then runs the command:  python as_nobody.py UID COMMAND...

Run as root in a mount namespace of its own (a world outside is one): where a tree lies in a home that others may not enter, an empty directory is laid
over that home, with nothing but the trees in it at their own paths. So the same interpreter serves both, and nobody has to install a second one.
"""

import ctypes
import os
import sys
from pathlib import Path

_MS_BIND, _MS_REC = 4096, 16384
ROOT = Path(__file__).resolve().parents[3]

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, str(target), kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def closed_above(tree: Path) -> Path | None:
    """The first directory on the way that an ordinary user may not pass."""
    for place in reversed(tree.parents):
        if not place.stat().st_mode & 0o001:
            return place
    return None


def open_the_way(trees: list[Path]) -> None:
    behind: dict[Path, list[Path]] = {}
    for tree in trees:
        if (closed := closed_above(tree)) is not None:
            behind.setdefault(closed, []).append(tree)
    for closed, hidden in behind.items():
        held = {tree: os.open(tree, os.O_PATH) for tree in hidden}
        mount("tmpfs", closed, "tmpfs", 0, "mode=755,size=1m")
        for tree, descriptor in held.items():
            tree.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", tree, None, _MS_BIND | _MS_REC)
            os.close(descriptor)


def main(uid: int, command: list[str]) -> None:
    prefixes = dict.fromkeys(Path(prefix) for name in (sys.prefix, sys.base_prefix) for prefix in (name, os.path.realpath(name)))
    open_the_way([*prefixes, ROOT])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
