"""A template says where a secret stands in a field, exactly once, and a filled one is one field."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.broker.template import Template
from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.kernel.secret import Secret


def filled(template: str, secret: bytes) -> bytes:
    return Template.parse(template).fill(Secret(secret), credential="token").reveal()


def test_the_secret_stands_where_the_template_says() -> None:
    """Before, between and after other text; the white space around the value is not part of it."""
    assert filled("Authorization: Bearer {value}", b"x") == b"Bearer x"
    assert filled("X-Key:{value}", b"x") == b"x"
    assert filled("Cookie: \t session={value}; a=b ", b"x") == b"session=x; a=b"


def test_basic_is_rfc_7617() -> None:
    """`{basic:USER}` is the base64 of user, colon, secret."""
    assert filled("Authorization: Basic {basic:x-access-token}", b"s\xc3\xa9") == b"Basic " + base64.b64encode(b"x-access-token:s\xc3\xa9")


NO_TEMPLATES = [
    "", ":", "A", "A:", "A: x", ": {value}", "A B: {value}", "A: {value}{value}", "A: {value} {basic:u}", "A: {basic:}", "A: {basic:a:b}", "A: {{value}}",
    "A: {Value}", "A: \r\n {value}", "A: \0{value}", "A: {value}" + "x" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("template", NO_TEMPLATES)
def test_anything_else_is_no_template(template: str) -> None:
    """Refused when it is read, not when it is used."""
    with pytest.raises(CallerError):
        Template.parse(template)


@given(st.text(max_size=40))
def test_any_text_is_a_template_or_a_caller_error(text: str) -> None:
    """No other exception, whatever the configuration or a peer holds."""
    try:
        Template.parse(text)
    except CallerError:
        return


@given(st.binary(max_size=40))
def test_a_filled_field_is_one_field_or_a_backend_error_without_the_value(secret: bytes) -> None:
    """No secret splits a head, and none is shown because it would."""
    whole = b"Bearer " + secret
    if set(secret) & (set(range(32)) - {9} | {127}) or whole != whole.strip():
        with pytest.raises(BackendError, match=r"^credential 'token' cannot stand in the field 'Authorization': it holds [a-z, ]+$"):
            filled("Authorization: Bearer {value}", secret)
    else:
        assert filled("Authorization: Bearer {value}", secret) == whole
