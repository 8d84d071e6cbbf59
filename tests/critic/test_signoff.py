import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bailiwick.critic.signoff import (
    TRANSITIONS,
    ApprovingGroup,
    HeldAction,
    HoldEvent,
    HoldState,
    Outcome,
    Signature,
    after,
    event_of_signature,
    lapse,
    missing_signatures,
    require_redeemable,
)
from bailiwick.kernel.errors import Conflict, Forbidden
from bailiwick.kernel.ids import HoldId, RunId

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
GROUPS = {
    "oncall": ApprovingGroup(operators=frozenset({"ana", "bo"}), quorum=1),
    "leads": ApprovingGroup(operators=frozenset({"bo", "cy", "di"}), quorum=2),
}
APPROVER = frozenset({"approver"})


def held(**changed: Any) -> HeldAction:
    values: dict[str, Any] = {
        "hold": HoldId("hold-1"),
        "run": RunId("run-1"),
        "agent": "deployer",
        "action": "a-1",
        "dispatched_by": "ana",
        "digest": "sha256:d",
        "policy": "sha256:p",
        "shown": {"verb": "write"},
        "body_text": "body",
        "rules": ("deployer/boundary/2",),
        "approvers": ("oncall",),
        "quorum": 1,
        "wait_seconds": 600.0,
        "four_eyes": False,
        "opened": NOON,
        "expires": NOON + timedelta(hours=2),
    }
    return HeldAction(**values | changed)


def signed(operator: str, outcome: Outcome = "granted", *, minutes: float = 1, why: str = "") -> Signature:
    return Signature(operator=operator, outcome=outcome, why=why, time=NOON + timedelta(minutes=minutes))


def sign(hold: HeldAction, signature: Signature, *, roles: frozenset[str] = APPROVER, policy: str = "sha256:p") -> HoldEvent:
    return event_of_signature(hold, signature, roles=roles, groups=GROUPS, policy=policy)[0]


EXPECTED = {
    (HoldState.PENDING, HoldEvent.SIGNED): HoldState.PENDING,
    (HoldState.PENDING, HoldEvent.GRANTED): HoldState.GRANTED,
    (HoldState.PENDING, HoldEvent.DENIED): HoldState.DENIED,
    (HoldState.PENDING, HoldEvent.EXPIRED): HoldState.EXPIRED,
    (HoldState.PENDING, HoldEvent.VOIDED): HoldState.VOID,
    (HoldState.GRANTED, HoldEvent.DENIED): HoldState.DENIED,
    (HoldState.GRANTED, HoldEvent.REDEEMED): HoldState.REDEEMED,
    (HoldState.GRANTED, HoldEvent.EXPIRED): HoldState.EXPIRED,
    (HoldState.GRANTED, HoldEvent.VOIDED): HoldState.VOID,
}


@pytest.mark.parametrize("state", HoldState)
@pytest.mark.parametrize("event", HoldEvent)
def test_every_state_meets_every_event(state: HoldState, event: HoldEvent) -> None:
    """What may follow is in the table; everything else is a conflict that names the state, and an end is an end."""
    assert set(TRANSITIONS) == set(HoldState)
    if (state, event) in EXPECTED:
        assert after(state, event) is EXPECTED[state, event]
    else:
        with pytest.raises(Conflict, match=state.value):
            after(state, event)


def test_one_of_the_group_grants() -> None:
    """A named operator with the role grants a hold whose quorum is one."""
    assert sign(held(), signed("ana")) is HoldEvent.GRANTED
    assert sign(held(), signed("bo"), roles=frozenset({"admin", "viewer"})) is HoldEvent.GRANTED


@pytest.mark.parametrize("roles", [frozenset(), frozenset({"viewer"}), frozenset({"operator"}), frozenset({"viewer", "operator"})])
@pytest.mark.parametrize("outcome", ["granted", "denied"])
def test_only_an_approver_or_admin_signs(roles: frozenset[str], outcome: Outcome) -> None:
    """Being named is not enough without the role."""
    with pytest.raises(Forbidden, match="approver or admin"):
        sign(held(), signed("ana", outcome), roles=roles)


@pytest.mark.parametrize("operator", ["cy", "mallory", "", "ANA", "run-1", "deployer"])
@pytest.mark.parametrize("roles", [APPROVER, frozenset({"admin"})])
def test_only_who_is_named_signs(operator: str, roles: frozenset[str]) -> None:
    """The role is not enough without being in a group the hold names; an admin is no exception."""
    with pytest.raises(Forbidden, match="oncall"):
        sign(held(), signed(operator), roles=roles)


def test_four_eyes_bar_who_dispatched() -> None:
    """With four eyes the operator who started the run neither grants nor counts; another of the group does."""
    assert sign(held(four_eyes=False), signed("ana")) is HoldEvent.GRANTED
    with pytest.raises(Forbidden, match="four eyes"):
        sign(held(four_eyes=True), signed("ana"))
    assert sign(held(four_eyes=True), signed("bo")) is HoldEvent.GRANTED
    assert missing_signatures(held(four_eyes=True), [signed("ana")], GROUPS) == "1 of oncall"


def test_a_quorum_is_of_different_people() -> None:
    """The same operator twice is one signature; the second of a quorum of two grants."""
    hold = held(approvers=("leads",), quorum=2)
    assert sign(hold, signed("cy")) is HoldEvent.SIGNED
    half = dataclasses.replace(hold, signatures=(signed("cy"),))
    with pytest.raises(Conflict, match="has signed"):
        sign(half, signed("cy", minutes=2))
    assert sign(half, signed("di")) is HoldEvent.GRANTED


def test_every_group_needs_its_quorum() -> None:
    """Signatures of one group do not stand for another's; one person in both counts in both."""
    hold = held(approvers=("oncall", "leads"), quorum=2)
    assert missing_signatures(hold, [signed("ana")], GROUPS) == "2 of leads"
    assert missing_signatures(hold, [signed("cy"), signed("di")], GROUPS) == "1 of oncall"
    assert missing_signatures(hold, [signed("bo"), signed("di")], GROUPS) == ""
    assert missing_signatures(held(quorum=2), [signed("ana")], GROUPS) == "1 more"
    assert missing_signatures(held(approvers=("leads",), quorum=1), [signed("cy")], GROUPS) == "1 of leads"


def test_a_group_that_is_gone_grants_nothing() -> None:
    """A group the configuration declares no longer is missing, not satisfied."""
    assert "declared no longer" in missing_signatures(held(approvers=("gone",)), [signed("ana")], GROUPS)
    with pytest.raises(Forbidden):
        sign(held(approvers=("gone",)), signed("ana"))


def test_one_denial_denies() -> None:
    """Whatever the quorum; also after a grant, by the one who granted, as long as it is not used."""
    assert sign(held(approvers=("leads",), quorum=2), signed("cy", "denied")) is HoldEvent.DENIED
    granted = held(state=HoldState.GRANTED, signatures=(signed("ana"),))
    assert sign(granted, signed("ana", "denied", minutes=2)) is HoldEvent.DENIED
    assert missing_signatures(granted, [signed("ana"), signed("ana", "denied")], GROUPS) == "1 of oncall"
    with pytest.raises(Conflict):
        sign(granted, signed("bo"))


@pytest.mark.parametrize("state", [HoldState.DENIED, HoldState.REDEEMED, HoldState.EXPIRED, HoldState.VOID])
@pytest.mark.parametrize("outcome", ["granted", "denied"])
def test_what_is_over_is_not_signed(state: HoldState, outcome: Outcome) -> None:
    """A late signature is a conflict that names the state."""
    with pytest.raises(Conflict, match=state.value):
        sign(held(state=state), signed("ana", outcome))


def test_a_changed_boundary_voids_and_time_expires() -> None:
    """A signature that comes after either grants nothing, whoever gives it."""
    assert sign(held(), signed("ana"), policy="sha256:other") is HoldEvent.VOIDED
    assert sign(held(), signed("ana", minutes=119.99)) is HoldEvent.GRANTED
    assert sign(held(), signed("ana", minutes=120)) is HoldEvent.EXPIRED
    assert lapse(held(state=HoldState.DENIED), NOON + timedelta(days=1), policy="sha256:other") is None


GOOD: dict[str, Any] = {"run": "run-1", "digest": "sha256:d", "policy": "sha256:p", "now": NOON + timedelta(minutes=5)}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"run": "run-2"}, "another run"),
        ({"digest": "sha256:e"}, "another action"),
        ({"policy": "sha256:q"}, "void"),
        ({"now": NOON + timedelta(hours=2)}, "expired"),
    ],
)
def test_a_grant_is_for_one_run_one_action_one_boundary_and_a_time(changed: dict[str, Any], says: str) -> None:
    """Each of the four, alone, makes it unusable, and the refusal says which."""
    granted = held(state=HoldState.GRANTED)
    require_redeemable(granted, **GOOD)
    with pytest.raises(Conflict, match=says):
        require_redeemable(granted, **GOOD | changed)


@pytest.mark.parametrize("state", [state for state in HoldState if state is not HoldState.GRANTED])
def test_only_a_grant_is_redeemable(state: HoldState) -> None:
    """Pending, denied, used, expired and void are told apart."""
    with pytest.raises(Conflict, match=state.value):
        require_redeemable(held(state=state), **GOOD)


def test_a_why_cannot_rewrite_the_terminal() -> None:
    """An approver's text is shown with nothing hidden in it."""
    _, reason = event_of_signature(held(), signed("ana", "denied", why="no\x1b[2J"), roles=APPROVER, groups=GROUPS, policy="sha256:p")
    assert reason == "denied by ana: no\\u{1b}[2J"
