"""One bubblewrap sandbox as the launcher holds it: its processes, its groups, its descriptors, and how it ended."""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import msgspec

from bailiwick.kernel import confine
from bailiwick.kernel import limits as bounds
from bailiwick.kernel.errors import BackendError, CallerError, Conflict
from bailiwick.sandbox import cradle, namespaces, probe, processes
from bailiwick.sandbox.arguments import READY_WORD, START_WORD
from bailiwick.sandbox.backend import Exit
from bailiwick.sandbox.cgroup import Group
from bailiwick.sandbox.changes import Collected, archive_bytes_max, collect
from bailiwick.sandbox.examination import Examination
from bailiwick.sandbox.messages import COLLECT_SECONDS_MAX, Change, Finding, RunStats
from bailiwick.sandbox.spec import SandboxLimits

_LOOK_SECONDS = 0.0005  # between two looks at something that takes the kernel microseconds to milliseconds
_SAMPLE_SECONDS = 0.5
_REPORT_BYTES_MAX = 256 * 1024
_DIAGNOSTICS_BYTES_MAX = 2_000
_SIGNALLED = 128  # bubblewrap, like a shell, says 128 plus the signal

_READY_SECONDS_MAX = 30.0


class _Answer(msgspec.Struct, frozen=True):
    changes: list[Change]
    refused: list[str]
    error: str = ""


@dataclass(slots=True, kw_only=True)
class BubblewrapBox:
    run: str
    limits: SandboxLimits
    uid: int
    gid: int
    separate: bool
    group: Group
    release: Callable[[], None]
    pid: int = 0  # the cradle, then bubblewrap; ours to reap
    inner_pid: int = 0  # what waits inside, then the agent; the first of its process namespace
    examination: Examination | None = None
    findings: list[Finding] = field(default_factory=list)
    workspace_files: int = 0
    descriptors: dict[str, int] = field(default_factory=dict)
    started: bool = False
    _own: dict[str, int] = field(default_factory=dict)  # descriptors nobody else gets
    _refused: list[str] = field(default_factory=list)
    _order: tuple[str, str] | None = None  # cause and reason of a kill
    _exit: Exit | None = None
    _waited: anyio.Event | None = None
    _status: int | None = None
    _memory_peak: int = 0
    _final: RunStats | None = None
    _destroyed: bool = False

    def spawn(self, plan: cradle.Plan) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        go, waits = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pipes = {name: os.pipe2(os.O_CLOEXEC) for name in ("stdout", "stderr", "diagnostics", "info")}
        control.setblocking(False)
        self._own |= {"control": control.detach(), "go": go.detach(), "diagnostics": pipes["diagnostics"][0], "info": pipes["info"][0]}
        self.descriptors |= {"stdout": pipes["stdout"][0], "stderr": pipes["stderr"][0]}
        ends = cradle.Ends(
            control=theirs.detach(), go=waits.detach(), output=pipes["stdout"][1], errors=pipes["stderr"][1],
            diagnostics=pipes["diagnostics"][1], info=pipes["info"][1],
        )  # fmt: skip
        try:
            self.pid, joined = cradle.spawn(plan, ends, self.group)
            self._own["pidfd"] = os.pidfd_open(self.pid)
        finally:
            for descriptor in ends.all():
                os.close(descriptor)
        if not joined:
            self.group.add(self.pid)

    async def take_sockets(self) -> None:
        report, arrived = await self._report()
        if not isinstance(report, cradle.Sealed) or len(arrived) != len(report.names) + 1:
            raise BackendError("sandbox's cradle did not hand over its sockets")
        self.descriptors |= dict(zip(report.names, arrived[:-1], strict=True))
        self._own["disk"] = arrived[-1]

    async def take_workspace(self) -> None:
        report, arrived = await self._report()
        if not isinstance(report, cradle.Filled) or len(arrived) != 1:
            raise BackendError("sandbox's cradle did not hand over its workspace")
        self._own["manifest"], self.workspace_files, self._refused = arrived[0], report.files, report.refused
        os.write(self._own["control"], cradle.GO_WORD)

    async def wait_ready(self) -> None:
        """Until the starter inside says that it is there; BackendError with what bubblewrap said otherwise."""
        try:
            with anyio.fail_after(_READY_SECONDS_MAX):
                raw = await receive(self._own["info"], until=b"}")
                self.inner_pid = int(msgspec.json.decode(raw)["child-pid"])
                self._own["inner"] = os.pidfd_open(self.inner_pid)
                os.set_blocking(self._own["go"], False)
                word = await receive(self._own["go"], until=READY_WORD)
        except (TimeoutError, ValueError, KeyError, ProcessLookupError) as error:
            raise BackendError(f"bubblewrap did not lay the sandbox out: {await self._said() or type(error).__name__}") from error
        if word != READY_WORD:
            raise BackendError(f"bubblewrap did not lay the sandbox out: {await self._said() or 'it ended without a word'}")

    async def examine(self, expected: probe.Expected) -> tuple[probe.Examined, list[Finding]]:
        """What the probe found inside, and what is to be seen from here."""
        assert self.examination is not None
        self.examination.begin(self._own["inner"])
        outside = probe.from_outside(self.inner_pid, expected)
        return await self.examination.answer(), outside

    async def start(self) -> int:
        if self._destroyed or self._exit is not None:
            raise BackendError(f"sandbox of {self.run} is gone; make another")
        if self.started:
            raise Conflict(f"agent of {self.run} is started already")
        if self.examination is not None:
            await self.examination.gone()
        try:
            os.write(self._own["go"], START_WORD)
        except OSError as error:
            raise BackendError(f"sandbox of {self.run} broke before the agent began: {await self._said() or error.strerror}") from error
        self.started = True
        os.close(self._own.pop("go"))
        return self.inner_pid

    async def wait(self) -> Exit:
        self._waited = anyio.Event()
        try:
            while self._exit is None:
                with anyio.move_on_after(_SAMPLE_SECONDS):
                    await anyio.wait_readable(self._own["pidfd"])
                if _readable(self._own["pidfd"]):
                    self._exit = await self._end()
                else:
                    self._sample()
        finally:
            self._waited.set()
        return self._exit

    async def freeze(self) -> None:
        await self._until(lambda: self.group.is_frozen() if self.group.freeze(frozen=True) else processes.stop(self.inner_pid), "did not stand still")

    async def thaw(self) -> None:
        if self.group.freeze(frozen=False):
            await self._until(lambda: not self.group.is_frozen(), "did not go on")
        else:
            processes.go_on(self.inner_pid)

    async def kill(self, cause: str, reason: str) -> None:
        self._order = self._order or (cause, reason)
        self._signal_all()
        await self._until(self._is_dead, "outlived SIGKILL")

    def measure(self) -> RunStats:
        if self._final is not None:
            return self._final
        measured = self.group.measure()
        cpu, memory, pids = measured.cpu_seconds, measured.memory_bytes, measured.pids
        if not self.group.paths and self.inner_pid:
            seen = processes.below(self.inner_pid, seconds_old_max=_SAMPLE_SECONDS / 2)
            cpu, pids = sum(process.cpu_seconds for process in seen), len(seen)
            memory = memory or sum(process.memory_bytes for process in seen)
        self._memory_peak = max(self._memory_peak, memory)
        return RunStats(cpu_seconds=round(cpu, 6), memory_bytes=memory, memory_bytes_max=self._memory_peak, pids=pids, disk_bytes=self._disk_used())

    async def collect(self, target: int) -> Collected:
        if self._exit is None:
            raise Conflict(f"agent of {self.run} has not ended; its workspace is collected after that")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        parent, child = os.getpid(), os.fork()
        if child == 0:
            self._collect_in_child(target, writing, parent)
        os.close(writing)
        try:
            with anyio.fail_after(COLLECT_SECONDS_MAX):
                raw = await receive(reading)
        except TimeoutError as error:
            raise BackendError(f"workspace of {self.run} was not collected within {COLLECT_SECONDS_MAX:g} s") from error
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # noqa: ASYNC222  (killed just now)
        answer = msgspec.json.decode(raw, type=_Answer) if raw else _Answer([], [], "the child that reads it died")
        if answer.error:
            raise BackendError(f"workspace of {self.run} cannot be collected: {answer.error}")
        return Collected(answer.changes, self._refused + answer.refused)

    async def destroy(self) -> None:
        if self._destroyed:
            return
        self._order = self._order or ("killed", "the sandbox is taken away")
        if self.examination is not None:
            self.examination.dismiss()
        if self.pid and self._status is None:
            self._signal_all()
            await self._until(self._is_dead, "outlived SIGKILL")
        if self.examination is not None:
            await self._until(self.examination.is_gone, "left its probe")
        if self._waited is not None:
            await self._waited.wait()  # it still reads from what is closed below
        self._destroyed = True
        self._final = self._final or RunStats(cpu_seconds=0, memory_bytes=0, memory_bytes_max=0, pids=0, disk_bytes=0)
        for descriptor in (*self.descriptors.values(), *self._own.values()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors.clear()
        self._own.clear()
        await self._until(self.group.remove, "left a process in its control group")
        self.release()

    def _signal_all(self) -> None:
        self.group.kill()
        if self._status is None and "pidfd" in self._own:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._own["pidfd"], signal.SIGKILL)  # not frozen without a group; its end ends the namespace
        if "inner" in self._own:
            with contextlib.suppress(OSError):  # as an ordinary user, its uid may be another's by now
                signal.pidfd_send_signal(self._own["inner"], signal.SIGKILL)

    def _is_dead(self) -> bool:
        """The first process of a namespace is gone only when every other one is (pid_namespaces(7)); the groups confirm it."""
        self._reap()
        return self._status is not None and ("inner" not in self._own or _readable(self._own["inner"])) and not self.group.pids()

    def _reap(self) -> None:
        if self._status is None and self.pid:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = status if done else None

    async def _end(self) -> Exit:
        await self._until(self._is_dead, "did not end with its first process")
        self._final = self.measure()
        broken, full = self.group.broken_bounds(), self._disk_full()
        said, status = await self._said(), self._status or 0
        code = os.waitstatus_to_exitcode(status)
        agent_status = -(code - _SIGNALLED) if _SIGNALLED < code <= _SIGNALLED + 64 else code
        if self._order is not None:
            return Exit(agent_status, *self._order)
        if broken["memory"]:
            return Exit(
                agent_status, "memory", f"the kernel ended it at its bound of {self.limits.memory_bytes} bytes of memory and {self.limits.disk_bytes} of files"
            )
        if not self.started or code < 0:
            return Exit(agent_status, "sandbox", said or f"bubblewrap ended with {code} before the agent did")
        if code != 0 and broken["pids"]:
            return Exit(agent_status, "pids", f"{broken['pids']} new processes were refused at the bound of {self.limits.pids}")
        if code != 0 and full:
            return Exit(agent_status, "disk", f"its disk of {self.limits.disk_bytes} bytes is full")
        return Exit(agent_status, "exited", "")

    def _sample(self) -> None:
        """Memory alone, which no bound of the kernel is on: the run's tmpfs is counted with it there."""
        if self.started and self.measure().memory_bytes > self.limits.memory_bytes and self._order is None:
            self._order = ("memory", f"it used more than its bound of {self.limits.memory_bytes} bytes of memory")
            self._signal_all()

    def _disk_used(self) -> int:
        if "disk" not in self._own:
            return 0
        disk = os.fstatvfs(self._own["disk"])
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def _disk_full(self) -> bool:
        if "disk" not in self._own:
            return False
        disk = os.fstatvfs(self._own["disk"])
        return disk.f_bavail == 0 or disk.f_ffree == 0

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        with anyio.move_on_after(bounds.STOP_SECONDS_MAX):
            while not condition():  # noqa: ASYNC110  (it is the kernel that is waited for)
                await anyio.sleep(_LOOK_SECONDS)
            return
        raise BackendError(f"sandbox of {self.run} {otherwise} within {bounds.STOP_SECONDS_MAX:g} s")

    async def _report(self) -> tuple[cradle.Report, list[int]]:
        control = socket.socket(fileno=os.dup(self._own["control"]))
        with control:
            while True:
                await anyio.wait_readable(control)
                with contextlib.suppress(BlockingIOError):
                    raw, arrived, _flags, _address = socket.recv_fds(control, _REPORT_BYTES_MAX, bounds.DESCRIPTORS_PER_MESSAGE_MAX * 4)
                    break
        for descriptor in arrived:
            os.set_inheritable(descriptor, False)
        if not raw:
            raise BackendError(f"sandbox's cradle died: {await self._said() or 'without a word'}")
        report = cradle.reports.decode(raw)
        if isinstance(report, cradle.Failed):
            raise CallerError(report.message) if report.caller else BackendError(report.message)
        return report, arrived

    async def _said(self) -> str:
        """What bubblewrap, not the agent, wrote to its standard error."""
        if "diagnostics" not in self._own:
            return ""
        os.set_blocking(self._own["diagnostics"], False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._own["diagnostics"], _DIAGNOSTICS_BYTES_MAX).decode(errors="backslashreplace").strip()
        return ""

    def _collect_in_child(self, target: int, answer: int, parent: int) -> None:
        """Never returns. Under the run's uid: the workspace is hostile, and this child can do no more than the agent could."""
        try:
            confine.promise_no_new_privileges()
            baseline = cradle.manifests.decode(os.pread(self._own["manifest"], os.fstat(self._own["manifest"]).st_size, 0))
            workspace = os.open("workspace", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._own["disk"])
            if self.separate:
                os.setgroups([])
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
            confine.die_with_parent(parent)  # after the change of uid, which clears it
            lifted = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in (target, answer, workspace)]
            for place, descriptor in enumerate(lifted, start=3):
                os.dup2(descriptor, place)
            namespaces.close_from(6)
            answer = 4
            most = archive_bytes_max(self.limits.disk_bytes)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            with os.fdopen(3, "wb", buffering=1 << 20) as into:
                collected = collect(5, baseline, into, self.limits.disk_bytes)
            done = _Answer(collected.changes, collected.refused)
        except BaseException as error:  # noqa: BLE001  (a forked child has no one above it)
            done = _Answer([], [], f"{type(error).__name__}: {error}")
        view = memoryview(msgspec.json.encode(done))
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(answer, view) :]
        os._exit(0)


def _readable(descriptor: int) -> bool:
    look = select.poll()  # not select(): descriptors go beyond 1,024
    look.register(descriptor, select.POLLIN)
    return bool(look.poll(0))


async def receive(descriptor: int, until: bytes | None = None) -> bytes:
    """What arrives at the descriptor until its other end closes, or ends with `until`."""
    os.set_blocking(descriptor, False)
    raw = bytearray()
    while not (until is not None and bytes(raw).rstrip(b"\n").endswith(until.rstrip(b"\n"))):
        await anyio.wait_readable(descriptor)
        try:
            chunk = os.read(descriptor, _REPORT_BYTES_MAX)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            break
        if not chunk:
            break
        raw += chunk
    return bytes(raw)
