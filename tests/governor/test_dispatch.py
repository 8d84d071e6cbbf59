"""A run from request to nothing left, with every step failing once, twice, or for good until it is tried again."""

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from bailiwick.broker.messages import GrantLease, LeasesRevoked, RevokeLeases
from bailiwick.critic.enforcement import BudgetLimits, CloseRun, OpenRun, RunClosed, Usage
from bailiwick.governor.definition import LeaseTerms, RunDefinition
from bailiwick.governor.dispatch import Dispatcher, Neighbours
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.live import Ending, Live
from bailiwick.governor.repository import RunRow, Runs
from bailiwick.kernel.channel import Done, Message
from bailiwick.kernel.clock import SystemClock, timestamp
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, Conflict
from bailiwick.kernel.ids import RunId
from bailiwick.record.event import Event
from bailiwick.sandbox.messages import (
    AgentExited,
    AgentStarted,
    CollectWorkspace,
    CreateSandbox,
    DestroySandbox,
    Finding,
    FreezeRun,
    HandOver,
    KillRun,
    RunStats,
    SandboxCreated,
    SandboxesListed,
    SandboxState,
    StartAgent,
    ThawRun,
    WorkspaceCollected,
)
from bailiwick.sandbox.spec import SandboxSpec

pytestmark = pytest.mark.anyio

STATS = RunStats(cpu_seconds=0.1, memory_bytes=1, memory_bytes_max=1, pids=1, disk_bytes=1)
STEPS = [GrantLease, OpenRun, CreateSandbox, StartAgent, KillRun, CloseRun, RevokeLeases, CollectWorkspace, DestroySandbox]
BEFORE_THE_AGENT = STEPS[:4]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class World:
    """Every neighbour at once: remembers what it was asked, in order, with the events between, and fails where it is told to."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.failures: dict[type[Message] | str, list[BailiwickError]] = {}
        self.findings = [Finding(check="network.route", held=True, detail="none")]
        self.after_start: Callable[[], Awaitable[None]] | None = None

    def fail(self, step: type[Message] | str, *errors: BailiwickError) -> None:
        self.failures[step] = list(errors)

    def _maybe_fail(self, step: type[Message] | str) -> None:
        if waiting := self.failures.get(step):
            raise waiting.pop(0)

    async def call(self, message: Message, *, seconds_max: float = 0) -> Message:
        self.log.append(message)
        self._maybe_fail(type(message))
        match message:
            case CreateSandbox():
                return SandboxCreated(backend="fake", findings=self.findings, capabilities={}, workspace_files=1)
            case StartAgent():
                if self.after_start is not None:
                    await self.after_start()
                return AgentStarted(pid=7)
            case CloseRun():
                return RunClosed(connections=0, unfinished=[])
            case RevokeLeases():
                return LeasesRevoked(leases=["l"])
            case CollectWorkspace():
                return WorkspaceCollected(changes=[], archive="", refused=[])
        return Done()

    call_now = call

    async def append_durably(self, event: Event) -> int:
        self._maybe_fail(event.kind)
        self.log.append(event)
        return len(self.log)

    def asked(self, step: type[Message]) -> list[Message]:
        return [entry for entry in self.log if isinstance(entry, step)]

    def events(self, kind: str) -> list[Event]:
        return [entry for entry in self.log if isinstance(entry, Event) and entry.kind == kind]

    def position(self, wanted: type[Message] | str) -> int:
        return next(index for index, entry in enumerate(self.log) if (entry.kind == wanted if isinstance(entry, Event) else type(entry) is wanted))


async def _nothing(*_: Any) -> None:
    return


def definition() -> RunDefinition:
    return RunDefinition(
        spec=SandboxSpec(command=["/usr/bin/true"], environment={"PATH": "/usr/bin"}, trust_bundle="", workspace="/w"),
        wall_seconds=60,
        boundary="{}",
        policy="p",
        observe=False,
        hosts={},
        models=[],
        budget=BudgetLimits(),
        leases=[LeaseTerms(credential="c", hosts=["h"], verbs=["read"], template="A: {value}", ttl_seconds=60)],
        workspace="/w",
    )


class Stage:
    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.recorded_leases: dict[str, str] = {}
        self.runs = Runs(directory / "state.db")
        near: Any = self.world
        self.dispatcher = Dispatcher(
            Neighbours(
                launcher=near,
                broker=near,
                workers={"gateway-0": near},
                recorder=near,
                usage=lambda run: Usage(calls=2),
                names=lambda run: ["a.example", "b.example"],
                refusals=lambda run: (1, 3),
                leases=lambda run: dict(self.recorded_leases),
                checkpoint=_nothing,
                void_holds=_nothing,
            ),
            self.runs,
            SystemClock(),
        )
        row = RunRow(
            run=RunId("run-1"),
            agent="a",
            task="t",
            state=RunState.REQUESTED,
            operator="ana",
            observe=False,
            definition=definition(),
            requested="2026-01-01T00:00:00.000000Z",
            worker="gateway-0",
        )
        self.runs.insert(row)
        self.live = Live(run=row.run, agent="a", task="t", operator="ana", definition=row.definition, state=RunState.REQUESTED, worker="gateway-0")
        self.dispatcher.live[row.run] = self.live

    def exit(self, status: int = 0, cause: str = "exited") -> None:
        self.dispatcher.heard_exit(AgentExited(run="run-1", status=status, cause=cause, detail="", stats=STATS))

    async def play(self) -> RunRow:
        with anyio.fail_after(20):
            await self.dispatcher.keep(self.live)
        return self.runs.get("run-1")

    async def play_to_exit(self) -> RunRow:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._exit_when_running)
            row = await self.play()
            tasks.cancel_scope.cancel()
        return row

    async def _exit_when_running(self) -> None:
        while self.live.state is not RunState.RUNNING:
            await anyio.sleep(0)
        self.exit()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.runs.close()


async def test_every_step_has_its_cause_on_file_before_it_is_taken(stage: Stage) -> None:
    """Lease, boundary, sandbox, the probe's findings on file, the start on file, the start; and at the end nothing is left, on file."""
    row = await stage.play_to_exit()
    world = stage.world
    order: list[type[Message] | str] = [
        GrantLease, OpenRun, CreateSandbox, "run.probed", "run.started", StartAgent, KillRun, CloseRun, RevokeLeases, CollectWorkspace, "run.workspace",
        DestroySandbox, "run.ended",
    ]  # fmt: skip
    positions = [world.position(step) for step in order]
    assert positions == sorted(positions)
    assert (row.state, row.cause, row.status) == (RunState.ENDED, "exited", 0)
    assert row.usage == Usage(calls=2)
    assert (row.held, row.denied) == (1, 3)
    assert stage.dispatcher.live == {}


@pytest.mark.parametrize("step", BEFORE_THE_AGENT, ids=lambda step: step.__name__)
async def test_a_start_that_fails_is_undone_whole(stage: Stage, step: type[Message]) -> None:
    """Whatever step of the start fails, the agent does not run on, and every closing step is taken."""
    stage.world.fail(step, BackendError("broken"))
    row = await stage.play()
    assert (row.state, row.cause) == (RunState.ENDED, "sandbox")
    assert "broken" in row.detail
    for closing in (KillRun, RevokeLeases, DestroySandbox):
        assert stage.world.asked(closing)
    assert stage.world.asked(StartAgent) == [] or step is StartAgent
    assert stage.world.events("run.ended")


@pytest.mark.parametrize("kind", ["run.probed", "run.started"])
async def test_what_cannot_be_recorded_does_not_happen(stage: Stage, kind: str) -> None:
    """Invariant 3: without its durable event the agent is not started."""
    stage.world.fail(kind, BackendError("the record is down"))
    row = await stage.play()
    assert row.state is RunState.ENDED
    assert stage.world.asked(StartAgent) == []


async def test_a_probe_that_found_the_sandbox_open_means_no_start(stage: Stage) -> None:
    """The attested start: one finding that does not hold, and the agent never runs; the findings are on file."""
    stage.world.findings = [Finding(check="network.route", held=False, detail="a default route")]
    row = await stage.play()
    assert stage.world.asked(StartAgent) == []
    assert row.cause == "sandbox"
    assert "network.route" in row.detail
    assert stage.world.events("run.probed")[0].body["findings"][0]["held"] is False


@pytest.mark.parametrize("step", [KillRun, CloseRun, RevokeLeases, DestroySandbox], ids=lambda step: step.__name__)
async def test_an_end_is_never_given_up(stage: Stage, step: type[Message]) -> None:
    """A closing step that fails is tried again until it is done, and only then the run has ended."""
    stage.world.fail(step, BackendError("down"), BackendError("still down"))
    row = await stage.play_to_exit()
    assert row.state is RunState.ENDED
    assert len(stage.world.asked(step)) == 3


async def test_the_end_waits_for_the_record(stage: Stage) -> None:
    """run.ended is durable before the run counts as ended."""
    stage.world.fail("run.ended", BackendError("down"), BackendError("down"))
    row = await stage.play_to_exit()
    assert row.state is RunState.ENDED
    assert len(stage.world.events("run.ended")) == 1


async def test_a_refused_definition_is_the_callers_fault(stage: Stage) -> None:
    """'The sandbox broke' is never shown for what was asked wrongly."""
    stage.world.fail(CreateSandbox, CallerError("workspace does not exist"))
    assert (await stage.play()).cause == "refused"


async def test_an_agent_quicker_than_the_answer_to_its_start_has_exited(stage: Stage) -> None:
    """The exit may be heard before StartAgent is answered."""

    async def exit_first() -> None:
        stage.exit(status=5)

    stage.world.after_start = exit_first
    row = await stage.play()
    assert (row.cause, row.status, row.state) == ("exited", 5, RunState.ENDED)


async def test_a_kill_closes_the_gateway_and_is_on_file_first(stage: Stage) -> None:
    """The order is recorded before anything is stopped; the first cause stands; a second kill is refused."""

    async def kill() -> None:
        while stage.live.state is not RunState.RUNNING:
            await anyio.sleep(0)
        await stage.dispatcher.kill(stage.live, Ending("killed", "enough"), operator="bo")
        with pytest.raises(Conflict):
            await stage.dispatcher.kill(stage.live, Ending("killed", "again"))
        stage.exit(status=-9)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        row = await stage.play()
    assert (row.cause, row.detail, row.status) == ("killed", "enough", None)
    assert stage.world.position("run.killed") < min(stage.world.position(KillRun), stage.world.position(CloseRun))
    assert stage.world.events("run.killed")[0].body["operator"] == "bo"


async def test_a_run_is_killed_though_the_record_is_down(stage: Stage) -> None:
    """A full disk must not keep an agent alive: the order is carried out, and is on file before the run counts as ended."""
    stage.world.fail("run.killed", BackendError("down"), BackendError("still down"))

    async def kill() -> None:
        while stage.live.state is not RunState.RUNNING:
            await anyio.sleep(0)
        await stage.dispatcher.kill(stage.live, Ending("killed", "enough"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        row = await stage.play()
    assert row.cause == "killed"
    assert stage.world.position(KillRun) < stage.world.position("run.killed") < stage.world.position("run.ended")


async def test_a_fault_of_ours_ends_the_run_it_is_in_and_no_other(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in our own code, at the start or at the end: the run is over in a named state, with everything taken from it, and can be asked for."""
    monkeypatch.setattr(stage.dispatcher, "_totals", lambda live: 1 / 0)
    monkeypatch.setattr("bailiwick.governor.dispatch._RETRY_SECONDS_MAX", 0.01)
    row = await stage.play_to_exit()
    assert row.state is RunState.ENDED
    for closing in (KillRun, CloseRun, RevokeLeases, DestroySandbox):
        assert stage.world.asked(closing)
    assert stage.world.events("run.ended")[-1].body["cause"] == "lost"
    assert stage.dispatcher.live == {}


async def test_a_fault_of_ours_at_the_start_is_not_the_agents(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it reach the keeper of the other runs."""
    monkeypatch.setattr(stage.dispatcher, "_open", lambda live: 1 / 0)
    row = await stage.play()
    assert (row.state, row.cause) == (RunState.ENDED, "sandbox")


async def test_pause_and_resume_are_read_back_and_recorded(stage: Stage) -> None:
    """Paused is said after the launcher froze it; a paused run is not paused again."""
    stage.live.state = RunState.RUNNING
    stage.runs.move("run-1", RunState.REQUESTED, RunState.RUNNING)
    await stage.dispatcher.pause(stage.live, operator="ana")
    assert stage.world.position(FreezeRun) < stage.world.position("run.paused")
    with pytest.raises(Conflict):
        await stage.dispatcher.pause(stage.live, operator="ana")
    await stage.dispatcher.resume(stage.live, operator="ana")
    assert stage.world.position("run.resumed") < stage.world.position(ThawRun)
    assert stage.live.state is RunState.RUNNING


async def test_what_a_restarted_launcher_does_not_hold_is_lost(stage: Stage) -> None:
    """A run whose launcher died ends as lost; a sandbox nobody answers for is named, to be destroyed."""
    stage.live.state = RunState.RUNNING
    stage.runs.move("run-1", RunState.REQUESTED, RunState.RUNNING)
    nobodys = stage.dispatcher.reconcile(SandboxesListed(sandboxes=[SandboxState(run="run-9", state="running")]))
    assert nobodys == ["run-9"]
    row = await stage.play()
    assert (row.state, row.cause) == (RunState.ENDED, "lost")


async def test_a_governor_that_died_while_preparing_ends_the_run(stage: Stage) -> None:
    """Nobody knows how far it came: it is ended, never started a second time."""
    stage.live.state = RunState.PREPARING
    stage.runs.move("run-1", RunState.REQUESTED, RunState.PREPARING)
    row = await stage.play()
    assert stage.world.asked(StartAgent) == []
    assert (row.cause, row.state) == ("lost", RunState.ENDED)
    assert stage.world.asked(DestroySandbox)


async def test_a_restarted_worker_is_told_its_runs_with_what_they_have_used(stage: Stage) -> None:
    """OpenRun says the usage by the record, so that a kill of the worker gives no budget back."""
    stage.live.opened = True
    await stage.dispatcher.greet_worker("gateway-0")
    (opened,) = stage.world.asked(OpenRun)
    assert isinstance(opened, OpenRun)
    assert opened.used == Usage(calls=2)
    assert opened.names == ["a.example", "b.example"]


async def test_a_restarted_broker_is_granted_the_same_leases_again(stage: Stage) -> None:
    """The same lease id and the same expiry: a broker's restart lengthens no lease."""
    await stage.play_to_exit()
    first = stage.world.asked(GrantLease)
    stage.live.ending = None
    stage.dispatcher.live["run-1"] = stage.live
    await stage.dispatcher.greet_broker()
    assert stage.world.asked(GrantLease)[len(first) :] == first


async def test_a_broker_restarted_after_its_governor_is_granted_what_stands_in_the_record(stage: Stage) -> None:
    """A governor that took the run up from another knows its leases from the record: the same id and expiry, or none at all."""
    stage.live.state = RunState.RUNNING
    await stage.dispatcher.greet_broker()
    assert stage.world.asked(GrantLease) == []
    stage.recorded_leases = {"lease-1": "2036-01-01T00:00:00.000000Z"}
    await stage.dispatcher.greet_broker()
    (granted,) = stage.world.asked(GrantLease)
    assert isinstance(granted, GrantLease)
    assert (granted.lease, granted.expires, granted.credential) == ("lease-1", "2036-01-01T00:00:00.000000Z", "c")


@pytest.mark.parametrize("step", [GrantLease, HandOver], ids=lambda step: step.__name__)
async def test_one_run_that_cannot_be_told_of_again_does_not_keep_the_others_from_it(stage: Stage, step: type[Message]) -> None:
    """An expired lease, or a sandbox that is gone, is said in the log; the greeting goes on."""
    stage.live.opened = True
    stage.live.leases = {"lease-1": "2020-01-01T00:00:00.000000Z"}
    stage.dispatcher.live["run-2"] = stage.live
    stage.world.fail(step, CallerError("over"))
    await stage.dispatcher.greet_broker()
    await stage.dispatcher.greet_worker("gateway-0")
    assert len(stage.world.asked(step)) == 2


async def test_a_lease_is_extended_while_its_run_lives_and_not_before_half_its_time(stage: Stage) -> None:
    """Under its own name, until a run that goes on for longer than its lease is over."""
    stage.live.state = RunState.RUNNING
    now = datetime.now(UTC)
    stage.live.leases = {"lease-1": timestamp(now + timedelta(seconds=45))}
    await stage.dispatcher.extend_leases()
    assert stage.world.asked(GrantLease) == []
    stage.live.leases = {"lease-1": timestamp(now + timedelta(seconds=20))}
    await stage.dispatcher.extend_leases()
    (granted,) = stage.world.asked(GrantLease)
    assert isinstance(granted, GrantLease)
    assert granted.lease == "lease-1"
    assert datetime.fromisoformat(granted.expires) >= now + timedelta(seconds=60)
    assert stage.live.leases == {"lease-1": granted.expires}
    stage.live.leases = {"lease-1": timestamp(now)}
    stage.live.finish(Ending("killed"))
    await stage.dispatcher.extend_leases()
    assert len(stage.world.asked(GrantLease)) == 1
