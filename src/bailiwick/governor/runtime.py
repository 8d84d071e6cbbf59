"""What a command needs to be found and to run inside: the interpreter's own trees, read-only, at their own paths.

A command is looked for in the declared trees first, then in the base system (/usr), then on the PATH of the person who asked. What is found outside
/usr is brought along: a virtual environment with the installation it was made from, any other program with the prefix it is installed under.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bailiwick.kernel.errors import CallerError


@dataclass(frozen=True, slots=True)
class Runtime:
    """A command with its program's full path, and the trees it needs."""

    command: list[str]
    trees: list[str]


_BASE = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def search_path(trees: list[str]) -> str:
    """PATH inside: the trees' own directories of programs, then the base system's."""
    return os.pathsep.join([f"{tree}/bin" for tree in trees] + list(_BASE))


def find_runtime(command: list[str], trees: list[str], path: str) -> Runtime:
    """With the rights of the person who asked, on whose PATH it may be. CallerError when the program is nowhere."""
    program = command[0]
    if "/" in program and not program.startswith("/"):
        return Runtime(command, _with_bases(trees))  # relative to the workspace: known only inside
    found = program if program.startswith("/") else _find(program, trees, path)
    if found is None:
        where = path or "(empty)"
        raise CallerError(f"command {program!r} is not found in the trees {trees}, in /usr, or on PATH {where}; give its full path or the tree it is in")
    if not Path(found).exists() and not any(Path(found).is_relative_to(tree) for tree in trees):
        raise CallerError(f"command {found!r} does not exist; give the path of a program on this machine")
    needed = [*trees, *(tree for tree in _home_of(Path(found)) if not _inside(tree, trees))]
    return Runtime([found, *command[1:]], _with_bases(needed))


def _find(program: str, trees: list[str], path: str) -> str | None:
    for directory in [*(f"{tree}/bin" for tree in trees), *_BASE]:
        if found := shutil.which(program, path=directory):
            return found
    usable = [entry for entry in path.split(os.pathsep) if entry and Path(entry).name != "shims"]  # a version manager's shim needs a home to work
    return shutil.which(program, path=os.pathsep.join(usable)) if usable else None


def _home_of(program: Path) -> list[str]:
    """The trees a program outside the base system needs: its prefix as named, and as its links resolve."""
    homes = []
    for place in (program, program.resolve()):
        if place.parent.resolve().is_relative_to("/usr"):  # /bin is a link to /usr/bin
            continue
        prefix = place.parent.parent if place.parent.name in ("bin", "sbin") else place.parent
        if str(prefix) not in homes:
            homes.append(str(prefix))
    return homes


def _with_bases(trees: list[str]) -> list[str]:
    """The trees, and for each that is a virtual environment the installation it was made from (PEP 405)."""
    known = list(dict.fromkeys(trees))
    for tree in trees:
        marker = Path(tree) / "pyvenv.cfg"
        if not marker.is_file():
            continue
        for line in marker.read_text(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home":
                base = str(Path(value.strip()).resolve().parent)
                if not Path(base).is_relative_to("/usr") and not _inside(base, known):
                    known.append(base)
    return known


def _inside(path: str, trees: list[str]) -> bool:
    return any(Path(path).is_relative_to(tree) for tree in trees)
