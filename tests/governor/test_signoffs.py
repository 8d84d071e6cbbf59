"""Sign-off as the governor runs it: what a worker may ask, who may answer, and what is on file when."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tests.governor.test_dispatch import definition

from bailiwick.critic.boundary import compile_boundary
from bailiwick.critic.enforcement import HoldSettled, OpenHold, RedeemHold
from bailiwick.critic.rules import ApproverGroup, Rule
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.live import Ending, Live
from bailiwick.governor.signoffs import Signoffs
from bailiwick.governor.views import Operator
from bailiwick.kernel.canonical import digest
from bailiwick.kernel.errors import BackendError, Conflict, Forbidden
from bailiwick.kernel.ids import HoldId, RunId
from bailiwick.record.event import Event

pytestmark = pytest.mark.anyio

GROUPS = {"oncall": ApproverGroup(operators=["ana", "bo"], quorum=2, expires=3600)}
RULE = Rule(hold=["write"], http="config.internal", approvers=["oncall"], four_eyes=True)
BOUNDARY = compile_boundary("a", [RULE], [], GROUPS)
SHOWN = {"verb": "write", "resource": {"path": "/x"}, "arguments": {}, "body": {"sha256": "0", "size": 1, "content_type": ""}}
ANA, BO, CY = (Operator(name=name, roles=frozenset({"approver"})) for name in ("ana", "bo", "cy"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


class Record:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.down = False

    async def append_durably(self, event: Event) -> int:
        await anyio.lowlevel.checkpoint()
        if self.down:
            raise BackendError("recorder is down")
        self.events.append(event)
        return len(self.events)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class Worker:
    def __init__(self) -> None:
        self.told: list[Any] = []

    async def tell(self, message: Any) -> None:
        self.told.append(message)


class Desk:
    def __init__(self, directory: Path) -> None:
        self.record, self.worker, self.clock = Record(), Worker(), Clock()
        frozen = msgspec.structs.replace(definition(), boundary=BOUNDARY.to_json(), policy=BOUNDARY.digest)
        self.live = Live(run=RunId("run-1"), agent="a", task="t", operator="ana", definition=frozen, state=RunState.RUNNING, worker="gateway-0")
        recorder: Any = self.record
        workers: Any = {"gateway-0": self.worker}
        self.signoffs = Signoffs(directory / "holds.db", recorder, workers, {"run-1": self.live}, GROUPS, self.clock)

    def asked(self, **changed: Any) -> OpenHold:
        rule = next(iter(BOUNDARY.holds))
        terms = BOUNDARY.holds[rule]
        asked = OpenHold(
            run="run-1",
            agent="a",
            action="a-1",
            digest=digest(SHOWN),
            shown=SHOWN,
            body_text="x",
            rules=[rule],
            approvers=terms.approvers,
            quorum=terms.quorum,
            wait_seconds=600,
            expires_seconds=terms.expires_seconds,
            four_eyes=terms.four_eyes,
            policy=BOUNDARY.digest,
        )
        return msgspec.structs.replace(asked, **changed)

    async def open(self) -> HoldId:
        return HoldId((await self.signoffs.open(self.asked())).hold)

    def redeem(self, hold: str) -> RedeemHold:
        return RedeemHold(hold=hold, run="run-1", digest=digest(SHOWN), policy=BOUNDARY.digest)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    # `ana` dispatched the run, and the rule wants four eyes: only bo and another may sign.
    desk.signoffs._groups["oncall"] = type(desk.signoffs._groups["oncall"])(operators=frozenset({"ana", "bo", "cy"}), quorum=2)
    yield desk
    desk.signoffs.close()


@pytest.mark.parametrize(
    "weaker",
    [
        {"approvers": ["friends"]},
        {"approvers": []},
        {"quorum": 1},
        {"four_eyes": False},
        {"expires_seconds": 10**6},
        {"rules": []},
        {"rules": ["a/boundary/9"]},
        {"policy": "sha256:0"},
        {"shown": {**SHOWN, "verb": "read"}},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_worker_cannot_make_a_hold_weaker_than_the_boundary(desk: Desk, weaker: dict[str, Any]) -> None:
    """Invariant 7: who may release an action, how many, until when, and for which bytes is the boundary's word, not the worker's."""
    with pytest.raises(Forbidden):
        await desk.signoffs.open(desk.asked(**weaker))
    assert desk.record.events == []
    assert desk.signoffs.views(None) == []


async def test_a_redemption_is_told_again_to_the_action_it_was_for(desk: Desk) -> None:
    """The answer was lost, or the record was down after the grant was used: the same action asks again, and the record has it once."""
    hold = await desk.open()
    for approver in (BO, CY):
        await desk.signoffs.settle(hold, approver, granted=True, why="seen")
    asked = msgspec.structs.replace(desk.redeem(hold), action="a-2")

    async def down(event: Event, **_: Any) -> int:
        raise BackendError("recorder is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.record, "append_durably", down)
        with pytest.raises(BackendError):
            await desk.signoffs.redeem(asked)
    await desk.signoffs.redeem(asked)
    await desk.signoffs.redeem(asked)
    with pytest.raises(Conflict):
        await desk.signoffs.redeem(msgspec.structs.replace(asked, action="a-3"))
    told = [event for event in desk.record.events if event.kind == "hold.redeemed"]
    assert [event.body["by"] for event in told] == ["a-2", "a-2"]
    assert len({event.id for event in told}) == 1  # which the recorder takes once


async def test_two_approvers_release_it_once_and_the_dispatcher_is_neither(desk: Desk) -> None:
    """Four eyes, quorum, one use; each signature on file before it counts."""
    hold = await desk.open()
    with pytest.raises(Forbidden):
        await desk.signoffs.settle(hold, ANA, granted=True, why="mine")
    assert (await desk.signoffs.settle(hold, BO, granted=True, why="seen")).state == "pending"
    assert desk.worker.told == []
    assert (await desk.signoffs.settle(hold, CY, granted=True, why="seen too")).state == "granted"
    assert desk.worker.told == [HoldSettled(hold=hold, state="granted", reason=desk.worker.told[0].reason)]
    await desk.signoffs.redeem(desk.redeem(hold))
    with pytest.raises(Conflict):
        await desk.signoffs.redeem(desk.redeem(hold))
    assert desk.record.kinds() == ["hold.opened", "hold.signed", "hold.signed", "hold.redeemed"]


async def test_two_who_sign_at_once_are_both_right_or_told_why(desk: Desk) -> None:
    """A signature on record is in the hold: a denial and a grant at the same moment leave one outcome, and one of the two hears of it."""
    hold = await desk.open()
    outcomes: list[str] = []

    async def sign(who: Operator, granted: bool) -> None:
        try:
            outcomes.append((await desk.signoffs.settle(hold, who, granted=granted, why="now")).state)
        except Conflict:
            outcomes.append("conflict")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sign, BO, False)
        tasks.start_soon(sign, CY, True)
    assert outcomes == ["denied", "conflict"]
    assert desk.record.kinds().count("hold.signed") == 1
    assert desk.signoffs.view(hold).state == "denied"


async def test_a_hold_that_cannot_be_recorded_is_none(desk: Desk) -> None:
    """A dead recorder: nothing to sign is left behind, and the retry opens one that is on file."""
    desk.record.down = True
    with pytest.raises(BackendError):
        await desk.open()
    assert desk.signoffs.views("pending") == []
    desk.record.down = False
    await desk.open()
    assert desk.record.kinds() == ["hold.opened"]


async def test_what_is_not_recorded_is_not_signed(desk: Desk) -> None:
    """A signature the recorder did not take does not count."""
    hold = await desk.open()
    desk.record.down = True
    with pytest.raises(BackendError):
        await desk.signoffs.settle(hold, BO, granted=True, why="seen")
    assert desk.signoffs.view(hold).signed == []


async def test_an_identical_retry_finds_its_hold_again(desk: Desk) -> None:
    """The hold is durable, the connection is not."""
    assert await desk.open() == await desk.open()
    assert desk.record.kinds() == ["hold.opened"]


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda desk: setattr(desk.clock, "moment", desk.clock.moment + timedelta(hours=2)), "expired"),
        (lambda desk: desk.live.finish(Ending("killed")), "void"),
    ],
    ids=["expired", "run ended"],
)
async def test_an_approval_that_comes_too_late_is_none(desk: Desk, end: Callable[[Desk], None], state: str) -> None:
    """Expired and void are told apart, to the approver, in the record and to the worker."""
    hold = await desk.open()
    end(desk)
    with pytest.raises(Conflict, match=state):
        await desk.signoffs.settle(hold, BO, granted=True, why="late")
    assert desk.signoffs.view(hold).state == state
    assert desk.record.events[-1].body["state"] == state
    assert desk.worker.told[-1].state == state


async def test_holds_expire_by_themselves(desk: Desk) -> None:
    """Without anybody asking, when their time comes and not before."""
    hold = await desk.open()
    await desk.signoffs.expire()
    assert desk.signoffs.view(hold).state == "pending"
    desk.clock.moment += timedelta(hours=2)
    await desk.signoffs.expire()
    assert desk.signoffs.view(hold).state == "expired"
    assert desk.record.kinds() == ["hold.opened", "hold.closed"]


async def test_a_run_that_is_over_holds_nothing(desk: Desk) -> None:
    """What it left open is void, and nothing new is opened."""
    hold = await desk.open()
    await desk.signoffs.void_run("run-1")
    assert desk.signoffs.view(hold).state == "void"
    desk.live.finish(Ending("killed"))
    with pytest.raises(Conflict):
        await desk.open()
