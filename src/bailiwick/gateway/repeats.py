"""What a run asked before, byte for byte, and was allowed: the way of such a request is walked once and remembered.

Most of what a request costs is a pure function of its head's bytes, of the door it came through and of what the run is held to: its parts, its target,
its action, the decision, its two events but for a few values, and the head that leaves with a lease's values. That is what a `Repeat` holds.

Invariants (`tests/gateway/test_repeats.py`):
- It is found only under the whole head, byte for byte, and only by the run and at the door it was walked for. A part of a head finds nothing.
- It is forgotten whenever the run is held to something new (`Run.hold_to`), and with the run. It is never made of what was refused, held, observed,
  failed, has a body, calls a model, is bound by a budget, or is written for a name that may come to stand for another (`target.may_change`).
- What must be asked each time is asked each time (`repeated.begun`): the run is open, the governor is fresh, the critic is the one that decided, the record
  takes the intent, the lease is the very one whose values stand in `outgoing`.
"""

from bailiwick.critic.action import Action, Verb
from bailiwick.critic.decision import Allow, Decision
from bailiwick.critic.enforcement import Usage
from bailiwick.gateway import events
from bailiwick.gateway.exchange import Exchange
from bailiwick.gateway.forms import Form, NoForm, intent_form, outcome_form
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.gateway.leases import Lent
from bailiwick.gateway.target import Target
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.ids import ActionId, EventId

HEADS_MAX = 256  # of a run, at one door
HEAD_BYTES_MAX = 4_096


class Repeat:
    __slots__ = ("_answered_by", "_intent", "_outcome", "action", "credentials", "critic", "head", "lent", "outgoing", "scrubber", "target", "used", "verb")

    def __init__(self, head: RequestHead, target: Target, action: Action, decision: Allow, critic: object, lent: Lent | None, outgoing: bytes) -> None:
        self.head = head
        self.target = target
        self.action = action
        self.verb = action.verb.value
        self.critic = critic  # whose decision it is
        self.lent = lent
        self.credentials = lent.credentials if lent is not None else None
        self.scrubber = lent.scrubber() if lent is not None and lent.uses else None  # to look with, never to feed
        self.outgoing = outgoing
        self.used = Usage(calls=1, egress_bytes=len(outgoing))
        self._intent = intent_form(action, decision, via=target.via)
        self._answered_by: str | None = None  # the address whose form is at hand
        self._outcome = Form(())

    def intent(self, event: EventId, action: ActionId) -> str:
        """`action.decided`, encoded."""
        a, b, c, d = self._intent
        return f"{a}{action}{b}{event}{c}{events.stamp()}{d}"

    def outcome(self, event: EventId, action: ActionId, address: str, *, status: int, answer_bytes: int, duration_ms: int) -> str:
        """`action.finished`, encoded."""
        if address != self._answered_by:
            outcome = events.Outcome()
            outcome.result, outcome.address, outcome.credentials = "answered", address, self.credentials
            outcome.request_bytes = self.used.egress_bytes
            self._outcome = outcome_form(self.action, outcome)
            self._answered_by = address
        a, b, c, d, e, f, g = self._outcome
        return f"{a}{action}{b}{answer_bytes}{c}{duration_ms}{d}{status}{e}{event}{f}{events.stamp()}{g}"


def remember(exchange: Exchange, action: Action, decision: Decision, lent: Lent | None, outgoing: bytes) -> None:
    """After an exchange that went well from one end to the other, for the second time."""
    raw, heads, head, target = exchange.raw, exchange.heads, exchange.head, exchange.target
    if raw is None or heads is None or len(raw) > HEAD_BYTES_MAX:
        return
    plain = head.framing == "none" and head.keep_alive and not head.expects_continue and not head.upgrade and head.method != "HEAD"
    if not plain or action.verb is not Verb.READ or target.route is not None or action.arguments:  # git's are of what its answers announced
        return
    if not isinstance(decision, Allow) or decision.obligations or exchange.hold is not None or exchange.run.observe or not exchange.run.unbounded(False):
        return
    if not exchange.run.asked.sightings.again(raw):
        return
    try:
        repeat = Repeat(head, target, action, decision, exchange.run.critic, lent, outgoing)
    except (NoForm, BailiwickError):
        return
    if len(heads) >= HEADS_MAX:
        del heads[next(iter(heads))]
    heads[raw] = repeat
