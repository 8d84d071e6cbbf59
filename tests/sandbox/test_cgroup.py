"""Which hierarchies are used for what, on trees of files that look like each kind of machine; the kernel's own behaviour is tried in test_launcher."""

import os
from pathlib import Path

import pytest

from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox.cgroup import FREEZE, KILL, Cgroups
from bailiwick.sandbox.spec import SandboxLimits


class Machine:
    """A cgroup file system of plain files: what the kernel would put into a new directory is put there by `mkdir`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.mounts: list[str] = []
        self.own: list[str] = []
        real = Path.mkdir

        def mkdir(path: Path, *given: object, **named: object) -> None:
            real(path, *given, **named)
            if path.is_relative_to(root):
                self.fill(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)

    def fill(self, path: Path) -> None:
        names = ["cgroup.procs"]
        if path.is_relative_to(self.root / "v2"):
            given = (path.parent / "cgroup.subtree_control").read_text() if (path.parent / "cgroup.subtree_control").exists() else "memory pids cpu"
            (path / "cgroup.controllers").write_text(given.replace("+", ""))
            names += ["cgroup.subtree_control", "cgroup.freeze", "cgroup.kill", "cgroup.events", "cpu.stat"]
            names += ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"]
        else:
            names += ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max", "cpu.cfs_period_us", "cpu.cfs_quota_us", "freezer.state"]
        for name in names:
            if not (path / name).exists():
                (path / name).write_text("")

    def v2(self, *, own: str = "/") -> None:
        (self.root / "v2").mkdir()
        (self.root / "v2/cgroup.controllers").write_text("memory pids cpu io")
        self.mounts.append(f"cgroup2 {self.root}/v2 cgroup2 rw 0 0")
        self.own.append(f"0::{own}")

    def v1(self, *controllers: str) -> None:
        for controller in controllers:
            (self.root / controller).mkdir()
            self.mounts.append(f"cgroup {self.root}/{controller} cgroup rw,{controller} 0 0")
            self.own.append(f"3:{controller}:/")

    def find(self) -> Cgroups:
        (self.root / "mounts").write_text("\n".join([*self.mounts, "tmpfs /tmp tmpfs rw 0 0"]))
        (self.root / "own").write_text("\n".join(self.own))
        return Cgroups.find("bailiwick-x", mounts=str(self.root / "mounts"), own=str(self.root / "own"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


LIMITS = SandboxLimits(cpu=1.5, pids=40)


def test_version_2_alone(machine: Machine) -> None:
    """Everything is in one directory a run; memory without swap, and a group that ends whole."""
    machine.v2()
    groups = machine.find()
    assert set(groups.enforces) == {"memory", "pids", "cpu", FREEZE, KILL}
    assert set(groups.enforces.values()) == {"cgroup v2"}
    group = groups.make("run-1", LIMITS, memory_bytes=1 << 20)
    (path,) = group.paths.values()
    assert path == machine.root / "v2/bailiwick-x/run-1"
    read = {name: (path / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")}
    assert read == {"memory.max": str(1 << 20), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "42", "cpu.max": "150000 100000"}
    group.add(123)
    assert group.pids() == [123]
    assert group.freeze(frozen=True)
    assert (path / "cgroup.freeze").read_text() == "1"
    assert not group.is_frozen()
    (path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert group.is_frozen()
    group.kill()
    assert (path / "cgroup.kill").read_text() == "1"


def test_hybrid_takes_each_thing_from_who_has_it(machine: Machine) -> None:
    """Limits from version 1, freezer and kill from version 2; the version 1 freezer is left alone."""
    machine.v1("memory", "pids", "cpu", "freezer", "blkio")
    machine.v2()
    (machine.root / "v2/cgroup.controllers").write_text("")
    groups = machine.find()
    assert groups.enforces == {"memory": "cgroup v1", "pids": "cgroup v1", "cpu": "cgroup v1", FREEZE: "cgroup v2", KILL: "cgroup v2"}
    assert {hierarchy.parent.parent.name for hierarchy in groups.hierarchies} == {"memory", "pids", "cpu", "v2"}
    assert not (machine.root / "blkio/bailiwick-x").exists()
    group = groups.make("run-1", LIMITS, memory_bytes=1 << 20)
    assert (machine.root / "memory/bailiwick-x/run-1/memory.memsw.limit_in_bytes").read_text() == str(1 << 20)
    assert (machine.root / "cpu/bailiwick-x/run-1/cpu.cfs_quota_us").read_text() == "150000"
    assert group.birthplace == machine.root / "v2/bailiwick-x/run-1"
    group.join()
    assert [(machine.root / name / "bailiwick-x/run-1/tasks").read_text() for name in ("memory", "pids", "cpu")] == ["0"] * 3
    assert not (group.birthplace / "tasks").exists()
    (machine.root / "memory/bailiwick-x/run-1/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert group.broken_bounds() == {"memory": 2, "pids": 0}


def test_version_1_alone(machine: Machine) -> None:
    """The version 1 freezer freezes; there is no kill of a whole group, and none is claimed."""
    machine.v1("memory", "freezer")
    groups = machine.find()
    assert groups.enforces == {"memory": "cgroup v1", FREEZE: "cgroup v1"}
    group = groups.make("run-1", LIMITS, memory_bytes=1 << 20)
    assert group.freeze(frozen=True)
    assert (machine.root / "freezer/bailiwick-x/run-1/freezer.state").read_text() == "FROZEN"


def test_nothing_writable_claims_nothing(machine: Machine) -> None:
    """Where no group may be made nothing is enforced, freezing says no, and the run has no directory anywhere."""
    machine.mounts.append(f"cgroup2 {machine.root}/not-there cgroup2 rw 0 0")
    machine.own.append("0::/")
    groups = machine.find()
    assert groups.enforces == {}
    group = groups.make("run-1", LIMITS, memory_bytes=1)
    assert not group.freeze(frozen=True)
    assert group.pids() == []
    assert group.remove()


def test_a_group_that_cannot_be_bounded_is_not_made(machine: Machine) -> None:
    """A bound the kernel refuses is an error, and the directories made so far are gone."""
    machine.v2()
    groups = machine.find()
    os.rmdir(machine.root / "v2/bailiwick-x") if not any((machine.root / "v2/bailiwick-x").iterdir()) else None
    (machine.root / "v2/bailiwick-x/run-1").mkdir()
    with pytest.raises(BackendError, match="cgroup of run-1 cannot be set up"):
        groups.make("run-1", LIMITS, memory_bytes=1)
