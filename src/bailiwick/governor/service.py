"""The governor as the API sees it: what may be asked, who is told, what goes on by itself. Decides nothing about actions."""

import functools
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.abc
import msgspec

import bailiwick
from bailiwick.broker.messages import BROKER
from bailiwick.critic.boundary import render_policy
from bailiwick.critic.enforcement import ENFORCEMENT, OpenHold, RedeemHold, ReportUsage
from bailiwick.governor.definition import AD_HOC, Installation, compiled, define
from bailiwick.governor.dispatch import Dispatcher, Neighbours
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.links import Link
from bailiwick.governor.live import Ending, Live
from bailiwick.governor.processes import read_processes
from bailiwick.governor.reading import Reading
from bailiwick.governor.repository import RunRow, Runs
from bailiwick.governor.showing import view_of
from bailiwick.governor.signoffs import Signoffs
from bailiwick.governor.views import ChangesView, HoldView, Operator, ProcessView, RecordedEvent, RunRequest, RunView, StatusView
from bailiwick.kernel import confine, limits
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.channel import Channel, Received, Reply
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, Conflict, Forbidden, NotFound
from bailiwick.kernel.ids import HoldId, RunId, SequenceOfIds, new_run_id
from bailiwick.kernel.layout import Layout
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event
from bailiwick.record.messages import RECORDER
from bailiwick.sandbox.messages import LAUNCHER, AgentExited, DestroySandbox, ListSandboxes, SandboxesListed

_TICK_SECONDS = 0.25
_TICK_SECONDS_IDLE = 1.0
_LIST_RUNS_MAX = 1_000


class Governor:
    def __init__(self, installation: Installation, layout: Layout, accounts: Accounts, clock: Clock, *, configuration: str) -> None:
        self._installation = installation
        self._layout = layout
        self._clock = clock
        self._configuration = configuration
        self._separate = accounts.separate
        self._started = timestamp(clock.now())
        self._ids = SequenceOfIds()
        self._recorder = RecordClient(layout.socket("recorder"), clock=clock)
        self._reading = Reading(layout)
        self._runs = Runs(layout.governor / "state.db")
        launcher = Link("launcher", layout.socket("launcher"), LAUNCHER, self._from_launcher, heartbeats=True, greet=self._greet_launcher)
        broker = Link("broker", layout.socket("broker"), BROKER, greet=self._greet_broker)
        workers = {
            account.name: Link(
                account.name,
                layout.socket(account.name),
                ENFORCEMENT,
                functools.partial(self._from_worker, account.name),
                heartbeats=True,
                greet=functools.partial(self._greet_worker, account.name),
            )
            for account in accounts.workers()
        }
        self._recording = Link("recorder", layout.socket("recorder"), RECORDER, self._reading.heard, greet=self._greet_recorder)
        self._links = [launcher, broker, *workers.values(), self._recording]
        neighbours = Neighbours(
            launcher=launcher,
            broker=broker,
            workers=workers,
            recorder=self._recorder,
            usage=self._reading.usage,
            refusals=self._reading.refusals,
            names=self._reading.names,
            leases=self._reading.leases,
            checkpoint=lambda: self._reading.take_checkpoint(self._recording),
            void_holds=self._void_holds,
        )
        self._dispatch = Dispatcher(neighbours, self._runs, clock)
        self._signoffs = Signoffs(layout.governor / "holds.db", self._recorder, workers, self._dispatch.live, installation.approvers, clock)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._restarts: dict[str, int] | None = None  # of each process, as seen last
        self._stopped_by = ""  # an operator's name; a signal has none
        self.stopping = anyio.Event()
        self.idle_since = clock.monotonic()

    # What goes on by itself.

    async def serve(self) -> None:
        """Until `stopping` is set and every run has ended in order."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await self._recorder.start()
            for row in self._runs.unfinished():
                self._take_up(row)
            for link in self._links:
                tasks.start_soon(link.run)
            for live in list(self._dispatch.live.values()):
                tasks.start_soon(self._dispatch.keep, live)
            tasks.start_soon(self._announce)
            tasks.start_soon(self._tick)
            tasks.start_soon(self._dispatch.keep_leases)
            await self.stopping.wait()
            await self._end_all()
            tasks.cancel_scope.cancel()

    async def close(self) -> None:
        """Once nobody asks any more."""
        await self._recorder.close()
        self._reading.close()
        self._runs.close()
        self._signoffs.close()

    def _take_up(self, row: RunRow) -> None:
        live = Live(
            run=row.run,
            agent=row.agent,
            task=row.task,
            operator=row.operator,
            definition=row.definition,
            state=row.state,
            worker=row.worker,
            elapsed_seconds=row.elapsed_seconds,
            opened=True,
        )
        if row.state is RunState.ENDING:
            live.finish(Ending(row.cause or "lost", row.detail, row.status))
        self._dispatch.live[row.run] = live

    async def _announce(self) -> None:
        """Until the record takes it: what this installation is and can promise."""
        body = {"version": bailiwick.__version__, "configuration": self._configuration}
        promises = {"separate_accounts": self._separate, "landlock": confine.landlock_version()}
        while not await self._try_to_record("installation.started", **body, **promises):  # noqa: ASYNC110  it waits for another process
            await anyio.sleep(_TICK_SECONDS_IDLE)

    async def _record(self, kind: str, **body: object) -> None:
        await self._recorder.append_durably(Event(id=self._ids.event(), kind=kind, time=timestamp(self._clock.now()), body=body))

    async def _tick(self) -> None:
        """Wall clocks, expiries, and processes that ended out of turn."""
        before = self._clock.monotonic()
        while True:
            await anyio.sleep(_TICK_SECONDS if self._dispatch.live else _TICK_SECONDS_IDLE)
            now = self._clock.monotonic()
            if self._dispatch.live:
                self.idle_since = now
            try:
                for live in list(self._dispatch.live.values()):
                    await self._count(live, now - before)
                await self._signoffs.expire()
                await self._watch_processes()
            except BailiwickError as error:  # a full disk, a process that is down: the next tick tries again
                print(f"tick: {error}", flush=True)  # noqa: T201
            before = now

    async def _watch_processes(self) -> None:
        try:
            processes = self._processes()
        except BackendError:  # the parent is stopping; it will tell us
            return
        if self._restarts is None:  # what ended before our time was recorded then, but our own end was not
            self._restarts = {process.name: process.restarts for process in processes if process.name != "governor"}
        for process in processes:
            if process.restarts > self._restarts.get(process.name, 0):
                self._restarts[process.name] = process.restarts
                await self._try_to_record("process.ended", process=process.name, detail=process.detail, restarts=process.restarts)

    async def _count(self, live: Live, seconds: float) -> None:
        """The wall clock, which stands still while an action waits for sign-off, though not for ever: an agent must not live on by asking."""
        if live.state is not RunState.RUNNING:
            return
        if live.parked and live.parked_seconds < limits.RUN_PARKED_SECONDS_MAX:
            live.parked_seconds += seconds
            return
        whole = int(live.elapsed_seconds)
        live.elapsed_seconds += seconds
        if int(live.elapsed_seconds) > whole:
            self._runs.note_elapsed(live.run, live.elapsed_seconds)
        if live.elapsed_seconds > live.definition.wall_seconds:
            await self._dispatch.kill(live, Ending("wall", f"ran for {live.definition.wall_seconds:g} s, its limit"))

    async def _try_to_record(self, kind: str, **body: object) -> bool:
        try:
            await self._record(kind, **body)
            return True
        except BailiwickError as error:
            print(f"{kind} is not recorded: {error}", flush=True)  # noqa: T201
            return False

    async def _end_all(self) -> None:
        for live in list(self._dispatch.live.values()):
            if live.ending is None:
                try:
                    await self._dispatch.kill(live, Ending("killed", "the installation is stopping"))
                except BailiwickError:
                    live.finish(Ending("killed", "the installation is stopping"))
        await self._dispatch.wait_empty()
        await self._try_to_record("installation.stopped", operator=self._stopped_by)

    async def _greet_launcher(self) -> None:
        listed = await self._link("launcher").call_now(ListSandboxes())
        assert isinstance(listed, SandboxesListed)
        for run in self._dispatch.reconcile(listed):
            await self._link("launcher").call_now(DestroySandbox(run=run))

    async def _greet_worker(self, name: str) -> None:
        await self._dispatch.greet_worker(name)

    async def _void_holds(self, run: str) -> None:
        await self._signoffs.void_run(run)

    async def _greet_broker(self) -> None:
        await self._dispatch.greet_broker()

    async def _greet_recorder(self) -> None:
        await self._reading.subscribe(self._recording)

    def _link(self, name: str) -> Link:
        return next(link for link in self._links if link.name == name)

    # What the other processes say.

    async def _from_launcher(self, _channel: Channel, received: Received) -> Reply | None:
        if isinstance(received.message, AgentExited):
            self._dispatch.heard_exit(received.message)
            return None
        raise CallerError(f"launcher sent {type(received.message).__name__}; only AgentExited is expected")

    async def _from_worker(self, name: str, _channel: Channel, received: Received) -> Reply | None:
        """A worker speaks for the runs it serves and for no others."""
        match received.message:
            case ReportUsage(run=run, used=used, parked=parked):
                if (live := self._dispatch.live.get(run)) and live.worker == name:
                    live.used, live.parked = used, parked
                return None
            case OpenHold() as asked:
                self._served(asked.run, name)
                return Reply(await self._signoffs.open(asked))
            case RedeemHold() as asked:
                if self._served(asked.run, name).state is RunState.PAUSED:
                    raise Conflict(f"run {asked.run} is paused; the grant stays until it is resumed, ask again then")
                await self._signoffs.redeem(asked)
                return None
            case other:
                raise CallerError(f"a gateway worker sent {type(other).__name__}; OpenHold, RedeemHold and ReportUsage are expected")

    def _served(self, run: str, worker: str) -> Live:
        live = self._dispatch.live.get(run)
        if live is None or live.worker != worker:
            raise Forbidden(f"run {run} is not served by {worker}")
        return live

    # What operators ask.

    def agents(self) -> list[str]:
        return sorted(self._installation.agents)

    def status(self) -> StatusView:
        size, root = self._reading.head()
        return StatusView(
            version=bailiwick.__version__,
            started=self._started,
            state_directory=str(self._layout.root),
            configuration=self._configuration,
            processes=self._processes(),
            runs_live=len(self._dispatch.live),
            holds_pending=len(self._signoffs.views("pending")),
            record_size=size,
            record_root=root,
        )

    async def request_run(self, request: RunRequest, operator: Operator) -> RunView:
        if self.stopping.is_set() or self._tasks is None:
            raise Conflict("the installation is stopping; start it again with `bailiwick up`")
        if request.agent is None and self._separate and "admin" not in operator.roles:
            # The launcher reads workspace and trees with root's rights, which are not the operator's.
            raise Forbidden("a command of one's own needs the role admin where the installation runs as root; run an agent of the configuration")
        declared = self._installation.agents.get(request.agent) if request.agent is not None else None
        if declared is not None and request.observe and not declared.observe and "admin" not in operator.roles:
            # Observing forwards what the boundary would hold or deny: that is for who may change the boundary, not for who may start a run.
            raise Forbidden(f"observing {request.agent} needs the role admin; or set `observe: true` on it in the configuration")
        run = new_run_id()
        definition = define(run, request, self._installation)
        row = RunRow(
            run=run,
            agent=request.agent or AD_HOC,
            task=request.task or " ".join(request.command),
            state=RunState.REQUESTED,
            operator=operator.name,
            observe=definition.observe,
            definition=definition,
            requested=timestamp(self._clock.now()),
            worker=self._dispatch.pick_worker(),
        )
        live = Live(run=run, agent=row.agent, task=row.task, operator=row.operator, definition=definition, state=row.state, worker=row.worker)
        await self._dispatch.record(
            live,
            "run.requested",
            operator=operator.name,
            task=row.task,
            policy=definition.policy,
            observe=definition.observe,
            identity=self._identity(row),
            limits={"wall_seconds": int(definition.wall_seconds), "budget": msgspec.to_builtins(definition.budget)},
        )
        self._runs.insert(row)
        self._dispatch.live[run] = live
        self._tasks.start_soon(self._dispatch.keep, live)
        return self._view(row)

    def runs(self, *, state: str | None, agent: str | None, limit: int) -> list[RunView]:
        if state is not None and state not in set(RunState):
            raise CallerError(f"state {state!r} is unknown; must be one of {', '.join(RunState)}")
        return [self._view(row) for row in self._runs.select(state=state, agent=agent, limit=min(limit, _LIST_RUNS_MAX))]

    def run(self, run: RunId) -> RunView:
        return self._view(self._runs.get(run), counted=True)

    async def kill_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        await self._dispatch.kill(self._living(run), Ending("killed", reason or "no reason given"), operator=operator.name)
        return self.run(run)

    async def pause_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        await self._dispatch.pause(self._living(run), operator=operator.name, reason=reason)
        return self.run(run)

    async def resume_run(self, run: RunId, operator: Operator, reason: str) -> RunView:
        await self._dispatch.resume(self._living(run), operator=operator.name, reason=reason)
        return self.run(run)

    def holds(self, *, state: str | None) -> list[HoldView]:
        return self._signoffs.views(state)

    def hold(self, hold: HoldId) -> HoldView:
        return self._signoffs.view(hold)

    async def settle_hold(self, hold: HoldId, operator: Operator, *, granted: bool, why: str) -> HoldView:
        return await self._signoffs.settle(hold, operator, granted=granted, why=why)

    def events(self, *, run: RunId | None, after: int, limit: int, kinds: Sequence[str] | None = None) -> list[RecordedEvent]:
        return self._reading.events(run=run, after=after, limit=limit, kinds=kinds)

    async def wait_events(self, after: int, seconds_max: float) -> int:
        return await self._reading.wait_newer(after, seconds_max)

    def changes(self, run: RunId) -> ChangesView:
        row = self._runs.get(run)
        found = row.changes or {"changes": [], "refused": []}
        return ChangesView(run=row.run, workspace=row.definition.workspace, changes=found["changes"], refused=found["refused"], applied=row.applied)

    def changes_archive(self, run: RunId) -> Path | None:
        archive = self._runs.get(run).archive
        return Path(archive) if archive else None

    async def mark_applied(self, run: RunId, operator: Operator, directory: str) -> None:
        row = self._runs.get(run)
        live = Live(run=run, agent=row.agent, task=row.task, operator=row.operator, definition=row.definition, state=row.state, worker=row.worker)
        await self._dispatch.record(live, "run.applied", operator=operator.name, directory=directory)
        self._runs.note_applied(run, timestamp(self._clock.now()))

    async def export(self, run: RunId | None) -> Path:
        if run is not None:
            self._runs.get(run)
        return await self._reading.export(run, self._layout.governor / "exports", self._recording)

    def record_key(self) -> str:
        return self._reading.key()

    def policy(self, agent: str) -> str:
        declared = self._installation.agents.get(agent)
        if declared is None:
            raise NotFound(f"agent {agent!r} is not in the configuration; known: {', '.join(self.agents()) or 'none'}")
        return render_policy(compiled(agent, declared, self._installation))

    async def shutdown(self, operator: Operator) -> None:
        self._stopped_by = operator.name
        self.stopping.set()

    def _living(self, run: RunId) -> Live:
        live = self._dispatch.live.get(run)
        if live is None:
            self._runs.get(run)
            raise Conflict(f"run {run} has ended; `bailiwick trace {run}` shows how")
        return live

    def _view(self, row: RunRow, *, counted: bool = False) -> RunView:
        live = self._dispatch.live.get(row.run)
        refusals = self._reading.refusals(row.run) if live is not None or counted else (row.held, row.denied)
        return view_of(row, live, identity=self._identity(row), refusals=refusals)

    def _identity(self, row: RunRow) -> str:
        return f"spiffe://{self._installation.trust_domain}/agent/{row.agent}/run/{row.run}"

    def _processes(self) -> list[ProcessView]:
        up = {link.name: link.up for link in self._links} | {"governor": True}
        return read_processes(self._layout, up)
