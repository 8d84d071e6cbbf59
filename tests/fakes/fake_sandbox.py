"""A sandbox backend without a sandbox, for what is above it. The command is a script of its own: `exit N`, `sleep`, `write TEXT`, or `missing`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio

from bailiwick.kernel.errors import BackendError, CallerError, Conflict
from bailiwick.sandbox.backend import Exit
from bailiwick.sandbox.changes import Collected
from bailiwick.sandbox.messages import Change, Finding, RunStats
from bailiwick.sandbox.spec import SandboxSpec

NOTHING = RunStats(cpu_seconds=0.0, memory_bytes=0, memory_bytes_max=0, pids=0, disk_bytes=0)


@dataclass
class FakeBox:
    command: list[str]
    findings: list[Finding]
    ports: list[int]
    workspace_files: int = 0
    frozen: bool = False
    started: bool = False
    destroyed: bool = False
    ended: anyio.Event = field(default_factory=anyio.Event)
    exit: Exit | None = None
    held: dict[str, int] = field(default_factory=dict)
    output: int = -1

    def __post_init__(self) -> None:
        for name in (*(f"tcp:{port}" for port in sorted({80, 443, 3128, *self.ports})), "udp:53", "tap", "stderr"):
            self.held[name] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.held["stdout"], self.output = os.pipe2(os.O_CLOEXEC)

    @property
    def descriptors(self) -> Mapping[str, int]:
        return self.held

    async def start(self) -> int:
        if self.destroyed:
            raise BackendError("sandbox is gone; make another")
        if self.started:
            raise Conflict("agent is started already")
        self.started = True
        if self.command[0] == "write":
            os.write(self.output, self.command[1].encode())
        if self.command[0] in ("exit", "write"):
            self._end(Exit(int(self.command[1]) if self.command[0] == "exit" else 0, "exited", ""))
        return 4_242

    async def wait(self) -> Exit:
        await self.ended.wait()
        assert self.exit is not None
        return self.exit

    async def freeze(self) -> None:
        self.frozen = True

    async def thaw(self) -> None:
        self.frozen = False

    async def kill(self, cause: str, reason: str) -> None:
        self._end(Exit(-9, cause, reason))

    def measure(self) -> RunStats:
        return NOTHING

    async def collect(self, target: int) -> Collected:
        if self.exit is None:
            raise Conflict("agent has not ended")
        return Collected([Change("made", "added", 1, "0" * 64)], [])

    async def destroy(self) -> None:
        self._end(Exit(-9, "killed", "the sandbox is taken away"))
        self.destroyed = True
        for descriptor in self.held.values():
            os.close(descriptor)
        self.held.clear()

    def _end(self, ended: Exit) -> None:
        if self.exit is None:
            self.exit = ended
            os.close(self.output)
            self.ended.set()


@dataclass
class FakeBackend:
    """`broken` are checks that the next probes find not to hold."""

    name: str = "bubblewrap"
    broken: list[str] = field(default_factory=list)
    boxes: dict[str, FakeBox] = field(default_factory=dict)
    cleaned: int = 0
    closed: bool = False

    def capabilities(self) -> dict[str, str]:
        return {"cpu": "not enforced: a fake", "memory_bytes": "not enforced: a fake", "pids": "fake", "disk_bytes": "fake", "freeze": "fake"}

    async def create(self, run: str, spec: SandboxSpec) -> FakeBox:
        if required := sorted(spec.limits.required & {"cpu", "memory_bytes"}):
            raise CallerError(f"limits.{required[0]}: cannot be enforced here")
        if spec.command[0] == "missing":
            raise CallerError("command 'missing' is not found in the sandbox")
        findings = [Finding(check, False, "as the test ordered") for check in self.broken] or [Finding("fake", True, "holds")]
        box = self.boxes[run] = FakeBox(spec.command, findings, spec.ports)
        return box

    def clean(self) -> int:
        return self.cleaned

    def close(self) -> None:
        self.closed = True
