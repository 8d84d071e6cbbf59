"""A secret has no text: not by repr, format, pickle, copy into a dict, JSON, or an exception."""

import copy
import dataclasses
import json
import pickle
import traceback
from collections.abc import Callable

import msgspec
import pydantic
import pytest

from bailiwick.kernel.secret import Secret

PLANTED = "planted-s3cret"
SECRET = Secret(PLANTED.encode())


def test_it_has_no_text() -> None:
    """However it is written out."""
    for text in (
        repr(SECRET),
        str(SECRET),
        f"{SECRET}",
        f"{SECRET!r}",
        f"{SECRET:>40}",
        "%s %r" % (SECRET, SECRET),  # noqa: UP031
        ascii(SECRET),
        repr([SECRET, {"a": SECRET}]),
        str(dir(SECRET)),
        str(type(SECRET).__dict__),
    ):
        assert PLANTED not in text


WAYS: list[Callable[[], object]] = [
    lambda: pickle.dumps(SECRET),
    lambda: copy.copy(SECRET),
    lambda: copy.deepcopy([SECRET]),
    lambda: json.dumps({"a": SECRET}),
    lambda: msgspec.json.encode(SECRET),
    lambda: msgspec.to_builtins(SECRET),
    lambda: dataclasses.asdict(SECRET),  # type: ignore[call-overload]
    lambda: dataclasses.astuple(SECRET),  # type: ignore[call-overload]
    lambda: bytes(SECRET),  # type: ignore[call-overload]
    lambda: list(SECRET),  # type: ignore[call-overload]
    lambda: vars(SECRET),
    lambda: pydantic.TypeAdapter(Secret).dump_json(SECRET),
    lambda: pydantic.TypeAdapter(object).dump_json(SECRET),
]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_not_serialised(way: Callable[[], object]) -> None:
    """Each refuses rather than writing the value, and the refusal does not hold it either."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  each library refuses in its own words
        way()
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


def test_a_dataclass_that_holds_one_does_not_write_it_out() -> None:
    """Neither as text nor as a dictionary."""

    @dataclasses.dataclass
    class Holder:
        secret: Secret

    assert PLANTED not in repr(Holder(SECRET))
    with pytest.raises(TypeError, match="not pickled or copied"):
        dataclasses.asdict(Holder(SECRET))


def test_it_is_read_only_by_name() -> None:
    """`reveal` is the one way, so that `git grep 'reveal('` is the audit."""
    assert SECRET.reveal() == PLANTED.encode()
    assert [name for name in dir(SECRET) if not name.startswith("_")] == ["reveal"]


def test_secrets_compare_and_hash_without_text() -> None:
    """Equal when their values are, and of no use as a key that could be listed."""
    assert Secret(b"a") == Secret(b"a") != Secret(b"b")
    assert PLANTED not in repr({SECRET: 1})


def test_it_cannot_be_changed() -> None:
    """A secret is a value."""
    with pytest.raises((AttributeError, TypeError)) as caught:
        SECRET.reveal = b"x"  # type: ignore[method-assign,assignment]
    assert PLANTED not in str(caught.value)
