"""The two events of a read that is repeated, as forms: their canonical JSON, written once by `record.event.encode`, with holes for what differs.

Invariant: a form filled in is, byte for byte, what `encode` writes for the event with those values. It holds because what goes into a hole needs no
escape and no second look: identifiers of `kernel.ids`, a time of `events.stamp`, counts far below 2**53. (`tests/gateway/test_forms.py`)
"""

import secrets
from collections.abc import Sequence
from typing import NewType

from bailiwick.critic.action import Action
from bailiwick.critic.decision import Allow
from bailiwick.gateway import events
from bailiwick.kernel.ids import ActionId, EventId
from bailiwick.record.event import Event, encode

Form = NewType("Form", tuple[str, ...])  # what stands between the holes

_TOKEN = secrets.token_hex(12)  # nobody outside can write it into a path or a rule's name


class NoForm(Exception):
    """The event cannot be a form: a hole is not where it is looked for."""


def intent_form(action: Action, decision: Allow, *, via: str) -> Form:
    """Of `events.decided`; the holes are action, event and time."""
    event = events.decided(EventId(_hole("id")), ActionId(_hole("action")), action, decision, via=via)
    return _form(event, ("action", "id", "time"))


def outcome_form(action: Action, outcome: events.Outcome) -> Form:
    """Of `events.finished` for an answered request without a body. `outcome` says all but the holes: action, bytes of the answer, duration in ms, event,
    status and time."""
    event = events.finished(EventId(_hole("id")), ActionId(_hole("action")), action, outcome)
    numbers = {name: _hole(name) for name in ("answer_bytes", "duration_ms", "status")}
    return _form(event, ("action", *numbers, "id", "time"), body={**event.body, **numbers})


def _hole(name: str) -> str:
    return f"{_TOKEN}{name}"


def _form(event: Event, holes: Sequence[str], body: dict[str, object] | None = None) -> Form:
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    rest = encode(Event(**{**values, "time": _hole("time"), "body": body if body is not None else event.body})).decode()
    numbers = body if body is not None else {}
    pieces = []
    for name in holes:
        mark = f'"{_hole(name)}"' if name in numbers else _hole(name)  # a number has no quotes
        piece, found, rest = rest.partition(mark)
        if not found:
            raise NoForm(name)
        pieces.append(piece)
    pieces.append(rest)
    if any(_TOKEN in piece for piece in pieces):
        raise NoForm("order")
    return Form(tuple(pieces))
