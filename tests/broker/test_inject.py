"""Injection is last, and nothing the agent writes survives beside it."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.broker.inject import CREDENTIAL_FIELDS, PLACEHOLDER, secrets_of, strip_and_inject
from bailiwick.broker.messages import LeaseUse
from bailiwick.kernel.errors import BackendError, Conflict


def use(field: str = "Authorization", value: bytes = b"Bearer s3cret", secret: bytes = b"s3cret", credential: str = "token") -> LeaseUse:
    encode = base64.b64encode
    return LeaseUse(lease="lease-1", credential=credential, field=field, value=encode(value).decode(), secret=encode(secret).decode())


def test_the_value_is_added_last() -> None:
    """The leased value is the last field, in lower case as the layers write names."""
    assert strip_and_inject(((b"host", b"a"), (b"accept", b"*/*")), [use()]) == ((b"host", b"a"), (b"accept", b"*/*"), (b"authorization", b"Bearer s3cret"))


def test_connection_cannot_name_what_is_injected() -> None:
    """`Connection: Authorization` (in any case, among others, in several fields) neither removes the value nor reaches the upstream."""
    fields = ((b"connection", b"close, AUTHORIZATION"), (b"Connection", b"x-private ,"), (b"x-private", b"1"), (b"x-public", b"2"))
    assert strip_and_inject(fields, [use()]) == ((b"x-public", b"2"), (b"authorization", b"Bearer s3cret"))


def test_connection_cannot_remove_what_the_request_is_read_by() -> None:
    """Host, length and type of the body stay, whatever `Connection` names."""
    fields = ((b"host", b"a"), (b"content-length", b"3"), (b"content-type", b"text/plain"), (b"connection", b"host, content-length, content-type"))
    assert strip_and_inject(fields, []) == fields[:3]


@pytest.mark.parametrize("name", sorted(CREDENTIAL_FIELDS))
def test_the_agent_s_own_credentials_go(name: bytes) -> None:
    """No credential the agent brought is forwarded, with a lease or without one."""
    fields = ((name.upper(), b"stranger's key"), (name, b"another"))
    assert strip_and_inject(fields, []) == ()
    assert all(value != b"another" for _, value in strip_and_inject(fields, [use(field="X-Api-Key", value=b"k")]))


@pytest.mark.parametrize("name", ["te", "trailer", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding", "proxy-authenticate", "http2-settings"])
def test_hop_by_hop_fields_go(name: str) -> None:
    """A field that belongs to one connection is not forwarded."""
    assert strip_and_inject(((name.encode(), b"x"),), []) == ()


def test_the_agent_cannot_shadow_the_injected_field() -> None:
    """A field of the injected name is replaced, not accompanied."""
    assert strip_and_inject(((b"cookie", b"session=mine"), (b"x-team", b"a")), [use(field="X-Team", value=b"b")]) == (
        (b"cookie", b"session=mine"),
        (b"x-team", b"b"),
    )


def test_a_placeholder_goes_with_its_field() -> None:
    """A field that carries the placeholder is dropped whatever its name is."""
    assert strip_and_inject(((b"x-odd", b"sk-" + PLACEHOLDER.encode()), (b"x-even", b"2")), []) == ((b"x-even", b"2"),)


@pytest.mark.parametrize("value", [b"s3c\r\nX: y", b"s3c\nb", b"s3c\rb", b"s3c\0b", b"s3c\x7fb", b" s3c", b"s3c ", b"s3c\x1b[0m"])
def test_a_value_that_cannot_stand_in_a_field_is_refused_without_it(value: bytes) -> None:
    """No header is split by a credential; the error names the credential and not its value."""
    with pytest.raises(BackendError, match="'token' cannot stand") as caught:
        strip_and_inject((), [use(value=value)])
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize("field", ["", "a b", "a:b", "a\r\nb", "b\u00fc"])
def test_a_field_that_is_no_name_is_refused(field: str) -> None:
    """The name of the field is held to RFC 9110 too."""
    with pytest.raises(BackendError, match="must be a header field name"):
        strip_and_inject((), [use(field=field)])


def test_two_leases_for_one_field_are_refused() -> None:
    """Which of two credentials is meant is not guessed."""
    with pytest.raises(Conflict, match="two leases fill"):
        strip_and_inject((), [use(), use(field="authorization", credential="other")])


def test_a_value_that_is_not_base64_is_refused_without_it() -> None:
    """A broken answer is named, not shown."""
    with pytest.raises(BackendError) as caught:
        strip_and_inject((), [LeaseUse(lease="l", credential="token", field="a", value="s3cret!!", secret="")])
    assert "s3cret" not in str(caught.value)


def test_what_is_scrubbed_is_the_secret_and_the_value() -> None:
    """An answer that echoes either is caught."""
    assert secrets_of([use()]) == (b"s3cret", b"Bearer s3cret")


NAMES = st.sampled_from([b"connection", b"Connection", b"authorization", b"x-a", b"host", b"x-api-key", b"te", b"cookie", b"proxy-authorization"])
VALUES = st.sampled_from([b"authorization", b"close, x-a", b"x", b"Authorization, te", b"host"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
@settings(max_examples=200)
def test_exactly_one_authorization_whatever_was_sent(fields: list[tuple[bytes, bytes]]) -> None:
    """For any head, the forwarded one holds exactly the leased value, at its end, and nothing of one hop."""
    out = strip_and_inject(fields, [use()])
    assert out[-1] == (b"authorization", b"Bearer s3cret")
    assert [name.lower() for name, _ in out].count(b"authorization") == 1
    assert not {name.lower() for name, _ in out} & {b"connection", b"te", b"proxy-authorization", b"x-api-key"}
    assert [pair for pair in out if pair[0] == b"host"] == [pair for pair in fields if pair[0] == b"host"]
