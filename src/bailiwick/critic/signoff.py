"""Sign-off of a held action: who may sign, when it is granted, and what becomes of it. A table and pure functions; `repository` keeps the state.

A hold is for one run, one action digest and one policy digest, and is used once. Denied, expired and void are told apart, because the agent and the
operator must do different things about each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from bailiwick.critic.visible import visible as visible
from bailiwick.kernel.errors import Conflict, Forbidden
from bailiwick.kernel.ids import HoldId, RunId


class HoldState(StrEnum):
    PENDING = "pending"
    GRANTED = "granted"  # and not used yet
    DENIED = "denied"
    REDEEMED = "redeemed"
    EXPIRED = "expired"
    VOID = "void"  # the boundary changed, or the run ended


class HoldEvent(StrEnum):
    SIGNED = "signed"  # a signature that does not complete the quorum
    GRANTED = "granted"  # the one that does
    DENIED = "denied"
    REDEEMED = "redeemed"
    EXPIRED = "expired"
    VOIDED = "voided"


TRANSITIONS: dict[HoldState, dict[HoldEvent, HoldState]] = {
    HoldState.PENDING: {
        HoldEvent.SIGNED: HoldState.PENDING,
        HoldEvent.GRANTED: HoldState.GRANTED,
        HoldEvent.DENIED: HoldState.DENIED,
        HoldEvent.EXPIRED: HoldState.EXPIRED,
        HoldEvent.VOIDED: HoldState.VOID,
    },
    HoldState.GRANTED: {
        HoldEvent.DENIED: HoldState.DENIED,  # an approver takes it back before it is used
        HoldEvent.REDEEMED: HoldState.REDEEMED,
        HoldEvent.EXPIRED: HoldState.EXPIRED,
        HoldEvent.VOIDED: HoldState.VOID,
    },
    HoldState.DENIED: {},
    HoldState.REDEEMED: {},
    HoldState.EXPIRED: {},
    HoldState.VOID: {},
}

Outcome = Literal["granted", "denied"]
SIGNING_ROLES = frozenset({"approver", "admin"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    operator: str
    outcome: Outcome
    why: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovingGroup:
    """A group of approvers as it is when somebody signs."""

    operators: frozenset[str]
    quorum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAction:
    """A hold and all that was shown when it was opened. `dispatched_by` is the operator who started the run."""

    hold: HoldId
    run: RunId
    agent: str
    action: str
    dispatched_by: str
    digest: str
    policy: str
    shown: dict[str, Any]
    body_text: str
    rules: tuple[str, ...]
    approvers: tuple[str, ...]
    quorum: int
    wait_seconds: float
    four_eyes: bool
    opened: datetime
    expires: datetime
    state: HoldState = HoldState.PENDING
    reason: str = ""
    signatures: tuple[Signature, ...] = ()
    redeemed_by: str = ""  # the action it was used up for


def after(state: HoldState, event: HoldEvent) -> HoldState:
    """Conflict where the state forbids the event."""
    found = TRANSITIONS[state].get(event)
    if found is None:
        raise Conflict(f"the hold is {state}; it cannot be {event} any more")
    return found


def event_of_signature(
    held: HeldAction, signature: Signature, *, roles: frozenset[str], groups: Mapping[str, ApprovingGroup], policy: str
) -> tuple[HoldEvent, str]:
    """What the signature makes of the hold, and the reason to show. `groups` and `policy` (the digest of the boundary in force) are those of now.

    Forbidden for who may not sign; Conflict where it is over, or was signed by the same operator before. A hold whose policy changed is voided and one
    past its expiry expired, whatever the signature says.
    """
    if held.state is not HoldState.PENDING and not (held.state is HoldState.GRANTED and signature.outcome == "denied"):
        raise Conflict(f"hold {held.hold} is {held.state}; it can be signed only while it is pending")
    if ended := lapse(held, signature.time, policy=policy):
        return ended
    require_signer(held, signature.operator, roles=roles, groups=groups)
    # A denial is taken from everybody who may sign, also after their own grant: it tightens.
    if signature.outcome == "denied":
        return HoldEvent.DENIED, f"denied by {signature.operator}" + (f": {visible(signature.why)}" if signature.why else "")
    if any(earlier.operator == signature.operator for earlier in held.signatures):
        raise Conflict(f"{signature.operator} has signed hold {held.hold} already; another approver must sign")
    missing = missing_signatures(held, (*held.signatures, signature), groups)
    if missing:
        return HoldEvent.SIGNED, f"signed by {signature.operator}; missing: {missing}"
    return HoldEvent.GRANTED, f"granted by {', '.join(sorted({*_granting(held.signatures), signature.operator}))}"


def require_signer(held: HeldAction, operator: str, *, roles: frozenset[str], groups: Mapping[str, ApprovingGroup]) -> None:
    """Forbidden unless the operator has the role to sign, is in a group the hold names, and with `four_eyes` did not dispatch the run."""
    if not roles & SIGNING_ROLES:
        raise Forbidden(f"{operator} has the roles {', '.join(sorted(roles)) or 'none'}; signing needs approver or admin")
    if held.four_eyes and operator == held.dispatched_by:
        raise Forbidden(f"{operator} dispatched run {held.run}, and the rule asks for four eyes; another approver must sign")
    if not any(operator in groups[name].operators for name in held.approvers if name in groups):
        raise Forbidden(f"{operator} is in none of the groups that may sign hold {held.hold}: {', '.join(held.approvers)}")


def missing_signatures(held: HeldAction, signatures: Sequence[Signature], groups: Mapping[str, ApprovingGroup]) -> str:
    """What is still missing, in words; empty when it is granted. Every group needs its own quorum, and the hold as many different people as it says."""
    granting = {name for name in _granting(signatures) if not (held.four_eyes and name == held.dispatched_by)}
    entitled: set[str] = set()
    missing: list[str] = []
    for name in held.approvers:
        group = groups.get(name)
        if group is None:
            missing.append(f"group {name}, which is declared no longer")
            continue
        signed = granting & group.operators
        entitled |= signed
        if len(signed) < group.quorum:
            missing.append(f"{group.quorum - len(signed)} of {name}")
    if not missing and len(entitled) < max(1, held.quorum):
        missing.append(f"{max(1, held.quorum) - len(entitled)} more")
    return ", ".join(missing)


def lapse(held: HeldAction, now: datetime, *, policy: str) -> tuple[HoldEvent, str] | None:
    """How time or a changed boundary ends a hold that is still open; None if neither does."""
    if HoldEvent.EXPIRED not in TRANSITIONS[held.state]:
        return None
    if held.policy != policy:
        return HoldEvent.VOIDED, "the boundary changed after the action was held; the agent must ask again"
    if now >= held.expires:
        return HoldEvent.EXPIRED, "nobody signed in time" if held.state is HoldState.PENDING else "the grant was not used in time"
    return None


def is_redeemed_by(held: HeldAction, action: str, *, run: str, digest: str, policy: str) -> bool:
    """Whether it was used up for this very action already, which asks again because it lost the answer."""
    return held.state is HoldState.REDEEMED and bool(action) and (held.redeemed_by, held.run, held.digest, held.policy) == (action, run, digest, policy)


def require_redeemable(held: HeldAction, *, run: str, digest: str, policy: str, now: datetime) -> None:
    """Conflict, saying why, unless the hold is granted, alive, and for exactly this run, action and boundary."""
    if held.run != run:
        raise Conflict(f"hold {held.hold} is of another run; a grant is for one run only")
    if held.digest != digest:
        raise Conflict(f"hold {held.hold} is for another action than {digest}; a grant is for exactly what was shown")
    if ended := lapse(held, now, policy=policy):
        raise Conflict(f"hold {held.hold} is {after(held.state, ended[0])}: {ended[1]}")
    if held.state is not HoldState.GRANTED:
        raise Conflict(f"hold {held.hold} is {held.state}, not granted" + (f": {held.reason}" if held.reason else ""))


def _granting(signatures: Sequence[Signature]) -> set[str]:
    denying = {signature.operator for signature in signatures if signature.outcome == "denied"}
    return {signature.operator for signature in signatures if signature.outcome == "granted"} - denying
