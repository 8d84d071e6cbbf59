"""What is left of runs on this machine: processes, mounts, namespaces, control groups, directories. An empty list is the demo's last claim.

Everything of a run carries its id: its processes in their environment, its control groups and directories in their name.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def remains(runs: Sequence[str], *, sandboxes: Path, holders: Collection[int] = (), proc: Path = _PROC, cgroups: Path = _CGROUPS) -> list[str]:
    """`sandboxes` is where the launcher keeps a directory a run; `holders` are our processes that are still up, which may hold a namespace that has
    no process any more. Best asked as who started it all: what may not be looked at is not seen."""
    marks = [run.encode() for run in runs]
    own = _ancestors(proc)
    found: list[str] = []
    for pid in _pids(proc):
        if pid in own or pid in holders:
            continue
        if what := _process(proc / str(pid), marks):
            found.append(f"process {pid} ({what})")
    for name in ("self", *map(str, holders)):
        found += [f"mount {mount}" for mount in _mounts(proc / name / "mountinfo", [*runs, f"{sandboxes}/"])]
    found += [f"network namespace {name} held by process {pid}" for pid in holders for name in _held_namespaces(proc, pid)]
    found += [f"control group {path}" for path in _groups(cgroups, runs)]
    if sandboxes.is_dir() and os.access(sandboxes, os.R_OK):
        found += [f"directory {path}" for path in sorted(sandboxes.iterdir()) if path.name in runs]
    return list(dict.fromkeys(found))


def processes_of(runs: Sequence[str], *, proc: Path = _PROC) -> list[int]:
    """The processes inside these runs' sandboxes and those that carry their ids."""
    marks = [run.encode() for run in runs]
    own = _ancestors(proc)
    return [pid for pid in _pids(proc) if pid not in own and _process(proc / str(pid), marks)]


def _pids(proc: Path) -> Iterator[int]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _ancestors(proc: Path) -> set[int]:
    """This process and those above it: a shell that was given the id is not a remainder."""
    found = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _process(directory: Path, marks: Sequence[bytes]) -> str | None:
    """Its name, when it is of one of the runs and not merely a corpse that its parent has not collected."""
    try:
        name, _, rest = (directory / "stat").read_bytes().partition(b"(")[2].rpartition(b")")
        if rest.split()[0] in (b"Z", b"X"):
            return None
    except (OSError, IndexError):
        return None
    for file in ("cmdline", "environ", "cgroup"):
        try:
            text = (directory / file).read_bytes()
        except OSError:
            continue
        if any(mark in text for mark in marks):
            return name.decode(errors="replace")
    return None


def _mounts(file: Path, texts: Sequence[str]) -> list[str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line.split()[4] for line in lines if any(text in line for text in texts)]


def _held_namespaces(proc: Path, pid: int) -> list[str]:
    """Network namespaces other than ours that the process has a descriptor of."""
    try:
        ours = str((proc / "self" / "ns" / "net").readlink())
        descriptors = list((proc / str(pid) / "fd").iterdir())
    except OSError:
        return []
    names = set()
    for descriptor in descriptors:
        try:
            names.add(str(descriptor.readlink()))
        except OSError:
            continue
    return sorted(name for name in names if name.startswith("net:[") and name != ours)


def _groups(root: Path, runs: Sequence[str]) -> list[Path]:
    return sorted(Path(parent) / name for parent, names, _ in os.walk(root) for name in names if any(run in name for run in runs))
