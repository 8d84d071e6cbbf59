"""Sign-off as the governor runs it: holds opened by gateways, signed by operators, redeemed once, and every step of it on the record first or with it."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio

from bailiwick.critic.enforcement import HoldOpened, HoldSettled, OpenHold, RedeemHold
from bailiwick.critic.repository import Holds
from bailiwick.critic.rules import ApproverGroup
from bailiwick.critic.signoff import ApprovingGroup, HeldAction, HoldEvent, HoldState, Signature, event_of_signature
from bailiwick.governor.links import Link
from bailiwick.governor.live import Live
from bailiwick.governor.views import HoldView, Operator
from bailiwick.kernel.canonical import digest
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, Forbidden
from bailiwick.kernel.ids import ActionId, HoldId, RunId, SequenceOfIds, new_hold_id
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event

_WHY_CHARACTERS_MAX = 2_000
_SHOWN_HOLDS_MAX = 500
_REDEEMED_KEPT_MAX = 256


class Signoffs:
    def __init__(
        self,
        path: Path,
        recorder: RecordClient,
        workers: Mapping[str, Link],
        live: Mapping[str, Live],
        approvers: Mapping[str, ApproverGroup],
        clock: Clock,
    ) -> None:
        self._holds = Holds(path)
        self._recorder = recorder
        self._workers = workers
        self._live = live
        self._groups = {name: ApprovingGroup(operators=frozenset(group.operators), quorum=group.quorum) for name, group in approvers.items()}
        self._clock = clock
        self._ids = SequenceOfIds()
        self._redeemed: OrderedDict[HoldId, Event] = OrderedDict()  # for a worker that lost the answer and asks again
        self._signing = anyio.Lock()  # a signature that is on record is in the hold: nobody else signs between the two

    def close(self) -> None:
        self._holds.close()

    async def open(self, asked: OpenHold) -> HoldOpened:
        """For a gateway: the hold of this run and digest, new or found again."""
        live = self._live.get(asked.run)
        if live is None or live.ending is not None:
            raise Conflict(f"run {asked.run} is over; nothing of it is held")
        _check(asked, live)
        now = self._clock.now()
        held, is_new, ended = self._holds.open(
            HeldAction(
                hold=new_hold_id(),
                run=RunId(asked.run),
                agent=live.agent,
                action=asked.action,
                dispatched_by=live.operator,
                digest=asked.digest,
                policy=asked.policy,
                shown=asked.shown,
                body_text=asked.body_text,
                rules=tuple(asked.rules),
                approvers=tuple(asked.approvers),
                quorum=asked.quorum,
                wait_seconds=asked.wait_seconds,
                four_eyes=asked.four_eyes,
                opened=now,
                expires=now + timedelta(seconds=asked.expires_seconds),
            )
        )
        for over in ended:
            await self._closed(over)
        if is_new:
            await self._announce(held)
        return HoldOpened(hold=held.hold, state=held.state.value, reason=held.reason)

    async def _announce(self, held: HeldAction) -> None:
        """A hold that cannot be recorded is none: it is voided, so that the agent's retry opens one that can."""
        try:
            await self._record(
                held,
                "hold.opened",
                digest=held.digest,
                shown=held.shown,
                rules=list(held.rules),
                approvers=list(held.approvers),
                quorum=held.quorum,
                four_eyes=held.four_eyes,
                wait_seconds=math.ceil(held.wait_seconds),
                expires=timestamp(held.expires),
            )
        except BailiwickError:
            self._holds.settle(held, HoldEvent.VOIDED, "it could not be recorded")
            raise

    async def redeem(self, asked: RedeemHold) -> None:
        """For a gateway: uses the grant up, for one action, which may ask again. Raises Conflict when it is not to be had."""
        held = self._holds.redeem(asked.hold, run=asked.run, digest=asked.digest, policy=asked.policy, action=asked.action, now=self._clock.now())
        event = self._redeemed.setdefault(held.hold, self._event(held, "hold.redeemed", digest=held.digest, by=asked.action))
        while len(self._redeemed) > _REDEEMED_KEPT_MAX:
            self._redeemed.popitem(last=False)
        await self._recorder.append_durably(event)  # the same event again is one event

    async def settle(self, hold: HoldId, operator: Operator, *, granted: bool, why: str) -> HoldView:
        """For an approver. Forbidden for who may not sign, Conflict for a hold that is over."""
        if len(why) > _WHY_CHARACTERS_MAX:
            raise CallerError(f"why is {len(why)} characters; must be at most {_WHY_CHARACTERS_MAX}")
        async with self._signing:
            return await self._settle(hold, operator, granted=granted, why=why)

    async def _settle(self, hold: HoldId, operator: Operator, *, granted: bool, why: str) -> HoldView:
        held = self._holds.get(hold)
        live = self._live.get(held.run)
        policy = live.definition.policy if live is not None and live.ending is None else "(the run is over)"
        signature = Signature(operator=operator.name, outcome="granted" if granted else "denied", why=why, time=self._clock.now())
        event, reason = event_of_signature(held, signature, roles=frozenset(operator.roles), groups=self._groups, policy=policy)
        if event in (HoldEvent.EXPIRED, HoldEvent.VOIDED):
            over = self._holds.settle(held, event, reason)
            await self._closed(over)
            raise Conflict(f"hold {hold} is {over.state}: {reason}")
        await self._record(held, "hold.signed", operator=operator.name, outcome=signature.outcome, why=why, digest=held.digest)
        held = self._holds.sign(held, signature, event, reason)
        if held.state is HoldState.DENIED:
            await self._record(held, "hold.closed", state=held.state.value, reason=held.reason)
        if held.state is not HoldState.PENDING:
            await self._tell(held)
        return _view(held)

    async def expire(self) -> None:
        """Ends what is past its time, and what a run that is over left open."""
        due = self._holds.next_expiry()
        if due is not None and due <= self._clock.now():
            for held in self._holds.expire_due(self._clock.now()):
                await self._closed(held)

    async def void_run(self, run: str) -> None:
        for held in self._holds.void_run(run, "the run ended"):
            await self._closed(held)

    def views(self, state: str | None) -> list[HoldView]:
        """Newest first."""
        if state is not None and state not in set(HoldState):
            raise CallerError(f"state {state!r} is unknown; must be one of {', '.join(HoldState)}")
        return [_view(held) for held in self._holds.select(state=HoldState(state) if state else None, limit=_SHOWN_HOLDS_MAX)]

    def view(self, hold: HoldId) -> HoldView:
        return _view(self._holds.get(hold))

    async def _closed(self, held: HeldAction) -> None:
        try:
            await self._record(held, "hold.closed", state=held.state.value, reason=held.reason)
        except BailiwickError as error:  # it is over whether that can be written now or not
            print(f"end of {held.hold} is not recorded: {error}", flush=True)  # noqa: T201
        await self._tell(held)

    async def _tell(self, held: HeldAction) -> None:
        """The worker that may have it parked; one that was started anew asks again with the agent's retry."""
        live = self._live.get(held.run)
        link = self._workers.get(live.worker) if live is not None else None
        if link is not None:
            try:
                await link.tell(HoldSettled(hold=held.hold, state=held.state.value, reason=held.reason))
            except BailiwickError as error:
                print(f"{live.worker if live else ''} is not told of {held.hold}: {error}", flush=True)  # noqa: T201

    async def _record(self, held: HeldAction, kind: str, **body: Any) -> None:
        await self._recorder.append_durably(self._event(held, kind, **body))

    def _event(self, held: HeldAction, kind: str, **body: Any) -> Event:
        return Event(
            id=self._ids.event(),
            kind=kind,
            time=timestamp(self._clock.now()),
            run=held.run,
            agent=held.agent,
            action=ActionId(held.action),
            body={"hold": held.hold, **body},
        )


def _check(asked: OpenHold, live: Live) -> None:
    """A worker says what is held, not who may release it: approvers, quorum and the rest are the boundary's, and the digest is that of what is shown.
    Forbidden for a hold that is any weaker."""
    terms = [live.boundary.holds[rule] for rule in asked.rules if rule in live.boundary.holds]
    if not terms or asked.policy != live.definition.policy:
        raise Forbidden(f"action {asked.action} is held by {', '.join(asked.rules) or 'no rule'}, which is no hold of the boundary of {live.agent}")
    weaker = (
        set(asked.approvers) != {group for each in terms for group in each.approvers}
        or asked.quorum < max(each.quorum for each in terms)
        or asked.expires_seconds > min(each.expires_seconds for each in terms)
        or (any(each.four_eyes for each in terms) and not asked.four_eyes)
    )
    if weaker:
        raise Forbidden(f"action {asked.action} is held with other approvers, quorum, expiry or four eyes than {', '.join(asked.rules)} asks for")
    if digest(asked.shown) != asked.digest:
        raise Forbidden(f"action {asked.action} is held under a digest that is not the one of what is shown")


def _view(held: HeldAction) -> HoldView:
    return HoldView(
        hold=held.hold,
        run=held.run,
        agent=held.agent,
        state=held.state.value,
        opened=timestamp(held.opened),
        expires=timestamp(held.expires),
        digest=held.digest,
        shown=held.shown,
        body_text=held.body_text,  # the gateway made its control characters visible
        rules=list(held.rules),
        approvers=list(held.approvers),
        quorum=held.quorum,
        four_eyes=held.four_eyes,
        signed=[
            {"operator": signature.operator, "outcome": signature.outcome, "why": signature.why, "time": timestamp(signature.time)}
            for signature in held.signatures
        ],
        reason=held.reason,
    )
