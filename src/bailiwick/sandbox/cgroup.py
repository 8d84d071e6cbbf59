"""Control groups: hard bounds on a run's memory, processes and processor, the freezer, and a kill that misses nobody.

Version 2, version 1, or both at once (hybrid): each thing is taken from the hierarchy that has it. Where none may be written, `Cgroups.enforces` is
empty for it and whoever needs it says so; nothing here pretends.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox.spec import SandboxLimits

_PERIOD_MICROSECONDS = 100_000
_CONTROLLERS = ("memory", "pids", "cpu")
FREEZE, KILL = "freeze", "kill"


@dataclass(frozen=True, slots=True)
class Measured:
    cpu_seconds: float = 0.0
    memory_bytes: int = 0  # of the processes alone, without the run's files, which lie in a tmpfs
    pids: int = 0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups of ours are made in one hierarchy: a directory that holds one a run."""

    parent: Path
    v2: bool
    controls: frozenset[str]


@dataclass(frozen=True, slots=True)
class Cgroups:
    """What this machine lets us write. `enforces` says, for each of memory, pids, cpu, freeze and kill that works, by what."""

    hierarchies: tuple[Hierarchy, ...]
    enforces: dict[str, str]

    @classmethod
    def find(cls, name: str, *, mounts: str = "/proc/self/mounts", own: str = "/proc/self/cgroup") -> "Cgroups":
        """`name` is the installation's: the directory of ours at the root of each hierarchy, or below our own group where only that may be written."""
        hierarchies: list[Hierarchy] = []
        enforces: dict[str, str] = {}
        for mount, v2, controllers in _mounted(Path(mounts).read_text()):
            for base in _bases(mount, v2, controllers, Path(own).read_text()):
                controls = _open(base, name, v2, controllers)
                if controls is None:
                    continue
                kind = "cgroup v2" if v2 else "cgroup v1"
                fresh = {control: kind for control in sorted(controls) if control not in enforces or (control in (FREEZE, KILL) and v2)}
                enforces |= fresh
                hierarchies.append(Hierarchy(base / name, v2, frozenset(fresh)))
                break
        # The version 1 freezer is not written when version 2 freezes: two hands on one brake.
        kept = [h if h.v2 or enforces.get(FREEZE) == "cgroup v1" else Hierarchy(h.parent, h.v2, h.controls - {FREEZE}) for h in hierarchies]
        cls(tuple(h for h in kept if not h.controls), {}).close()
        return cls(tuple(h for h in kept if h.controls), enforces)

    def make(self, run: str, limits: SandboxLimits, *, memory_bytes: int) -> "Group":
        """The run's group with its bounds set, empty. BackendError, and nothing left, when the kernel refuses one."""
        group = Group({h: h.parent / run for h in self.hierarchies})
        try:
            for hierarchy, path in group.paths.items():
                path.mkdir()
                for name, value in _settings(hierarchy, limits, memory_bytes):
                    _set(path / name, value)
        except OSError as error:
            group.remove()
            raise BackendError(f"cgroup of {run} cannot be set up: {error}") from error
        return group

    def close(self) -> None:
        """Takes the installation's own directories away, once no run is left in them."""
        for hierarchy in self.hierarchies:
            with contextlib.suppress(OSError):
                hierarchy.parent.rmdir()

    def leftovers(self) -> list["Group"]:
        """Groups of a launcher of this installation that was killed."""
        names = {path.name for h in self.hierarchies if h.parent.is_dir() for path in h.parent.iterdir() if path.is_dir()}
        return [Group({h: h.parent / name for h in self.hierarchies}) for name in sorted(names)]


@dataclass(slots=True)
class Group:
    """One run's directories. Every method may be called again, and after the group is gone."""

    paths: dict[Hierarchy, Path]
    _processor_seconds: float = field(default=0.0)

    @property
    def birthplace(self) -> Path | None:
        """Where a child can be born rather than moved to: version 2 only. A move holds up every fork of the machine and waits for every processor to have
        noticed (RCU): 5 to 20 ms on an idle machine."""
        return next((path for hierarchy, path in self.paths.items() if hierarchy.v2), None)

    def join(self) -> None:
        """The calling process, which has one thread, into the version 1 groups: a thread that moves itself is moved without that wait."""
        for hierarchy, path in self.paths.items():
            if not hierarchy.v2:
                try:
                    (path / "tasks").write_text("0")
                except OSError as error:
                    raise BackendError(f"sandbox cannot be put into {path}: {error.strerror}") from error

    def add(self, pid: int) -> None:
        """BackendError when the kernel will not have it there."""
        for path in self.paths.values():
            try:
                (path / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                raise BackendError(f"process {pid} cannot be put into {path}: {error.strerror}") from error

    def pids(self) -> list[int]:
        """Every process of the run, threads not counted."""
        found: set[int] = set()
        for path in self.paths.values():
            with contextlib.suppress(OSError, ValueError):
                found |= {int(line) for line in (path / "cgroup.procs").read_text().split()}
        return sorted(found)

    def freeze(self, *, frozen: bool) -> bool:
        """Orders it; False where no freezer may be written. `is_frozen` tells when it is so."""
        path = self._with(FREEZE)
        if path is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            if path[0].v2:
                (path[1] / "cgroup.freeze").write_text("1" if frozen else "0")
            else:
                (path[1] / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        return True

    def is_frozen(self) -> bool:
        path = self._with(FREEZE)
        if path is None:
            return False
        if path[0].v2:
            return _table(path[1] / "cgroup.events").get("frozen") == 1
        return _text(path[1] / "freezer.state").strip() == "FROZEN"

    def kill(self) -> None:
        """SIGKILL to every process, frozen ones and ones just forked too; `pids` tells when none is left."""
        for hierarchy, path in self.paths.items():
            if hierarchy.v2 and KILL in hierarchy.controls:
                with contextlib.suppress(OSError):
                    (path / "cgroup.kill").write_text("1")
                    return
        self.freeze(frozen=False)  # version 1: what is frozen does not die
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def measure(self) -> Measured:
        memory = self._with("memory")
        pids = self._with("pids")
        used = 0
        if memory is not None:
            # One number of one reading: the group's whole usage less its tmpfs would be two, and a run that writes files fast would seem to swell.
            used = _table(memory[1] / "memory.stat").get("anon" if memory[0].v2 else "total_rss", 0)
        count = _number(pids[1] / "pids.current") if pids is not None else len(self.pids())
        for hierarchy, path in self.paths.items():
            if hierarchy.v2:
                self._processor_seconds = max(self._processor_seconds, _table(path / "cpu.stat").get("usage_usec", 0) / 1e6)
        return Measured(self._processor_seconds, used, count)

    def broken_bounds(self) -> dict[str, int]:
        """How often `memory` killed a process of the run, and `pids` refused one."""
        memory, pids = self._with("memory"), self._with("pids")
        kills = forks = 0
        if memory is not None:
            kills = _table(memory[1] / ("memory.events" if memory[0].v2 else "memory.oom_control")).get("oom_kill", 0)
        if pids is not None:
            forks = _table(pids[1] / "pids.events").get("max", 0)
        return {"memory": kills, "pids": forks}

    def remove(self) -> bool:
        """False while a process is still in it."""
        gone = True
        for path in self.paths.values():
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def _with(self, control: str) -> tuple[Hierarchy, Path] | None:
        return next(((hierarchy, path) for hierarchy, path in self.paths.items() if control in hierarchy.controls), None)


def _mounted(mounts: str) -> Iterator[tuple[Path, bool, frozenset[str]]]:
    """Every cgroup mount: where, whether version 2, and the controllers it has."""
    for line in mounts.splitlines():
        _device, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            yield Path(where), True, frozenset(_text(Path(where) / "cgroup.controllers").split())
        elif kind == "cgroup":
            useful = frozenset(options.split(",")) & {*_CONTROLLERS, "freezer"}
            if useful:
                yield Path(where), False, useful


def _bases(mount: Path, v2: bool, controllers: frozenset[str], own: str) -> list[Path]:
    """Where a directory of ours may go: at the root, else below our own group."""
    below = ""
    for line in own.splitlines():
        _number, names, path = line.split(":", 2)
        if (v2 and names == "") or (not v2 and controllers & set(names.split(","))):
            below = path.lstrip("/")
    return [mount, mount / below] if below else [mount]


def _open(base: Path, name: str, v2: bool, controllers: frozenset[str]) -> frozenset[str] | None:
    """What groups below `base`/`name` would control; None when it cannot be made or written."""
    parent = base / name
    try:
        parent.mkdir(exist_ok=True)
        if not os.access(parent / "cgroup.procs", os.W_OK) or not os.access(parent, os.W_OK):
            return None
    except OSError:
        return None
    if not v2:
        return frozenset(FREEZE if controller == "freezer" else controller for controller in controllers)
    given = frozenset(controller for controller in _CONTROLLERS if controller in controllers and _delegate((base, parent), controller))
    probe = parent / "cgroup.freeze", parent / "cgroup.kill"
    return given | {control for control, file in zip((FREEZE, KILL), probe, strict=True) if file.exists()}


def _delegate(levels: Iterable[Path], controller: str) -> bool:
    """Turns a controller on for the groups below. A group that holds processes cannot have it on (version 2), so ours are moved one level down."""
    for level in levels:
        file = level / "cgroup.subtree_control"
        if controller in _text(file).split():
            continue
        try:
            file.write_text(f"+{controller}")
        except OSError as error:
            if error.errno != errno.EBUSY or not _move_down(level):
                return False
            try:
                file.write_text(f"+{controller}")
            except OSError:
                return False
    return True


def _move_down(level: Path) -> bool:
    leaf = level / "bailiwick-processes"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in _text(level / "cgroup.procs").split():
            (leaf / "cgroup.procs").write_text(pid)
    except OSError:
        return False
    return True


def _settings(hierarchy: Hierarchy, limits: SandboxLimits, memory_bytes: int) -> Iterator[tuple[str, str]]:
    quota = max(1_000, round(limits.cpu * _PERIOD_MICROSECONDS))
    if "memory" in hierarchy.controls:
        if hierarchy.v2:
            yield from (("memory.max", str(memory_bytes)), ("memory.swap.max?", "0"), ("memory.oom.group", "1"))
        else:
            yield from (("memory.limit_in_bytes", str(memory_bytes)), ("memory.memsw.limit_in_bytes?", str(memory_bytes)))
    if "pids" in hierarchy.controls:
        yield "pids.max", str(limits.pids + 2)  # bubblewrap's own: one outside, and one while it sets up
    if "cpu" in hierarchy.controls:
        if hierarchy.v2:
            yield "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}"
        else:
            yield from (("cpu.cfs_period_us", str(_PERIOD_MICROSECONDS)), ("cpu.cfs_quota_us", str(quota)))


def _set(file: Path, value: str) -> None:
    """A name with `?` is for kernels that have it (swap accounting is optional)."""
    if file.name.endswith("?"):
        file = file.with_name(file.name[:-1])
        if not file.exists():
            return
    file.write_text(value)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path) -> int:
    content = _text(file).strip()
    return int(content) if content.isdigit() else 0


def _table(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
