"""The walk of one action. It reads like the list in the design: understand, decide, wait for sign-off, record the intent, borrow, inject, forward,
stream back, record the outcome. Every step that cannot be taken ends it with a refusal that names why.
"""

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from bailiwick.broker.inject import strip_and_inject
from bailiwick.broker.messages import UseLease
from bailiwick.critic.action import Action, Body, ModelResource, Verb
from bailiwick.critic.boundary import MODEL_CALL
from bailiwick.critic.budget import Reservation
from bailiwick.critic.decision import Allow, Decision, Deny, Hold
from bailiwick.critic.enforcement import Usage
from bailiwick.gateway import actions, events, holds, metering, models, repeats
from bailiwick.gateway.agentside import AgentGone
from bailiwick.gateway.exchange import Exchange
from bailiwick.gateway.fields import signed_fields
from bailiwick.gateway.git import announcing
from bailiwick.gateway.layers.http1 import end_to_end, request_bytes
from bailiwick.gateway.leases import Lent
from bailiwick.gateway.runs import Refused, Run, dead
from bailiwick.gateway.target import Target
from bailiwick.gateway.upstream import UpstreamConnection, UpstreamFailed
from bailiwick.kernel.canonical import text
from bailiwick.kernel.errors import BailiwickError, CallerError

_UNSCRUBBABLE = frozenset({b"accept-encoding", b"range", b"if-range"})  # a secret in a compressed answer, or given out in parts, is not recognised
_OURS_BYTES_MAX = 64  # of a head: its length or coding, and the coding of an answer that is read
_AFTER = {"connect-timeout": 504, "answer-timeout": 504}


async def walk(exchange: Exchange, desk: holds.HoldDesk) -> None:
    """From a request's head to its recorded outcome."""
    try:
        await _walk(exchange, desk)
    finally:
        exchange.let_go()


async def _walk(exchange: Exchange, desk: holds.HoldDesk) -> None:
    reservation: Reservation | None = None
    try:
        action = await understood(exchange)
        exchange.run.check_alive()
        decision, reservation = decided(exchange, action)
        action, decision = await settled(exchange, desk, action, decision)
    except BaseException as ended:
        if reservation is not None:
            exchange.run.budget.release(reservation)
        if isinstance(ended, Refused):
            exchange.refuse(ended)
        elif not isinstance(ended, AgentGone):
            raise
        return
    await concluded(exchange, action, reservation, performed(exchange, action, decision))


async def performed(exchange: Exchange, action: Action, decision: Decision) -> None:
    await intended(exchange, action, decision)
    lent = await borrowed(exchange, action)
    outgoing = await forwarded(exchange, action, lent)
    repeats.remember(exchange, action, decision, lent, outgoing)


async def concluded(exchange: Exchange, action: Action, reservation: Reservation | None, steps: Coroutine[Any, Any, None]) -> None:
    """Takes the steps that do an action; whichever of them fails, its outcome is recorded."""
    try:
        await steps
        exchange.outcome.result = "answered"
    except Refused as refused:
        exchange.outcome.error = refused.kind
        exchange.refuse(refused)
    except UpstreamFailed as failure:
        broken_off(exchange, action, failure)
    except AgentGone as gone:
        exchange.outcome.error = gone.code
        if exchange.outcome.status is not None:  # the other side answered, whether or not somebody heard it out
            exchange.outcome.result = "answered"
        elif exchange.sent and action.verb.is_effect:
            exchange.outcome.result = "unknown"
    finally:
        recorded(exchange, action, reservation)


# -- understand


async def understood(exchange: Exchange) -> Action:
    """The request as an action. A model call's body is read whole: which model is called stands in it. Raises Refused for what can be read two ways."""
    run, target, head = exchange.run, exchange.target, exchange.head
    if target.name in run.leased:
        require_sealed(run, target)
    sent = None if head.form == "asterisk" else target.path  # what is decided is what is forwarded, which behind a base URL is not what came
    try:
        action = actions.normalise(head, scheme=target.scheme, host=target.name, port=target.port, run=run.id, agent=run.agent, target=sent)
    except actions.Unclear as unclear:
        run.refuse_attempt(unclear.code, f"{target.scheme}://{target.name}:{target.port}", str(unclear))
        raise Refused("unclear", 403, str(unclear), rules=(f"bailiwick.unclear/{unclear.code}",)) from unclear
    if action.arguments:  # of git's
        exchange.repository, action = announcing(action), run.repositories.judged(action)
    if target.route is None or target.endpoint is None:
        if head.framing == "chunked" and run.order.budget.egress_bytes is not None:
            await exchange.read_body()  # how much leaves is known, and set aside, before it does
        return action
    if not run.observe and not run.critic.may_permit(MODEL_CALL):  # no body is read where none could change the answer
        unread = ModelResource(provider=target.route.provider, model="(unread)", endpoint=target.endpoint, host=target.name)
        action = replace(action, verb=Verb.CALL_MODEL, resource=unread)
        if isinstance(run.decide(action), Deny):
            return action
    raw = await exchange.read_body()
    if (head.first(b"content-encoding") or b"identity").lower() != b"identity":
        raise Refused("unclear", 403, "the body of a model call is compressed; send it plain, so that it can be read", rules=("bailiwick.unclear/encoding",))
    try:
        exchange.call = call = models.read_call(target.endpoint, raw)
    except CallerError as error:
        run.refuse_attempt("model-call", f"{target.route.provider}/{target.endpoint}", str(error))
        raise Refused("unclear", 400, str(error), rules=("bailiwick.unclear/model-call",)) from error
    resource = ModelResource(provider=target.route.provider, model=call.model, endpoint=target.endpoint, host=target.name)
    return Action(run=run.id, agent=run.agent, verb=Verb.CALL_MODEL, resource=resource, body=Body.of(raw, action.body.content_type), arguments=call.arguments)


# -- decide


def decided(exchange: Exchange, action: Action) -> tuple[Decision, Reservation | None]:
    """The critic's decision, then the budget's word on what is allowed. The ceiling of a model call is set aside."""
    run = exchange.run
    decision = run.decide(action)
    if isinstance(decision, Deny):
        return decision, None
    call = exchange.call
    if call is None and run.unbounded(action.verb.is_effect):
        return decision, None
    reserved: Reservation | Deny
    if call is None or exchange.target.route is None:
        reserved = run.budget.reserve(calls=1, writes=int(action.verb.is_effect), egress_bytes=_size(exchange))
    else:
        exchange.call, reserved = metering.reserve(run, exchange.target.route, call, egress_bytes=_size(exchange))
    return (reserved, None) if isinstance(reserved, Deny) else (decision, reserved)


def _size(exchange: Exchange) -> int:
    """What it may send, head and body, where that is bounded. A lent credential comes on top, and is counted once it was sent."""
    if exchange.run.order.budget.egress_bytes is None:
        return 0
    head, target = exchange.head, exchange.target
    body = head.length or 0 if exchange.body is None else len(exchange.body)
    return body + len(request_bytes(head.method, target.path, exchange.fields)) + len(target.authority) + _OURS_BYTES_MAX


async def settled(exchange: Exchange, desk: holds.HoldDesk, action: Action, decision: Decision) -> tuple[Action, Decision]:
    """What is done now, by which decision: an Allow, or, while the run is only observed, whatever would have been decided. Raises Refused for a Deny,
    and for a Hold that is not granted."""
    run = exchange.run
    if isinstance(decision, Allow) or run.observe:
        return action, decision
    if isinstance(decision, Deny):
        await run.denials.turn()
        run.record(events.decided(run.house.ids.event(), exchange.id, action, decision, via=exchange.target.via))
        kind = "budget" if decision.rules and decision.rules[0].startswith("budget/") else "denied"
        raise Refused(kind, 403, decision.reason, rules=decision.rules, retry=decision.retry)
    return await signed_off(exchange, desk, action, decision)


async def signed_off(exchange: Exchange, desk: holds.HoldDesk, action: Action, hold: Hold) -> tuple[Action, Decision]:
    """The body is read whole first, so that exactly the bytes and fields shown are what is signed and what is sent."""
    run = exchange.run
    raw = await exchange.read_body()
    await run.denials.turn()
    if exchange.gone is not None:
        raise exchange.gone
    exchange.fields, shown = signed_fields(exchange.head.fields, lent=exchange.target.name in run.leased)
    action = replace(action, body=Body.of(raw, action.body.content_type), fields=shown)
    found = await holds.opened(run, holds.request(run, exchange.id, action, hold, raw))
    run.record(events.decided(run.house.ids.event(), exchange.id, action, hold, via=exchange.target.via, hold=found.hold))
    await holds.parked(run, desk, found, hold, exchange.park)
    if exchange.gone is not None:
        raise exchange.gone
    granted = await holds.redeemed(run, exchange.id, action, found.hold, hold.rules)
    exchange.hold = found.hold
    return action, granted


# -- record the intent, borrow, forward


async def intended(exchange: Exchange, action: Action, decision: Decision) -> None:
    """The intent is written: before an effect durably, before a read without waiting. Raises Refused when the record takes nothing."""
    run = exchange.run
    exchange.begin(action)
    observed = not isinstance(decision, Allow)
    event = events.decided(run.house.ids.event(), exchange.id, action, decision, via=exchange.target.via, observed=observed, hold=exchange.hold)
    try:
        if action.verb.is_effect or exchange.hold is not None:
            await exchange.park(run.house.tasks.start(run.house.recorder.append_durably(event)))
            run.check_alive()
        else:
            run.house.recorder.append(event)
    except BailiwickError as error:
        raise dead("recorder", "did not take the intent of this action") from error
    if exchange.gone is not None:
        raise exchange.gone


async def borrowed(exchange: Exchange, action: Action) -> Lent | None:
    """The credentials lent to this run for this host and verb, if any. Raises Refused when the broker does not answer."""
    run, target = exchange.run, exchange.target
    if target.name not in run.leased:
        return None
    require_sealed(run, target)  # once more: a pin may be another one since
    verb, held_to = action.verb.value, run.order
    now = run.house.loop.time()
    lent = run.leases.get(target.name, verb, now)
    if lent is None:
        order = UseLease(run=run.id, action=exchange.id, host=target.name, verb=verb)
        try:
            lent = Lent.of(await exchange.park(run.house.tasks.start(run.house.broker.use(order))), now)
        except BailiwickError as error:
            raise dead("broker", "lends nothing for this host") from error
        if exchange.gone is not None:
            raise exchange.gone
        if run.order is held_to:  # else it is for this action at most
            run.leases.put(target.name, verb, lent)
    return lent


def require_sealed(run: Run, target: Target) -> None:
    """A credential leaves over TLS, or in the clear where the configuration says so of that very host. Raises Refused."""
    pin = run.order.hosts.get(target.name)
    if target.destination.tls or (pin is not None and pin.tls is False):
        return
    where = f"{target.scheme}://{target.name}:{target.port}"
    reason = (
        f"a credential is lent for {target.name}, and {target.scheme} would carry it in the clear; use https, or let the operator pin the host, `tls: false`"
    )
    run.refuse_attempt("credential-in-clear", where, reason)
    raise Refused("denied", 403, reason, rules=("bailiwick.credential/in-clear",))


async def forwarded(exchange: Exchange, action: Action, lent: Lent | None) -> bytes:
    """Injects, sends, and streams the answer back; returns the head as sent. A read that a kept connection closed upon, unanswered, is sent once
    more; nothing else ever is."""
    run, destination = exchange.run, exchange.target.destination
    try:
        head = outgoing(exchange, lent)
    except BailiwickError as error:
        raise dead("broker", f"lent what cannot be injected ({error})") from error
    upstream = run.upstreams.kept(destination)
    if upstream is not None:
        try:
            await _asked(exchange, upstream, head)
            return head
        except UpstreamFailed as failure:
            if failure.code != "no-answer" or action.verb is not Verb.READ or exchange.head.framing != "none":
                raise
    await forwarded_anew(exchange, head)
    return head


async def forwarded_anew(exchange: Exchange, head: bytes) -> None:
    """On a connection that nothing was sent on before."""
    upstream = await exchange.park(exchange.run.house.tasks.start(_connected(exchange)))
    await _asked(exchange, upstream, head)


async def _asked(exchange: Exchange, upstream: UpstreamConnection, head: bytes) -> None:
    """The last look before a byte leaves: a lease and a connection may have taken longer than the governor lived."""
    try:
        exchange.run.check_alive()
    except Refused:
        upstream.close()
        raise
    await exchange.ask(upstream, head)


async def _connected(exchange: Exchange) -> UpstreamConnection:
    """A new connection, if by the time it is up somebody still waits for it."""
    upstream = await exchange.run.upstreams.connect(exchange.target.destination)
    if exchange.gone is not None or exchange.run.closed is not None:
        upstream.close()
        raise exchange.gone or AgentGone("run-closed")
    return upstream


def outgoing(exchange: Exchange, lent: Lent | None) -> bytes:
    """The head to forward: parsed fields, without what is one hop's, the verified authority as Host, framing of ours, what is injected last."""
    head, target = exchange.head, exchange.target
    fields = [field for field in end_to_end(exchange.fields) if field[0] != b"host"]
    if lent is not None or exchange.call is not None:
        fields = [field for field in fields if field[0] not in _UNSCRUBBABLE]
        fields.append((b"accept-encoding", b"identity"))
    if lent is not None:
        fields = list(strip_and_inject(fields, lent.uses))
        exchange.scrubber = lent.scrubber() if lent.uses else None
        exchange.outcome.credentials = lent.credentials
    fields.insert(0, (b"host", target.authority))
    if exchange.body is not None:
        if exchange.body or head.framing != "none":
            fields.append((b"content-length", b"%d" % len(exchange.body)))
    elif head.framing == "length":
        fields.append((b"content-length", b"%d" % (head.length or 0)))
    elif head.framing == "chunked":
        fields.append((b"transfer-encoding", b"chunked"))
    return request_bytes(head.method, target.path, fields)


# -- record the outcome


def broken_off(exchange: Exchange, action: Action, failure: UpstreamFailed) -> None:
    """The upstream failed: the agent is told so, and an effect that was sent and not answered is unknown, not failed."""
    outcome = exchange.outcome
    outcome.error = f"{failure.code}: {failure}"
    if outcome.status is not None:
        outcome.result = "answered"
    elif exchange.sent and action.verb.is_effect:
        outcome.result = "unknown"
    if failure.code == "address-refused":
        exchange.refuse(Refused("denied", 403, str(failure), rules=("bailiwick.network/address",)))
        return
    sent = "; whether it took effect is not known" if outcome.result == "unknown" else ""
    exchange.refuse(Refused("upstream", _AFTER.get(failure.code, 502), f"{failure}{sent}", rules=(f"bailiwick.upstream/{failure.code}",), retry="after"))


def recorded(exchange: Exchange, action: Action, reservation: Reservation | None) -> None:
    """Usage is credited back and the outcome written, however the action ended."""
    run, outcome = exchange.run, exchange.outcome
    outcome.duration_ms = int((run.house.loop.time() - exchange.started) * 1_000)
    used = Usage(calls=1, writes=int(action.verb.is_effect), egress_bytes=outcome.request_bytes) if exchange.sent else Usage()
    if exchange.call is not None and exchange.target.route is not None and exchange.sent:
        used = metering.charge(exchange, exchange.target.route, exchange.call, used)
    if reservation is not None:
        run.budget.settle(reservation, used)
    elif exchange.sent:
        run.count(used)
    exchange.end()
    if not run.record(events.finished(run.house.ids.event(), exchange.id, action, outcome)) and outcome.usage is not None:
        outcome.usage = {"problem": "more than an event holds"}  # an outcome is not lost for what a model wrote
        run.record(events.finished(run.house.ids.event(), exchange.id, action, outcome))


def failed(exchange: Exchange, error: BaseException) -> None:
    """A mistake of ours: the agent is told that, and nothing of it; the loop's handler writes the rest down."""
    exchange.run.house.loop.call_exception_handler(
        {"message": f"exchange {text(exchange.id.encode())} failed: {type(error).__name__}", "exception": error if isinstance(error, Exception) else None}
    )
    exchange.refuse(dead("gateway", f"failed on this request ({type(error).__name__})"))
