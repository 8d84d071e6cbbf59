"""The gateway worker: one process, one event loop, the runs the governor gave it and the descriptors the launcher brought.

It takes orders from the governor on one socket and descriptors from the launcher on another; who is who is the kernel's word. It holds no stored secret,
opens no file, and denies everything when the governor's heartbeat stops.
"""

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

import anyio

from bailiwick.critic.boundary import CompiledBoundary
from bailiwick.critic.enforcement import ENFORCEMENT, CloseRun, HoldSettled, OpenRun, ReportUsage, RunClosed, Usage
from bailiwick.critic.evaluate import Critic
from bailiwick.gateway.complaints import Complaints
from bailiwick.gateway.connection import AgentConnection
from bailiwick.gateway.datagrams import Turns, serve_dns, watch_attempts
from bailiwick.gateway.events import stamp
from bailiwick.gateway.holds import HoldDesk
from bailiwick.gateway.links import BrokerLink, GovernorLink
from bailiwick.gateway.neighbours import House
from bailiwick.gateway.outputs import OutputReader
from bailiwick.gateway.runs import Run
from bailiwick.gateway.waiting import Tasks
from bailiwick.kernel import limits
from bailiwick.kernel.accounts import Accounts, Role
from bailiwick.kernel.channel import Channel, Heartbeat, Peer, Received, Reply, serve
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, NotFound
from bailiwick.kernel.layout import Layout
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun
from bailiwick.trust.interception import InterceptionAuthority

REPORT_SECONDS = 1.0
BACKLOG = 1_024
PREPARED_NAMES_MAX = 64  # leaves made before they are asked for, of the names the boundary lets be reached


def run(*, name: str, listener: socket.socket, adopt_listener: socket.socket, layout: Layout, accounts: Accounts, authority: InterceptionAuthority) -> None:
    """The worker's process, for ever. `name` is its account's."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))  # runs are bounded by limits.CONNECTIONS_PER_RUN_MAX, not by a shell's default
    Complaints().install()
    work = partial(_work, listener=listener, adopt_listener=adopt_listener, layout=layout, accounts=accounts, authority=authority)
    anyio.run(work, backend_options={"use_uvloop": True})


async def _work(*, listener: socket.socket, adopt_listener: socket.socket, layout: Layout, accounts: Accounts, authority: InterceptionAuthority) -> None:
    loop = asyncio.get_running_loop()
    clock = SystemClock()
    recorder = RecordClient(layout.socket("recorder"), clock=clock)
    await recorder.start()
    tasks = Tasks(loop)
    governor = GovernorLink(loop)
    house = House(
        loop=loop,
        clock=clock,
        recorder=recorder,
        broker=BrokerLink(layout.socket("broker"), tasks),
        governor=governor,
        context_for=authority.context_for,
        tasks=tasks,
    )
    worker = Worker(house, governor, authority)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(
                partial(serve, listener, ENFORCEMENT, worker.enforce, admit=lambda peer: Role.GOVERNOR in accounts.roles(peer.uid), refused=worker.turned_away)
            )
            group.start_soon(
                partial(serve, adopt_listener, ADOPTION, worker.adopt, admit=lambda peer: Role.LAUNCHER in accounts.roles(peer.uid), refused=worker.turned_away)
            )
            group.start_soon(worker.tick)
    finally:
        with anyio.move_on_after(limits.STOP_SECONDS_MAX, shield=True):
            worker.close("the gateway worker is stopping")
            await recorder.close()
        tasks.cancel()


class Held:
    """One run's descriptors while they are served."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []
        self.closers: list[Callable[[], None]] = []
        self.ports: set[int] = set()

    def serves(self, protocol: str, port: int) -> bool:
        return port in self.ports if protocol == "tcp" else protocol == "udp" and port == 53

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for closer in self.closers:
            closer()


class Worker:
    """What the two channels ask for. Runs are opened before they are adopted, and closed once."""

    def __init__(self, house: House, governor: GovernorLink, authority: InterceptionAuthority) -> None:
        self._house = house
        self._governor = governor
        self._authority = authority
        self._desk = HoldDesk()
        self._runs: dict[str, Run] = {}
        self._held: dict[str, Held] = {}
        self._critics: WeakValueDictionary[str, Critic] = WeakValueDictionary()  # by the boundary's text, while a run is held to it
        self._reported: dict[str, tuple[Usage, int]] = {}

    async def enforce(self, channel: Channel, received: Received) -> Reply | None:
        """What the governor says."""
        for descriptor in received.descriptors:
            os.close(descriptor)
        match received.message:
            case Heartbeat():
                self._governor.heard(channel)
            case OpenRun() as order:
                self._open(order)
            case CloseRun(run=run, reason=reason):
                return Reply(await self._close(run, reason))
            case HoldSettled() as settled:
                self._desk.settle(settled)
            case other:
                raise CallerError(f"a gateway worker does not take {type(other).__name__}")
        return None

    async def adopt(self, channel: Channel, received: Received) -> Reply | None:
        """Descriptors of a run, from the launcher. They are ours from here on, served or closed."""
        order = received.message
        descriptors = list(received.descriptors)
        try:
            if not isinstance(order, AdoptRun):
                raise CallerError(f"the adoption socket does not take {type(order).__name__}")
            if len(order.names) != len(descriptors):
                raise CallerError(f"{len(order.names)} names came with {len(descriptors)} descriptors; must be as many")
            run = self._runs.get(order.run)
            if run is None:
                raise NotFound(f"run {order.run} is not open here; open it before its listeners are brought")
            if (before := self._held.pop(order.run, None)) is not None:
                before.close()
            held = self._held[order.run] = Held()
            for descriptor_name in order.names:
                await self._serve(run, held, descriptor_name, descriptors.pop(0))
                if self._held.get(order.run) is not held:
                    held.close()
                    raise Conflict(f"run {order.run} was closed, or its listeners brought again, while they were taken over")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return None

    async def _serve(self, run: Run, held: Held, name: str, descriptor: int) -> None:
        kind, _, port = name.partition(":")
        match kind:
            case "stdout" | "stderr":
                held.closers.append(OutputReader(run, descriptor, kind).close)
            case "tcp" if port.isdigit():
                sock = socket.socket(fileno=descriptor)
                held.servers.append(await self._house.loop.create_server(lambda: AgentConnection(run, self._desk), sock=sock, backlog=BACKLOG))
                held.ports.add(int(port))
            case "udp" if port == "53":
                held.closers.append(serve_dns(run, socket.socket(fileno=descriptor)).close)
            case "tap":
                turns: Turns = watch_attempts(run, socket.socket(fileno=descriptor), held.serves)
                held.closers.append(turns.close)
            case _:
                os.close(descriptor)
                raise CallerError(f"descriptor {name!r} is unknown; must be tcp:PORT, udp:53, tap, stdout or stderr")

    def _open(self, order: OpenRun) -> None:
        critic = self._critic(order)
        run = self._runs.get(order.run)
        if run is None:
            self._runs[order.run] = Run(self._house, order, critic, critic.digest)
        else:
            run.hold_to(order, critic, critic.digest)
        for name in [*dict.fromkeys([*order.hosts, *(route.host for route in order.models), *critic.boundary.hosts])][:PREPARED_NAMES_MAX]:
            self._house.loop.call_soon(self._prepare, name)

    def _critic(self, order: OpenRun) -> Critic:
        """One for all runs under one boundary: what it remembers is true of each. Raises CallerError, which refuses this run and no other; a run that was
        open stays held to what it was."""
        known = self._critics.get(order.boundary)
        if known is None:
            try:
                known = Critic(CompiledBoundary.from_json(order.boundary))
            except CallerError as error:
                raise CallerError(f"run {order.run} of {order.agent} is not opened: {error}", code=error.code) from error
            self._critics[order.boundary] = known
        return known

    def _prepare(self, name: str) -> None:
        try:
            self._authority.context_for(name)
        except BailiwickError:
            return  # said when somebody connects for it

    async def _close(self, name: str, reason: str) -> RunClosed:
        held = self._held.pop(name, None)
        if held is not None:
            held.close()
        run = self._runs.pop(name, None)
        if run is None:
            return RunClosed(connections=0, unfinished=[])
        connections, unknown = run.close(reason)
        await self._governor.tell(ReportUsage(run=name, used=run.used, parked=0))
        self._reported.pop(name, None)
        return RunClosed(connections=connections, unfinished=unknown)

    async def tick(self) -> None:
        """Ends what has been silent for too long, and tells the governor what was used."""
        while True:
            await anyio.sleep(REPORT_SECONDS)
            self._sweep()
            with anyio.move_on_after(REPORT_SECONDS):  # a governor that does not listen keeps nothing else waiting
                await self._report()

    def _sweep(self) -> None:
        now = self._house.loop.time()
        for name, run in tuple(self._runs.items()):
            if run.closed is not None:
                continue
            try:
                run.sweep(now)
            except Exception as error:  # noqa: BLE001  a mistake of ours about one run: the others are served on, and it is no longer
                self._house.loop.call_exception_handler({"message": f"sweep of run {name} failed", "exception": error})
                run.close("the gateway failed on it")

    async def _report(self) -> None:
        for name, run in tuple(self._runs.items()):
            state = (run.used, run.parked)
            if self._reported.get(name) != state or run.parked:
                await self._governor.tell(ReportUsage(run=name, used=run.used, parked=run.parked))
                if name in self._runs:
                    self._reported[name] = state

    def turned_away(self, peer: Peer, why: str) -> None:
        body = {"process": "gateway", "uid": peer.uid, "pid": peer.pid, "why": why[:500]}
        try:
            self._house.recorder.append(Event(id=self._house.ids.event(), kind="peer.refused", time=stamp(), body=body))
        except BailiwickError:
            return

    def close(self, reason: str) -> None:
        for held in self._held.values():
            held.close()
        for run in self._runs.values():
            run.close(reason)
