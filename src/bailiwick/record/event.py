"""An event: one fact about a run or the installation, in the past tense, as canonical JSON (RFC 8785), written once and never changed.

The narrow fields are what a question is asked by (run, agent, kind, verb, resource, decision, credential, model, tokens, cost); `body` is what an
answer shows. Content (prompts, bodies, outputs) does not stand here but as digests: its store is a seam, not yet a room.

`KINDS` is the whole vocabulary: what each kind says, who may write it, and whether it is an intent (durable before the act it announces).
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.accounts import Role
from bailiwick.kernel.canonical import canonical
from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.ids import ActionId, EventId, RunId

Verdict = Literal["allow", "deny", "hold"]


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`time` is RFC 3339 in UTC with microseconds (`kernel.clock.timestamp`); costs are millionths of a US dollar; absent fields are not written."""

    id: EventId
    kind: str
    time: str
    v: int = 1
    run: RunId | None = None
    agent: str | None = None
    action: ActionId | None = None
    verb: str | None = None
    resource: str | None = None
    decision: Verdict | None = None
    credential: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)


# 2**53 has 16 digits. Looked for by mapping every digit to 0: ten times faster than a pattern.
_DIGITS_TO_0 = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else ord(" ") for byte in range(256))
_LONG_INTEGER = b"0" * 16


def _no_floats(text: str) -> Any:
    raise ValueError(f"{text} is not an integer within 2**53; write it as an integer of a smaller unit, or as text")


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Event, float_hook=_no_floats)


def encode(event: Event) -> bytes:
    """The event's canonical form, which is what is hashed. CallerError for an event larger than limits.EVENT_BYTES_MAX, of an unknown kind, or with a
    value that canonical JSON as we use it (`kernel.canonical`) does not carry."""
    try:
        raw = _encoder.encode(event)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise CallerError(f"event {event.kind} cannot be written: {error}") from error
    if len(raw) > limits.EVENT_BYTES_MAX:
        raise CallerError(f"event {event.kind} of {len(raw)} bytes; must be at most {limits.EVENT_BYTES_MAX}", code="too-large")
    _check(_parse(raw), raw)
    return raw


def decode(raw: bytes) -> Event:
    """Raises CallerError for bytes that are not an event in canonical form, of a known kind and at most limits.EVENT_BYTES_MAX long."""
    if len(raw) > limits.EVENT_BYTES_MAX:
        raise CallerError(f"event of {len(raw)} bytes; must be at most {limits.EVENT_BYTES_MAX}", code="too-large")
    event = _parse(raw)
    _check(event, raw)
    try:
        written = _encoder.encode(event)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise CallerError(f"event {event.kind} cannot be written: {error}") from error
    if written != raw:
        raise CallerError(f"event {event.kind} is not in canonical form (RFC 8785)")
    return event


def _parse(raw: bytes) -> Event:
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CallerError(f"event is not understood: {error}") from error


def _check(event: Event, raw: bytes) -> None:
    """What the fast encoder would write and RFC 8785 would write differently, or not at all: floats (refused while parsing), long integers, and keys
    whose order depends on the encoding. The last two are looked at value by value only where they can be."""
    if event.kind not in KINDS:
        raise CallerError(f"event kind {event.kind[:64]!r} is unknown; must be one of {', '.join(KINDS)}")
    if _LONG_INTEGER in raw.translate(_DIGITS_TO_0) or not raw.isascii():
        try:
            canonical(msgspec.to_builtins(event))
        except ValueError as error:
            raise CallerError(f"event {event.kind} is not canonical JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class Kind:
    says: str
    writers: frozenset[Role]
    intent: bool = False


def _by(*roles: Role) -> frozenset[Role]:
    return frozenset(roles)


KINDS: dict[str, Kind] = {
    "installation.started": Kind("the processes are up; versions, accounts, what this machine can guarantee", _by(Role.GOVERNOR)),
    "installation.stopped": Kind("the governor is stopping in order", _by(Role.GOVERNOR)),
    "process.ended": Kind("a process of ours ended out of turn and is started again", _by(Role.GOVERNOR)),
    "run.requested": Kind("an operator asked for a run of an agent on a task; boundary digest, limits, mode", _by(Role.GOVERNOR), intent=True),
    "run.probed": Kind("the probe's findings inside the sandbox, before the agent's first instruction", _by(Role.GOVERNOR), intent=True),
    "run.started": Kind("the agent's command is started", _by(Role.GOVERNOR), intent=True),
    "run.output": Kind("what the agent's command wrote to its standard output or error", _by(Role.GATEWAY)),
    "run.paused": Kind("the run's processes are frozen", _by(Role.GOVERNOR)),
    "run.resumed": Kind("the run's processes go on", _by(Role.GOVERNOR)),
    "run.killed": Kind("an operator or a limit ordered the end of the run; who, why", _by(Role.GOVERNOR), intent=True),
    "run.ended": Kind("the run is over: cause, exit status, totals; its sandbox is gone", _by(Role.GOVERNOR)),
    "run.workspace": Kind("what the run changed in its workspace, as a digest and a list of paths", _by(Role.GOVERNOR)),
    "run.applied": Kind("an operator applied the run's changes to a directory", _by(Role.GOVERNOR)),
    "lease.granted": Kind("a credential is lent to a run: name, hosts, expiry", _by(Role.BROKER), intent=True),
    "lease.used": Kind("a lease's value left the broker for a destination", _by(Role.BROKER)),
    "lease.revoked": Kind("a lease is dead; why", _by(Role.BROKER)),
    "name.asked": Kind("the run asked for the address of a name for the first time", _by(Role.GATEWAY)),
    "attempt.refused": Kind("the run tried something no listener serves, or broke a protocol, and was refused; what, where, why", _by(Role.GATEWAY)),
    "action.decided": Kind("an action and its decision; for an effect this is the intent", _by(Role.GATEWAY), intent=True),
    "action.finished": Kind("how an allowed action ended: status, bytes, duration, usage, or `unknown`", _by(Role.GATEWAY)),
    "hold.opened": Kind("an action waits for sign-off; what is shown, approvers, expiry", _by(Role.GOVERNOR), intent=True),
    "hold.signed": Kind("an approver granted or denied; who, why", _by(Role.GOVERNOR), intent=True),
    "hold.redeemed": Kind("a granted hold was used up by the action it was for", _by(Role.GOVERNOR), intent=True),
    "hold.closed": Kind("a hold ended unused: denied, expired or void", _by(Role.GOVERNOR)),
    "peer.refused": Kind("somebody spoke to a process of ours and was turned away", _by(*Role)),
}
