"""From a request to a running agent, and from its end to nothing left. Every step may be repeated; each is on file before it is taken.

A start undoes itself by being ended. An end is never given up: a step whose process is down is tried again until it is done, because a listener, a
lease or a process that is still there is not an ended run.
"""

import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import anyio
import msgspec

from bailiwick.broker.messages import GrantLease, RevokeLeases
from bailiwick.critic.enforcement import CloseRun, Usage
from bailiwick.governor.definition import LeaseTerms
from bailiwick.governor.lifecycle import (
    CleanedUp,
    Dispatched,
    Exited,
    Frozen,
    KillOrdered,
    LifecycleEvent,
    Lost,
    PreparationFailed,
    RunState,
    Started,
    Thawed,
    follow,
)
from bailiwick.governor.links import Link
from bailiwick.governor.live import Ending, Live
from bailiwick.governor.repository import Runs
from bailiwick.kernel import limits
from bailiwick.kernel.channel import Message
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, Conflict, NotFound, PeerError
from bailiwick.kernel.ids import SequenceOfIds, new_lease_id
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event
from bailiwick.sandbox.messages import (
    COLLECT_SECONDS_MAX,
    AgentExited,
    AgentStarted,
    CollectWorkspace,
    CreateSandbox,
    DestroySandbox,
    FreezeRun,
    HandOver,
    KillRun,
    SandboxCreated,
    SandboxesListed,
    StartAgent,
    ThawRun,
    WorkspaceCollected,
)

CREATE_SECONDS_MAX = 60.0  # a large workspace is copied
_LEASES_SECONDS = 1.0
_FAULTS_MAX = 5  # of ours, in the end of one run: a mistake that is there the fifth time stays there
_RETRY_SECONDS_FIRST = 0.05
_RETRY_SECONDS_MAX = 2.0


@dataclass(slots=True, kw_only=True)
class Neighbours:
    """What the governor acts through."""

    launcher: Link
    broker: Link
    workers: Mapping[str, Link]
    recorder: RecordClient
    usage: Callable[[str], Usage]  # by the record
    refusals: Callable[[str], tuple[int, int]]  # by the record: actions held, and denied
    names: Callable[[str], list[str]]  # by the record, in the order of their addresses
    leases: Callable[[str], dict[str, str]]  # by the record: lease id and expiry, in the order they were granted
    checkpoint: Callable[[], Awaitable[None]]
    void_holds: Callable[[str], Awaitable[None]]  # of a run that is ending


class Dispatcher:
    def __init__(self, neighbours: Neighbours, runs: Runs, clock: Clock) -> None:
        self.live: dict[str, Live] = {}
        self._near = neighbours
        self._runs = runs
        self._clock = clock
        self._ids = SequenceOfIds()
        self._fewer = anyio.Event()

    async def wait_empty(self) -> None:
        """Until every run has ended."""
        while self.live:
            await self._fewer.wait()

    def pick_worker(self) -> str:
        """The worker with the fewest runs."""
        load = dict.fromkeys(self._near.workers, 0)
        for live in self.live.values():
            load[live.worker] = load.get(live.worker, 0) + 1
        return min(self._near.workers, key=lambda name: load[name])

    async def record(self, live: Live, kind: str, **body: Any) -> int:
        """Durably: what follows may rely on it."""
        event = Event(id=self._ids.event(), kind=kind, time=timestamp(self._clock.now()), run=live.run, agent=live.agent, body=body)
        return await self._near.recorder.append_durably(event)

    async def keep(self, live: Live) -> None:
        """The whole life of one run, from wherever it stands, to its end."""
        if live.state in (RunState.REQUESTED, RunState.PREPARING):
            try:
                await self._start(live)
            except Exception:  # noqa: BLE001  a fault of ours in one run must not end the keeper of all
                traceback.print_exc()
                self._fail(live, Ending("sandbox", "an internal fault; the governor's log has it"))
        await live.finished.wait()
        assert live.ending is not None
        self._runs.note_ending(live.run, live.ending)
        for left in reversed(range(_FAULTS_MAX)):
            try:
                await self._end(live)
                break
            except Exception:  # noqa: BLE001  the same
                traceback.print_exc()
                await (anyio.sleep(_RETRY_SECONDS_MAX / _FAULTS_MAX) if left else self._abandon(live))
        self.live.pop(live.run, None)
        self._fewer.set()
        self._fewer = anyio.Event()

    async def _start(self, live: Live) -> None:
        if live.state is RunState.PREPARING:  # by a governor that died in it: nobody knows how far it came
            self._move(live, Lost())
            live.finish(Ending("lost", "the governor was restarted while the run was prepared"))
            return
        try:
            self._move(live, Dispatched())
            await self._lend(live, self._near.broker.call)
            await self._open(live)
            await self._create(live)
            await self.record(live, "run.started", command=live.definition.spec.command)
            started = await self._near.launcher.call(StartAgent(run=live.run))
            if not isinstance(started, AgentStarted):
                raise PeerError("launcher answered StartAgent with something else")
            if live.ending is None and live.exited is None:  # else it was killed, or was quicker than this answer
                self._move(live, Started())
                self._runs.note_started(live.run, timestamp(self._clock.now()))
        except BailiwickError as error:
            self._fail(live, Ending("refused" if isinstance(error, CallerError) else "sandbox", str(error)))

    def _fail(self, live: Live, ending: Ending) -> None:
        if live.ending is None:
            self._move(live, PreparationFailed() if live.state in (RunState.REQUESTED, RunState.PREPARING) else Lost())
            live.finish(ending)

    async def _abandon(self, live: Live) -> None:
        """A fault of ours is in the way of an orderly end: what can be taken from the run is, each step by itself, and it is over."""
        launcher, broker = self._near.launcher, self._near.broker
        steps: list[Callable[[], Awaitable[Any]]] = [
            lambda: launcher.call(KillRun(run=live.run, reason="fault")),
            lambda: self._near.workers[live.worker].call(CloseRun(run=live.run, reason="fault")),
            lambda: broker.call(RevokeLeases(run=live.run, reason="fault")),
            lambda: launcher.call(DestroySandbox(run=live.run)),
            lambda: self.record(live, "run.ended", cause="lost", detail="an internal fault; the governor's log has it", status=None, used={}),
        ]
        for step in steps:
            try:
                await step()
            except Exception:  # noqa: BLE001  the next step matters as much
                traceback.print_exc()
        self._runs.note_ended(live.run, timestamp(self._clock.now()), live.used, (0, 0))
        self._move(live, CleanedUp())

    async def _lend(self, live: Live, call: Callable[[Message], Awaitable[Message]]) -> None:
        """(Again:) every lease of the run, with its first expiry."""
        for index, terms in enumerate(live.definition.leases):
            if len(live.leases) <= index:
                live.leases[new_lease_id()] = timestamp(self._clock.now() + timedelta(seconds=terms.ttl_seconds))
            lease, expires = list(live.leases.items())[index]
            await call(_grant(live, terms, lease, expires))

    async def keep_leases(self) -> None:
        """For ever."""
        while True:
            await anyio.sleep(_LEASES_SECONDS)
            try:
                await self.extend_leases()
            except BailiwickError as error:  # until one has expired there is time to try again; then the gateway refuses
                print(f"a lease is not extended: {error}", flush=True)  # noqa: T201

    async def extend_leases(self) -> None:
        """A lease is short and lives as long as its run: past half its time it is granted on. What cannot be is tried again at the next call."""
        now = self._clock.now()
        for live in [live for live in self.live.values() if live.state in (RunState.RUNNING, RunState.PAUSED) and live.ending is None]:
            for terms, (lease, expires) in zip(live.definition.leases, list(live.leases.items()), strict=False):
                if datetime.fromisoformat(expires) - now < timedelta(seconds=terms.ttl_seconds / 2):
                    later = timestamp(now + timedelta(seconds=terms.ttl_seconds))
                    await self._near.broker.call(_grant(live, terms, lease, later))
                    live.leases[lease] = later

    async def _open(self, live: Live) -> None:
        await self._near.workers[live.worker].call(live.open_run(live.used))
        live.opened = True

    async def _create(self, live: Live) -> None:
        created = await self._near.launcher.call(CreateSandbox(run=live.run, worker=live.worker, spec=live.definition.spec), seconds_max=CREATE_SECONDS_MAX)
        if not isinstance(created, SandboxCreated):
            raise PeerError("launcher answered CreateSandbox with something else")
        await self.record(
            live,
            "run.probed",
            backend=created.backend,
            findings=[msgspec.to_builtins(finding) for finding in created.findings],
            capabilities=created.capabilities,
            workspace_files=created.workspace_files,
        )
        broken = [finding.check for finding in created.findings if not finding.held]
        if broken:
            raise BackendError(f"the probe found the sandbox open: {', '.join(broken)}; `bailiwick doctor` says what this machine lacks")

    async def _end(self, live: Live) -> None:
        ending = live.ending
        assert ending is not None
        if ending.cause in ("exited", "memory", "pids", "disk"):  # the agent is gone: what it wrote is still in its pipes
            await self._until_done(live, "launcher", lambda: self._near.launcher.call(KillRun(run=live.run, reason=ending.cause)))
            await self._close(live, ending)
        else:  # close first: nothing more leaves, whatever the processes do until they are gone
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._close, live, ending)
                tasks.start_soon(self._until_done, live, "launcher", lambda: self._near.launcher.call(KillRun(run=live.run, reason=ending.cause)))
        await self._until_done(live, "broker", lambda: self._near.broker.call(RevokeLeases(run=live.run, reason=ending.cause)))
        await self._near.void_holds(live.run)
        await self._collect(live)
        await self._until_done(live, "launcher", lambda: self._near.launcher.call(DestroySandbox(run=live.run)))
        if (order := live.unrecorded) is not None:
            await self._until_done(live, "recorder", lambda: self.record(live, "run.killed", **order))
        used = await self._totals(live)
        await self._until_done(
            live,
            "recorder",
            lambda: self.record(live, "run.ended", cause=ending.cause, detail=ending.detail, status=ending.status, used=msgspec.to_builtins(used)),
        )
        self._runs.note_ended(live.run, timestamp(self._clock.now()), used, self._near.refusals(live.run))
        self._move(live, CleanedUp())
        with anyio.move_on_after(limits.CALL_SECONDS_MAX):
            try:
                await self._near.checkpoint()
            except BailiwickError as error:  # the next second's checkpoint covers the run as well
                print(f"checkpoint at the end of {live.run}: {error}", flush=True)  # noqa: T201

    async def _close(self, live: Live, ending: Ending) -> None:
        if live.opened:
            worker = self._near.workers.get(live.worker)
            if worker is not None:
                await self._until_done(live, live.worker, lambda: worker.call(CloseRun(run=live.run, reason=ending.cause)))

    async def _totals(self, live: Live) -> Usage:
        try:
            return self._near.usage(live.run)
        except BailiwickError:
            return live.used

    async def _collect(self, live: Live) -> None:
        if live.definition.workspace is None or live.ending is None or live.ending.cause == "lost":
            return
        try:
            collected = await self._near.launcher.call(CollectWorkspace(run=live.run), seconds_max=COLLECT_SECONDS_MAX + limits.CALL_SECONDS_MAX)
        except BailiwickError as error:
            print(f"workspace of {live.run} is not collected: {error}", flush=True)  # noqa: T201
            return
        assert isinstance(collected, WorkspaceCollected)
        changes = [msgspec.to_builtins(change) for change in collected.changes]
        self._runs.note_changes(live.run, msgspec.json.encode({"changes": changes, "refused": collected.refused}), collected.archive or None)
        await self._until_done(
            live, "recorder", lambda: self.record(live, "run.workspace", changes=changes[:500], changed=len(changes), refused=collected.refused[:100])
        )

    async def _until_done(self, live: Live, name: str, step: Callable[[], Awaitable[Any]]) -> None:
        """An end is never given up."""
        wait = _RETRY_SECONDS_FIRST
        while True:
            try:
                await step()
                return
            except NotFound:  # what is not there needs no end
                return
            except BailiwickError as error:
                print(f"end of {live.run}: {name}: {error}; trying again", flush=True)  # noqa: T201
            await anyio.sleep(wait)
            wait = min(wait * 2, _RETRY_SECONDS_MAX)

    # What is ordered or heard while a run lives.

    async def kill(self, live: Live, ending: Ending, **who: Any) -> None:
        """The order is on file first where the record takes it; where it does not, the run is ended all the same and the order recorded before its end:
        a record that is down must not keep an agent alive."""
        if live.state in (RunState.ENDING, RunState.ENDED):
            raise Conflict(f"run {live.run} is {live.state} already")
        order = {"cause": ending.cause, "detail": ending.detail, **who}
        try:
            await self.record(live, "run.killed", **order)
        except BailiwickError as error:
            print(f"the end of {live.run} is ordered before it is recorded: {error}", flush=True)  # noqa: T201
            live.unrecorded = order
        if live.state not in (RunState.ENDING, RunState.ENDED):  # it may have ended while that was written
            self._move(live, KillOrdered())
            live.finish(ending)

    async def pause(self, live: Live, **who: Any) -> None:
        follow(live.state, Frozen())
        await self._near.launcher.call(FreezeRun(run=live.run))
        self._move(live, Frozen())
        await self.record(live, "run.paused", **who)

    async def resume(self, live: Live, **who: Any) -> None:
        follow(live.state, Thawed())
        await self.record(live, "run.resumed", **who)
        await self._near.launcher.call(ThawRun(run=live.run))
        self._move(live, Thawed())

    def heard_exit(self, exited: AgentExited) -> None:
        live = self.live.get(exited.run)
        if live is None or live.state in (RunState.ENDING, RunState.ENDED):
            return
        live.exited = exited
        if live.state in (RunState.RUNNING, RunState.PAUSED):
            self._move(live, Exited())
        elif live.state is RunState.PREPARING:  # it was quicker than the answer that it had started
            self._move(live, Started())
            self._move(live, Exited())
        live.finish(Ending(exited.cause, exited.detail, exited.status))

    def reconcile(self, listed: SandboxesListed) -> list[str]:
        """What the launcher holds against what should be; returns the sandboxes nobody answers for."""
        states = {sandbox.run: sandbox for sandbox in listed.sandboxes}
        for live in list(self.live.values()):
            sandbox = states.get(live.run)
            if sandbox is not None and sandbox.exited is not None:
                self.heard_exit(sandbox.exited)
            elif sandbox is None and live.state in (RunState.RUNNING, RunState.PAUSED):
                self._move(live, Lost())
                live.finish(Ending("lost", "the launcher ended and its sandboxes with it"))
        return [run for run in states if run not in self.live]

    async def greet_worker(self, name: str) -> None:
        """A worker that was started anew is told its runs and handed their listeners."""
        for live in [live for live in self.live.values() if live.worker == name and live.opened and live.ending is None]:
            await self._near.workers[name].call_now(live.open_run(_most(self._near.usage(live.run), live.used), self._near.names(live.run)))
            try:
                await self._near.launcher.call(HandOver(run=live.run, worker=name))
            except CallerError as error:  # it is being made and will be brought, or is gone and will be said to be: the other runs do not wait for that
                print(f"listeners of {live.run} are not handed to {name}: {error}", flush=True)  # noqa: T201

    async def greet_broker(self) -> None:
        """A broker that was started anew is told every live lease. Those of a run that another governor began stand in the record."""
        for live in [live for live in self.live.values() if live.definition.leases and live.ending is None]:
            if not live.leases:
                live.leases.update(self._near.leases(live.run))
            if not live.leases:  # none was granted yet
                continue
            try:
                await self._lend(live, self._near.broker.call_now)
            except CallerError as error:  # it has expired, or its credential is gone: what it was for is refused from here on
                print(f"leases of {live.run} are not granted again: {error}", flush=True)  # noqa: T201

    def _move(self, live: Live, event: LifecycleEvent) -> None:
        following = follow(live.state, event)
        self._runs.move(live.run, live.state, following)
        live.state = following


def _grant(live: Live, terms: LeaseTerms, lease: str, expires: str) -> GrantLease:
    return GrantLease(
        lease=lease,
        run=live.run,
        agent=live.agent,
        worker=live.worker,
        credential=terms.credential,
        hosts=terms.hosts,
        verbs=terms.verbs,
        template=terms.template,
        expires=expires,
    )


def _most(recorded: Usage, reported: Usage) -> Usage:
    """The record counts what was done; what it does not count was reported."""
    return Usage(**{name: max(getattr(recorded, name), getattr(reported, name)) for name in Usage.__struct_fields__})
