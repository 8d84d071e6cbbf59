import dataclasses
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bailiwick.critic import repository
from bailiwick.critic.repository import Holds
from bailiwick.critic.signoff import HeldAction, HoldEvent, HoldState, Outcome, Signature
from bailiwick.kernel.errors import BailiwickError, Conflict, NotFound
from bailiwick.kernel.ids import HoldId, RunId, new_hold_id

NOON = datetime(2026, 1, 2, 12, 0, 0, 250, tzinfo=UTC)
GRANT = {"run": "run-1", "digest": "sha256:d", "policy": "sha256:p", "now": NOON + timedelta(minutes=5)}


def asked(**changed: Any) -> HeldAction:
    values: dict[str, Any] = {
        "hold": new_hold_id(),
        "run": RunId("run-1"),
        "agent": "deployer",
        "action": "a-1",
        "dispatched_by": "ana",
        "digest": "sha256:d",
        "policy": "sha256:p",
        "shown": {"verb": "write", "resource": {"path": "/é"}, "size": 3},
        "body_text": 'body "quoted"\n',
        "rules": ("deployer/boundary/2",),
        "approvers": ("oncall", "leads"),
        "quorum": 2,
        "wait_seconds": 600.5,
        "four_eyes": True,
        "opened": NOON,
        "expires": NOON + timedelta(hours=2),
    }
    return HeldAction(**values | changed)


def signed(operator: str, outcome: Outcome = "granted") -> Signature:
    return Signature(operator=operator, outcome=outcome, why="because", time=NOON + timedelta(minutes=1))


def granted(holds: Holds, **changed: Any) -> HeldAction:
    held, _, _ = holds.open(asked(**changed))
    return holds.sign(held, signed("bo"), HoldEvent.GRANTED, "granted by bo")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holds.db"


@pytest.fixture
def holds(path: Path) -> Iterator[Holds]:
    opened = Holds(path)
    yield opened
    opened.close()


def test_a_hold_keeps_all_it_was_opened_with(holds: Holds, path: Path) -> None:
    """Every field comes back as it went in, signatures included, also after a restart."""
    first = asked()
    held, new, ended = holds.open(first)
    assert (held, new, ended) == (first, True, [])
    once = holds.sign(held, signed("bo"), HoldEvent.SIGNED, "signed by bo")
    both = holds.sign(once, signed("cy"), HoldEvent.GRANTED, "granted by bo, cy")
    assert both == dataclasses.replace(first, state=HoldState.GRANTED, reason="granted by bo, cy", signatures=(signed("bo"), signed("cy")))
    holds.close()
    again = Holds(path)
    assert again.get(first.hold) == both
    assert again.find("run-1", "sha256:d") == both
    again.close()


def test_an_identical_retry_finds_its_hold(holds: Holds) -> None:
    """Same run, digest and policy: the pending, granted or denied hold is found again, and no second one opened."""
    held, _, _ = holds.open(asked())
    assert holds.open(asked())[:2] == (held, False)
    grant = holds.sign(held, signed("bo"), HoldEvent.GRANTED, "granted by bo")
    assert holds.open(asked())[:2] == (grant, False)
    denied = holds.sign(grant, signed("bo", "denied"), HoldEvent.DENIED, "denied by bo")
    assert holds.open(asked())[:2] == (denied, False)
    assert len(holds.select()) == 1


def test_another_run_action_or_boundary_is_another_hold(holds: Holds) -> None:
    """A grant is found by nobody else; a denial under an old boundary does not bind the new one."""
    granted(holds)
    assert holds.open(asked(run=RunId("run-2")))[1]
    assert holds.open(asked(digest="sha256:e"))[1]
    held, new, ended = holds.open(asked(policy="sha256:q"))
    assert new
    assert [(old.state, old.policy) for old in ended] == [(HoldState.VOID, "sha256:p")]
    holds.sign(held, signed("bo", "denied"), HoldEvent.DENIED, "no")
    assert holds.open(asked(policy="sha256:r"))[1]


def test_what_is_over_is_opened_anew(holds: Holds) -> None:
    """An expired, void or redeemed hold answers no retry."""
    late = NOON + timedelta(hours=2)
    old = granted(holds)
    held, new, ended = holds.open(asked(opened=late, expires=late + timedelta(hours=1)))
    assert new
    assert [part.hold for part in ended] == [old.hold]
    assert ended[0].state is HoldState.EXPIRED
    holds.settle(held, HoldEvent.VOIDED, "the run ended")
    third = granted(holds)
    holds.redeem(third.hold, **GRANT)
    assert holds.open(asked())[1]


def test_a_grant_is_used_once(holds: Holds, path: Path) -> None:
    """The second redemption is refused and says so, also after a restart."""
    held = granted(holds)
    assert holds.redeem(held.hold, **GRANT).state is HoldState.REDEEMED
    with pytest.raises(Conflict, match="redeemed"):
        holds.redeem(held.hold, **GRANT)
    holds.close()
    again = Holds(path)
    with pytest.raises(Conflict, match="redeemed"):
        again.redeem(held.hold, **GRANT)
    again.close()


@pytest.mark.parametrize("changed", [{"run": "run-2"}, {"digest": "sha256:e"}, {"policy": "sha256:q"}, {"now": NOON + timedelta(days=1)}])
def test_a_refused_redemption_uses_nothing(holds: Holds, changed: dict[str, Any]) -> None:
    """For another run, action or boundary, or too late, the grant stays as it is."""
    held = granted(holds)
    with pytest.raises(Conflict):
        holds.redeem(held.hold, **GRANT | changed)
    assert holds.get(held.hold).state is HoldState.GRANTED


def test_a_grant_is_used_for_one_action_which_may_ask_again(holds: Holds, path: Path) -> None:
    """Who lost the answer hears it again, also after a restart; another action, another digest or no action at all is refused."""
    held = granted(holds)
    assert holds.redeem(held.hold, **GRANT, action="a-7").redeemed_by == "a-7"
    again = Holds(path)
    late = GRANT | {"now": held.expires + timedelta(days=1)}
    assert again.redeem(held.hold, **late, action="a-7").state is HoldState.REDEEMED
    for changed in (
        {"action": "a-8"},
        {"action": ""},
        {"action": "a-7", "run": "run-2"},
        {"action": "a-7", "digest": "sha256:e"},
        {"action": "a-7", "policy": "x"},
    ):
        with pytest.raises(Conflict):
            again.redeem(held.hold, **GRANT | changed)
    again.close()


def test_a_pending_hold_is_not_redeemed(holds: Holds) -> None:
    """Nor one that nobody knows."""
    held, _, _ = holds.open(asked())
    with pytest.raises(Conflict, match="pending"):
        holds.redeem(held.hold, **GRANT)
    with pytest.raises(NotFound, match="hold-0"):
        holds.redeem("hold-0", **GRANT)


def test_of_two_who_redeem_at_once_one_wins(holds: Holds, path: Path) -> None:
    """Connections of their own, at the same moment, many times over: one success each."""
    for number in range(20):
        digest = f"sha256:{number}"
        held = granted(holds, digest=digest)
        begin, results = threading.Barrier(4), list[str]()

        def redeem(held: HeldAction = held, digest: str = digest, begin: threading.Barrier = begin, results: list[str] = results) -> None:
            mine = Holds(path)
            begin.wait(10)
            try:
                mine.redeem(held.hold, **GRANT | {"digest": digest})
                results.append("redeemed")
            except Conflict:
                results.append("refused")
            finally:
                mine.close()

        threads = [threading.Thread(target=redeem) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(results) == ["redeemed", "refused", "refused", "refused"]


def test_of_two_who_decide_on_the_same_hold_one_wins(holds: Holds) -> None:
    """Who signs or settles what has changed meanwhile is told to look again, and writes nothing."""
    held, _, _ = holds.open(asked())
    holds.sign(held, signed("bo"), HoldEvent.SIGNED, "signed by bo")
    with pytest.raises(Conflict, match="look at it again"):
        holds.sign(held, signed("cy"), HoldEvent.GRANTED, "granted")
    now = holds.get(held.hold)
    holds.settle(now, HoldEvent.VOIDED, "the run ended")
    for event in HoldEvent:
        with pytest.raises(Conflict):
            holds.settle(now, event, "late")
        with pytest.raises(Conflict):
            holds.sign(now, signed("cy"), event, "late")
    assert holds.get(held.hold).signatures == (signed("bo"),)
    assert holds.get(held.hold).reason == "the run ended"


def test_nobody_signs_the_same_word_twice(holds: Holds) -> None:
    """The database refuses what the code should have."""
    held, _, _ = holds.open(asked())
    once = holds.sign(held, signed("bo"), HoldEvent.SIGNED, "signed by bo")
    with pytest.raises(BailiwickError, match="UNIQUE"):
        holds.sign(once, signed("bo"), HoldEvent.GRANTED, "granted by bo, bo")
    assert holds.get(held.hold) == once


def test_time_ends_what_is_open(holds: Holds) -> None:
    """At its expiry, to the microsecond, a pending or granted hold is over; what had ended before is left alone."""
    pending, _, _ = holds.open(asked(digest="sha256:1", expires=NOON + timedelta(minutes=1)))
    grant = granted(holds, digest="sha256:2", expires=NOON + timedelta(minutes=2))
    used = granted(holds, digest="sha256:3", expires=NOON + timedelta(minutes=30))
    holds.redeem(used.hold, **GRANT | {"digest": "sha256:3"})
    assert holds.next_expiry() == pending.expires
    assert holds.expire_due(NOON + timedelta(seconds=59.999999)) == []
    (first,) = holds.expire_due(NOON + timedelta(minutes=1))
    assert (first.hold, first.state, first.reason) == (pending.hold, HoldState.EXPIRED, "nobody signed in time")
    (second,) = holds.expire_due(NOON + timedelta(hours=9))
    assert (second.hold, second.reason) == (grant.hold, "the grant was not used in time")
    assert holds.next_expiry() is None
    assert holds.get(used.hold).state is HoldState.REDEEMED


def test_a_run_that_ends_and_a_boundary_that_changes_void_what_is_open(holds: Holds) -> None:
    """Of that run, or under another boundary of that agent; nothing else."""
    one, _, _ = holds.open(asked(digest="sha256:1"))
    other, _, _ = holds.open(asked(run=RunId("run-2")))
    foreign, _, _ = holds.open(asked(run=RunId("run-3"), agent="reviewer"))
    assert [held.hold for held in holds.void_run("run-1", "the run ended")] == [one.hold]
    assert [held.hold for held in holds.void_changed("deployer", "sha256:new")] == [other.hold]
    assert holds.void_changed("reviewer", "sha256:p") == []
    assert [held.hold for held in holds.select(state=HoldState.PENDING)] == [foreign.hold]
    assert [held.hold for held in holds.select(run="run-2")] == [other.hold]


def test_a_run_cannot_fill_the_inbox(holds: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many that wait, a run's next is refused; another run's is not."""
    monkeypatch.setattr(repository, "OPEN_PER_RUN_MAX", 3)
    for number in range(3):
        holds.open(asked(digest=f"sha256:{number}"))
    with pytest.raises(Conflict, match="at most 3"):
        holds.open(asked(digest="sha256:4"))
    assert not holds.open(asked(digest="sha256:2"))[1]
    assert holds.open(asked(run=RunId("run-2")))[1]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE holds SET state = 'pending' WHERE state = 'redeemed'",
        "UPDATE holds SET state = 'granted' WHERE state = 'redeemed'",
        "UPDATE holds SET digest = 'sha256:evil'",
        "UPDATE holds SET body_text = 'harmless'",
        "UPDATE holds SET expires = '2099-01-01T00:00:00.000000Z'",
        "UPDATE holds SET quorum = 1",
        "UPDATE holds SET redeemed_by = 'a-9'",
    ],
)
def test_the_database_refuses_to_reopen_or_rewrite(holds: Holds, path: Path, statement: str) -> None:
    """An ended hold stays ended and what was shown stays as it was, whatever the code believes."""
    holds.redeem(granted(holds).hold, **GRANT)
    raw = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute(statement)
    raw.close()


def test_only_a_grant_becomes_redeemed_in_the_database(holds: Holds, path: Path) -> None:
    """Not a pending hold, by whatever statement."""
    holds.open(asked(hold=HoldId("hold-1")))
    raw = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="only a granted one"):
        raw.execute("UPDATE holds SET state = 'redeemed'")
    raw.close()


def test_the_database_holds_one_open_hold_for_one_action(holds: Holds, path: Path) -> None:
    """A second one for the same run and digest could be granted and used besides the first."""
    first, _, _ = holds.open(asked())
    columns = [row[1] for row in holds._connection.execute("PRAGMA table_info(holds)")]
    copied = ", ".join("'hold-2'" if column == "hold" else column for column in columns)
    raw = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        raw.execute(f"INSERT INTO holds SELECT {copied} FROM holds WHERE hold = '{first.hold}'")
    raw.close()
