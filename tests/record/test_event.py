"""Events are canonical JSON, whoever writes them, and nothing else is taken for one."""

import msgspec
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.canonical import canonical
from bailiwick.kernel.errors import CallerError
from bailiwick.record.event import KINDS, Event, decode, encode
from bailiwick.record.leaf import assemble, disassemble

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
KEYS = st.text(st.characters(codec="ascii"), max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OPTIONAL = st.none() | TEXTS
EVENTS = st.builds(
    Event,
    id=TEXTS,
    kind=st.sampled_from(sorted(KINDS)),
    time=TEXTS,
    run=OPTIONAL,
    agent=OPTIONAL,
    action=OPTIONAL,
    verb=OPTIONAL,
    resource=OPTIONAL,
    decision=st.sampled_from([None, "allow", "deny", "hold"]),
    credential=OPTIONAL,
    model=OPTIONAL,
    input_tokens=st.none() | st.integers(0, 2**53 - 1),
    cost_microusd=st.none() | st.integers(0, 2**53 - 1),
    body=st.dictionaries(KEYS, VALUES, max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_the_fast_encoder_is_rfc_8785(event: Event) -> None:
    """What is hashed is what the RFC's reference would write, and what `kernel.canonical` writes; it is read back the same."""
    raw = encode(event)
    assert raw == rfc8785.dumps(msgspec.to_builtins(event)) == canonical(msgspec.to_builtins(event))
    assert decode(raw) == event
    for previous in (None, 7):
        leaf = assemble(raw, previous=previous, received="2026-01-01T00:00:00.000000Z", seq=9, writer="gateway-0")
        assert leaf == rfc8785.dumps(msgspec.json.decode(leaf))
        assert bytes(disassemble(leaf).event) == raw


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (0.5, "not an integer"),
        (2**53, r"within 2\*\*53"),
        (-(2**60), r"within 2\*\*53"),
        (2**70, "integer"),
        ("\ud800", "cannot be written|surrogate"),
        (object(), "cannot be"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_its_writer(value: object, what: str) -> None:
    """A float, a long integer, half a character, a thing: the writer is told, not the recorder's log."""
    with pytest.raises(CallerError, match=what):
        encode(Event(id="a", kind="run.output", time="t", body={"value": [value]}))  # type: ignore[arg-type]


def test_keys_are_ascii() -> None:
    """A key that two implementations might sort differently is refused."""
    with pytest.raises(CallerError, match="keys must be ASCII"):
        encode(Event(id="a", kind="run.output", time="t", body={"ü": 1}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id":"a","kind":"run.output","time":"t" }',
        b'{"kind":"run.output","id":"a","time":"t"}',
        b'{"id":"a","kind":"run.output","time":"t","v":1}',
        b'{"body":{},"id":"a","kind":"run.output","time":"t"}',
        b'{"id":"\\u0061","kind":"run.output","time":"t"}',
        b'{"id":"a","kind":"run.unknown","time":"t"}',
        b'{"id":"a","kind":"run.output","more":1,"time":"t"}',
        b'{"id":"a","id":"a","kind":"run.output","time":"t"}',
        b'{"body":{"a":1.0},"id":"a","kind":"run.output","time":"t"}',
        b'{"body":{"a":1e3},"id":"a","kind":"run.output","time":"t"}',
        b'{"body":{"a":-0},"id":"a","kind":"run.output","time":"t"}',
        b'{"body":{"b":1,"a":1},"id":"a","kind":"run.output","time":"t"}',
        b'{"body":{"a":9007199254740992},"id":"a","kind":"run.output","time":"t"}',
        b'{"id":"\xff","kind":"run.output","time":"t"}',
        b'{"body":' + b'{"a":' * 3000 + b"1" + b"}" * 3001,
    ],
)
def test_other_spellings_are_refused(raw: bytes) -> None:
    """White space, another order, a default written out, an escape that is not needed, a float, a key twice: an event has one form."""
    with pytest.raises(CallerError):
        decode(raw)


def test_an_event_has_a_size() -> None:
    """Beyond limits.EVENT_BYTES_MAX the writer is told."""
    with pytest.raises(CallerError, match="must be at most 262144"):
        encode(Event(id="a", kind="run.output", time="t", body={"text": "x" * 300_000}))  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | TEXTS.map(str.encode))
def test_garbage_is_a_callers_error(raw: bytes) -> None:
    """Nothing but CallerError comes out of parsing."""
    for parse in (decode, disassemble):
        with pytest.raises(CallerError):
            parse(raw)
