"""Holds as the gateway parks them: the request waits here, the hold itself is durable at the governor.

While it waits the agent may go away: then nothing is forwarded, and its next identical request finds the grant and uses it up.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from bailiwick.critic.action import Action
from bailiwick.critic.decision import Allow, Hold, Retry
from bailiwick.critic.enforcement import HoldOpened, HoldSettled, OpenHold, RedeemHold
from bailiwick.critic.visible import visible
from bailiwick.gateway.runs import Refused, Run, dead
from bailiwick.gateway.waiting import Pending
from bailiwick.kernel import limits
from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import BailiwickError, CallerError

AGAIN_SECONDS = 0.25
_RECENT_MAX = 256  # settlements that came before the answer that named their hold

_KINDS: dict[str, tuple[str, Retry]] = {"denied": ("sign-off-denied", "never"), "expired": ("sign-off-expired", "after"), "void": ("sign-off-void", "after")}


class HoldDesk:
    """Of one worker: which parked requests wait for which hold."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Pending[HoldSettled]]] = {}
        self._recent: OrderedDict[str, HoldSettled] = OrderedDict()

    def settle(self, settled: HoldSettled) -> None:
        waiting = self._waiting.pop(settled.hold, None)
        if waiting is None:
            self._recent[settled.hold] = settled
            if len(self._recent) > _RECENT_MAX:
                self._recent.popitem(last=False)
            return
        for pending in waiting:
            pending.settle(settled)

    def wait(self, hold: str, pending: Pending[HoldSettled]) -> None:
        if (settled := self._recent.pop(hold, None)) is not None:
            pending.settle(settled)
        else:
            self._waiting.setdefault(hold, set()).add(pending)

    def leave(self, hold: str, pending: Pending[HoldSettled]) -> None:
        waiting = self._waiting.get(hold)
        if waiting is not None:
            waiting.discard(pending)
            if not waiting:
                del self._waiting[hold]


def request(run: Run, action_id: str, action: Action, hold: Hold, body: bytes) -> OpenHold:
    """What the governor needs to know to have a person decide, and to recognise the same action later."""
    return OpenHold(
        run=run.id,
        agent=run.agent,
        action=action_id,
        digest=action.digest(),
        shown=action.shown(),
        body_text=visible(text(body[: limits.HELD_BODY_SHOWN_BYTES_MAX]), lines=True),
        rules=list(hold.rules),
        approvers=list(hold.approvers),
        quorum=hold.quorum,
        wait_seconds=hold.wait_seconds,
        expires_seconds=hold.expires_seconds,
        four_eyes=hold.four_eyes,
        policy=run.policy,
    )


async def opened(run: Run, order: OpenHold) -> HoldOpened:
    """The hold at the governor, found or made. Raises Refused when the governor is away or will not have it."""
    try:
        return await run.house.tasks.start(run.house.governor.open_hold(order))
    except CallerError as error:
        raise Refused("sign-off-void", 403, f"the governor does not hold this action: {error}", rules=tuple(order.rules)) from error
    except BailiwickError as error:
        raise dead("governor", "does not answer") from error


async def parked(run: Run, desk: HoldDesk, found: HoldOpened, hold: Hold, park: Callable[[Pending[HoldSettled]], Pending[HoldSettled]]) -> None:
    """Returns when the hold is granted. Raises Refused when it is not, or not within the wait; `park` is given what the exchange waits for."""
    state, reason = found.state, found.reason
    if state == "pending":
        pending: Pending[HoldSettled] = Pending()
        desk.wait(found.hold, pending)
        waited = HoldSettled(hold=found.hold, state="waiting", reason="")
        timer = run.house.loop.call_later(hold.wait_seconds, pending.settle, waited)
        run.parked += 1
        try:
            settled = await park(pending)
        finally:
            run.parked -= 1
            timer.cancel()
            desk.leave(found.hold, pending)
        state, reason = settled.state, settled.reason
    if state == "granted":
        return
    if state == "waiting":
        why = f"nobody has signed this action off within {hold.wait_seconds:g} s"
        raise Refused("held", 403, why, rules=hold.rules, retry="after-signoff", hold=found.hold)
    kind, retry = _KINDS.get(state, ("sign-off-void", "never"))
    raise Refused(kind, 403, reason or f"the sign-off is {state}", rules=hold.rules, retry=retry, hold=found.hold)


async def _use_up(run: Run, order: RedeemHold) -> None:
    """A lost answer does not say whether the grant is used: asked again under the same action, it says so. A governor that is started anew is waited for
    as long as one is believed to live without a word."""
    deadline = run.house.loop.time() + limits.HEARTBEAT_STALE_SECONDS
    while True:
        try:
            return await run.house.governor.redeem(order)
        except CallerError:
            raise
        except BailiwickError:
            if run.closed is not None or run.house.loop.time() + AGAIN_SECONDS > deadline:
                raise
        await asyncio.sleep(AGAIN_SECONDS)


async def redeemed(run: Run, action_id: str, action: Action, hold: str, rules: tuple[str, ...]) -> Allow:
    """Policy once more, now as signed off; then the grant is used up, durably, as the last thing before the intent is written. Raises Refused; the grant
    is untouched if policy says no or a part is dead. Between here and the first byte a record that stalls, a worker that dies or an agent that leaves
    still costs a grant: what was used is never used again, so the agent's retry waits for another sign-off."""
    run.check_alive()
    decision = run.decide(action, signed_off=True)
    if not isinstance(decision, Allow):
        why = getattr(decision, "reason", "the boundary asks for another sign-off")
        raise Refused("sign-off-void", 403, f"granted, but not allowed any more: {why}", rules=decision.rules, hold=hold)
    order = RedeemHold(hold=hold, run=run.id, digest=action.digest(), policy=run.policy, action=action_id)
    try:
        await run.house.tasks.start(_use_up(run, order))
    except CallerError as error:
        raise Refused("sign-off-void", 403, f"the sign-off cannot be used: {error}", rules=rules, hold=hold) from error
    except BailiwickError as error:
        raise dead("governor", "does not answer") from error
    return Allow(rules=(*decision.rules, *(rule for rule in rules if rule not in decision.rules)), obligations=decision.obligations)
