"""The launcher process: parent of every sandbox, keeper of their listeners. Serves the governor and nobody else.

Each run is in a `_Run`: its box, whether it stands still and why, what is still to be told. A run goes away only by DestroySandbox or with this
process; when the governor is not heard for limits.HEARTBEAT_STALE_SECONDS every run is frozen, and goes on when it is heard again.
"""

import contextlib
import hashlib
import logging
import os
import signal
import socket
from dataclasses import dataclass, field

import anyio
import anyio.abc

from bailiwick.kernel import limits
from bailiwick.kernel.accounts import Accounts, Role
from bailiwick.kernel.channel import Channel, Done, Heartbeat, Peer, Received, Reply, connect, serve
from bailiwick.kernel.clock import Clock
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, Conflict, NotFound, PeerError
from bailiwick.kernel.layout import Layout
from bailiwick.sandbox import archive
from bailiwick.sandbox import spec as specification
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun
from bailiwick.sandbox.backend import Backend, Box, Exit
from bailiwick.sandbox.bubblewrap import Bubblewrap, raise_descriptor_limit
from bailiwick.sandbox.messages import (
    LAUNCHER,
    AgentExited,
    AgentStarted,
    CollectWorkspace,
    CreateSandbox,
    DestroySandbox,
    FreezeRun,
    HandOver,
    KillRun,
    ListSandboxes,
    MeasureRun,
    SandboxCreated,
    SandboxesListed,
    SandboxState,
    StartAgent,
    ThawRun,
    WorkspaceCollected,
)

_log = logging.getLogger("bailiwick.launcher")

_CREATING_AT_ONCE = max(2, 2 * (os.cpu_count() or 1))  # more would only make each of them slower
_DESTROYING_AT_ONCE = 8
_LOOK_SECONDS = limits.HEARTBEAT_SECONDS / 2
_RUN_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def run(*, listener: socket.socket, layout: Layout, accounts: Accounts, clock: Clock) -> None:
    """The process. Returns after SIGTERM, when every sandbox is gone."""
    os.umask(0o077)
    raise_descriptor_limit()
    layout.sandboxes.mkdir(parents=True, exist_ok=True, mode=0o700)
    installation = hashlib.sha256(os.fsencode(layout.root.resolve())).hexdigest()[:12]
    backend = Bubblewrap.find(layout.sandboxes, layout.root.resolve(), installation=installation)
    anyio.run(Launcher(backend, layout, accounts, clock).serve, listener)


@dataclass(slots=True)
class _Run:
    box: Box | None = None  # None while it is being made
    worker: str = ""
    started: bool = False
    frozen: bool = False  # by the governor's order
    exited: AgentExited | None = None
    told: bool = False
    turn: anyio.Lock = field(default_factory=anyio.Lock)  # one order at a time: freeze and thaw do not overtake each other

    @property
    def state(self) -> str:
        if self.exited is not None:
            return "exited"
        return "frozen" if self.frozen else "running" if self.started else "created"


class Launcher:
    def __init__(self, backend: Backend, layout: Layout, accounts: Accounts, clock: Clock) -> None:
        self._backend = backend
        self._layout = layout
        self._accounts = accounts
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._governor: Channel | None = None
        self._heard = clock.monotonic()
        self._stale = False
        self._creating = anyio.CapacityLimiter(_CREATING_AT_ONCE)
        self._tasks: anyio.abc.TaskGroup | None = None

    async def serve(self, listener: socket.socket) -> None:
        archive.forget_unfinished(self._layout)
        left = self._backend.clean()
        if left:
            _log.warning("took away %d sandboxes of a launcher that was killed", left)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._stop_on_signal, tasks.cancel_scope)
                tasks.start_soon(self._watch_heartbeat)
                await serve(listener, LAUNCHER, self._handle, admit=self._admit, refused=self._refused)
        finally:
            with anyio.CancelScope(shield=True):
                await self._destroy_all()
            self._backend.close()

    def _admit(self, peer: Peer) -> bool:
        return Role.GOVERNOR in self._accounts.roles(peer.uid)

    @staticmethod
    def _refused(peer: Peer, reason: str) -> None:
        _log.warning("peer refused: pid %d uid %d: %s", peer.pid, peer.uid, reason)

    async def _stop_on_signal(self, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()
                return

    async def _destroy_all(self) -> None:
        limiter = anyio.CapacityLimiter(_DESTROYING_AT_ONCE)

        async def one(name: str) -> None:
            async with limiter:
                try:
                    await self._destroy(name)
                except BailiwickError as error:
                    _log.error("sandbox of %s could not be taken away: %s", name, error)

        async with anyio.create_task_group() as tasks:
            for name in list(self._runs):
                tasks.start_soon(one, name)

    async def _handle(self, channel: Channel, received: Received) -> Reply | None:
        for descriptor in received.descriptors:
            os.close(descriptor)  # no request brings any
        self._hear(channel)
        match received.message:
            case Heartbeat():
                return None
            case CreateSandbox() as order:
                return Reply(await self._create(order))
            case StartAgent(run=name):
                return Reply(await self._start(name))
            case HandOver(run=name, worker=worker):
                return Reply(await self._hand_over(name, worker))
            case FreezeRun(run=name):
                return Reply(await self._freeze(name))
            case ThawRun(run=name):
                return Reply(await self._thaw(name))
            case KillRun(run=name, reason=reason):
                await self._box(name).kill("killed", reason)
                return Reply(Done())
            case CollectWorkspace(run=name):
                return Reply(await self._collect(name))
            case MeasureRun(run=name):
                return Reply(self._box(name).measure())
            case DestroySandbox(run=name):
                await self._destroy(name)
                return Reply(Done())
            case ListSandboxes():
                return Reply(SandboxesListed(sandboxes=[SandboxState(name, each.state, each.exited) for name, each in self._runs.items() if each.box]))
            case other:
                raise CallerError(f"launcher was sent {type(other).__name__}, which is an answer; must be a request")

    def _hear(self, channel: Channel) -> None:
        self._heard = self._clock.monotonic()
        if channel is not self._governor:
            self._governor = channel
            for name, each in self._runs.items():
                if each.exited is not None and not each.told:
                    self._soon(name)

    # Making and starting

    async def _create(self, order: CreateSandbox) -> SandboxCreated:
        if not order.run or set(order.run) - _RUN_NAME or len(order.run) > 64:
            raise CallerError(f"run {order.run!r} is no name of one; must be 1 to 64 of a-z, 0-9, - and _")
        if order.run in self._runs:
            raise Conflict(f"sandbox of {order.run} is there already; destroy it first")
        if order.spec.backend != self._backend.name:
            raise CallerError(f"backend {order.spec.backend!r} is not here; must be {self._backend.name}")
        specification.lint(order.spec, state=self._layout.root.resolve())
        each = self._runs[order.run] = _Run(worker=order.worker)
        try:
            async with self._creating:
                box = await self._backend.create(order.run, order.spec)
            each.box = box
            await self._adopt(order.run, each)
        except BaseException:
            self._runs.pop(order.run, None)
            if each.box is not None:
                with anyio.CancelScope(shield=True):
                    await each.box.destroy()
            raise
        assert self._tasks is not None
        self._tasks.start_soon(self._watch, order.run, each, box)
        return SandboxCreated(
            backend=self._backend.name, findings=box.findings, capabilities=self._backend.capabilities(), workspace_files=box.workspace_files
        )  # fmt: skip

    async def _start(self, name: str) -> AgentStarted:
        each = self._run(name)
        async with each.turn:
            broken = [finding.check for finding in self._box(name).findings if not finding.held]
            if broken:
                raise Conflict(f"probe of {name} found that {', '.join(broken)} did not hold; the agent is not started in such a sandbox")
            if each.started:
                raise Conflict(f"agent of {name} is started already")
            pid = await self._box(name).start()
            each.started = True
        return AgentStarted(pid=pid)

    async def _hand_over(self, name: str, worker: str) -> Done:
        each = self._run(name)
        self._box(name)
        each.worker = worker
        await self._adopt(name, each)
        return Done()

    async def _adopt(self, name: str, each: _Run) -> None:
        """Hands the run's descriptors to its worker and returns when it serves them."""
        assert each.box is not None
        if not self._known_worker(each.worker):
            raise CallerError(f"worker {each.worker!r} is unknown; must be one of {', '.join(worker.name for worker in self._accounts.workers())}")
        held = dict(each.box.descriptors)
        channel = await connect(self._layout.socket(f"{each.worker}.adopt"), ADOPTION)
        # The socket was bound by the parent of us all, so its credentials are the parent's: ours, when root.
        if channel.peer.uid != os.geteuid() and not self._accounts.may_act_as(channel.peer.uid, each.worker):
            channel.close()
            raise PeerError(f"who listens as {each.worker} has uid {channel.peer.uid}, which is not that worker's")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.run)
            try:
                await channel.call(AdoptRun(run=name, names=list(held)), descriptors=list(held.values()))
            finally:
                # Not close(): anyio forgets a wait by its descriptor's number, and by the time it does another sandbox may have that number. The end of
                # `run` closes it, after the wait.
                tasks.cancel_scope.cancel()

    def _known_worker(self, name: str) -> bool:
        return any(worker.name == name for worker in self._accounts.workers())

    # Standing still and going on

    async def _freeze(self, name: str) -> Done:
        each = self._run(name)
        async with each.turn:
            await self._box(name).freeze()
            each.frozen = True
        return Done()

    async def _thaw(self, name: str) -> Done:
        each = self._run(name)
        async with each.turn:
            each.frozen = False
            if not self._stale:
                await self._box(name).thaw()
        return Done()

    async def _watch_heartbeat(self) -> None:
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            stale = self._clock.monotonic() - self._heard > limits.HEARTBEAT_STALE_SECONDS - 2 * _LOOK_SECONDS
            if stale != self._stale or stale:
                self._stale = stale
                await self._follow_heartbeat()

    async def _follow_heartbeat(self) -> None:
        """Every run stands still while the governor is silent; those it froze itself stay so afterwards."""
        async with anyio.create_task_group() as tasks:
            for name, each in list(self._runs.items()):
                if each.box is not None and each.exited is None:
                    tasks.start_soon(self._follow_one, name, each)

    async def _follow_one(self, name: str, each: _Run) -> None:
        async with each.turn:
            if each.box is None or each.exited is not None:
                return
            try:
                if self._stale:
                    await each.box.freeze()
                elif not each.frozen:
                    await each.box.thaw()
            except BackendError as error:
                _log.error("run %s: %s; it is killed instead", name, error)
                await each.box.kill("killed", "the governor was not heard and the run would not stand still")

    # Ending

    async def _watch(self, name: str, each: _Run, box: Box) -> None:
        try:
            ended = await box.wait()
        except Exception as error:  # noqa: BLE001  (one run that cannot be watched must not end the launcher, and every run with it)
            _log.exception("run %s cannot be watched", name)
            ended = Exit(-signal.SIGKILL, "sandbox", str(error))
        each.exited = AgentExited(run=name, status=ended.status, cause=ended.cause, detail=ended.detail, stats=box.measure())
        await self._tell(name)

    def _soon(self, name: str) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._tell, name)

    async def _tell(self, name: str) -> None:
        """To the governor on its newest channel; who is not heard is told when it comes again."""
        each = self._runs.get(name)
        if each is None or each.exited is None or each.told or self._governor is None or self._governor.closed:
            return
        with contextlib.suppress(PeerError):
            await self._governor.tell(each.exited)
            each.told = True

    async def _collect(self, name: str) -> WorkspaceCollected:
        each = self._run(name)
        if each.exited is None:
            raise Conflict(f"agent of {name} has not ended; kill it first")
        box = self._box(name)
        async with each.turn:
            with archive.made(self._layout, self._accounts, name) as making:
                collected = await box.collect(making.target)
                making.wanted = bool(collected.changes)
        return WorkspaceCollected(changes=collected.changes, archive=str(making.path) if making.wanted else "", refused=collected.refused)

    async def _destroy(self, name: str) -> None:
        each = self._runs.get(name)
        if each is None:
            return
        if each.box is None:
            raise Conflict(f"sandbox of {name} is being made; ask again when that has been answered")
        await each.box.destroy()
        self._runs.pop(name, None)

    def _run(self, name: str) -> _Run:
        each = self._runs.get(name)
        if each is None:
            raise NotFound(f"sandbox of {name} is not here; it was never made, or is destroyed")
        return each

    def _box(self, name: str) -> Box:
        box = self._run(name).box
        if box is None:
            raise Conflict(f"sandbox of {name} is being made; ask again when that has been answered")
        return box
