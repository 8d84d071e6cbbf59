"""Canonical JSON: byte for byte what RFC 8785 says, or refused."""

import hashlib
import json

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.canonical import canonical, digest, text

KEYS = st.text(st.characters(max_codepoint=127))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_it_equals_the_reference(value: object) -> None:
    """What we accept, the rfc8785 library writes the same."""
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_anything_is_written_as_the_reference_does_or_refused(value: object) -> None:
    """No third outcome: a ValueError, or the reference's bytes."""
    try:
        raw = canonical(value)
    except ValueError:
        return
    assert raw == rfc8785.dumps(value)  # type: ignore[arg-type]
    assert json.loads(raw) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "is a float"), ({"a": [1, float("nan")]}, r"\$\.a\[1\] is a float"), (2**53, "within 2"), (-(2**53), "within 2"), ("\ud800", "lone surrogate"),
        ({"\u00e9": 1}, "keys must be ASCII"), ({1: 1}, "keys must be ASCII"), (b"a", "is a bytes"), ({1}, "is a set"), (object(), "is a object"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_place(value: object, said: str) -> None:
    """The path to the value is in the error."""
    with pytest.raises(ValueError, match=said):
        canonical(value)


def test_tuples_are_lists_and_order_is_by_key() -> None:
    """Two ways to write one value have one form."""
    assert canonical({"b": (1, 2), "a": "\u20ac\n\x7f"}) == canonical({"a": "\u20ac\n\x7f", "b": [1, 2]}) == '{"a":"€\\n\x7f","b":[1,2]}'.encode()


def test_a_value_nested_too_deep_is_refused() -> None:
    """As a ValueError like every other refusal."""
    value: object = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="deep"):
        canonical(value)


def test_a_digest_names_its_function() -> None:
    """So that another may follow one day."""
    assert digest({"a": 1}) == "sha256:" + hashlib.sha256(b'{"a":1}').hexdigest()


@given(st.binary())
def test_bytes_become_text_that_can_be_recorded(raw: bytes) -> None:
    """Whatever a peer sent can stand in an event."""
    canonical(text(raw))


def test_text_that_is_utf_8_is_kept() -> None:
    """And what is not is made visible."""
    assert text("né".encode()) == "né"
    assert text(b"a\xff") == "a\\xff"
