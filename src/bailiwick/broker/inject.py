"""Injection: the last change made to a request's head before it leaves, so that nothing the agent wrote can undo, shadow or redirect it.

In this order: what belongs to one hop goes; what `Connection` names goes (before injection, or `Connection: Authorization` would have the next proxy
drop what is injected); what the agent brought to authenticate with goes, whoever's it is (a stranger's key at an allowed host is a way out for
data); then the leased values are added. Framing is the caller's: it writes `Content-Length` or `Transfer-Encoding` as it forwards the body.
"""

import base64
import binascii
from collections.abc import Sequence

from bailiwick.broker.messages import LeaseUse
from bailiwick.broker.template import HOP_BY_HOP, READ_BY, checked, is_field_name
from bailiwick.kernel.errors import BackendError, Conflict

Fields = tuple[tuple[bytes, bytes], ...]  # in order; names in lower case

# What a client that insists on a credential of its own is given in its place. A field that carries it is dropped, whatever its name.
PLACEHOLDER = "bailiwick-lends-this-key"

# Where widely used APIs look for a credential. An agent holds none, so one that arrives is a placeholder, a mistake or somebody else's.
CREDENTIAL_FIELDS = frozenset(
    {
        b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key", b"x-auth-token", b"x-access-token", b"x-auth-key",
        b"x-amz-security-token", b"private-token", b"job-token", b"x-github-token", b"x-gitlab-token", b"x-vault-token", b"x-consul-token", b"dd-api-key",
        b"dd-application-key", b"x-honeycomb-team", b"x-shopify-access-token", b"x-figma-token",
    }
)  # fmt: skip

_DROPPED = HOP_BY_HOP | CREDENTIAL_FIELDS
_PLACEHOLDER = PLACEHOLDER.encode()


def strip_and_inject(fields: Sequence[tuple[bytes, bytes]], uses: Sequence[LeaseUse]) -> Fields:
    """The fields to forward. Raises Conflict when two leases fill one field, BackendError when a value cannot stand in a field; neither holds a value."""
    injected: dict[bytes, bytes] = {}
    for use in uses:
        name, value = _checked(use)
        if name in injected:
            raise Conflict(f"two leases fill the field {use.field!r}; an agent may use one credential for a field of a host")
        injected[name] = value
    dropped = injected.keys() | (_named_by_connection(fields) - READ_BY)
    kept = [(name, value) for name, value in fields if (lower := name.lower()) not in _DROPPED and lower not in dropped and _PLACEHOLDER not in value]
    return (*kept, *injected.items())


def secrets_of(uses: Sequence[LeaseUse]) -> tuple[bytes, ...]:
    """What to scrub from the answer: each secret alone, and the whole field value."""
    return tuple(raw for use in uses for raw in (_decoded(use, use.secret), _decoded(use, use.value)))


def _named_by_connection(fields: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    return frozenset(word.strip().lower() for name, value in fields if name.lower() == b"connection" for word in value.split(b","))


def _checked(use: LeaseUse) -> tuple[bytes, bytes]:
    if not is_field_name(use.field):
        raise BackendError(f"credential {use.credential!r} is for the field {use.field!r}; must be a header field name (RFC 9110)")
    return use.field.lower().encode(), checked(_decoded(use, use.value), field=use.field, credential=use.credential)


def _decoded(use: LeaseUse, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BackendError(f"credential {use.credential!r} came from the broker in no base64; the two versions differ, restart bailiwick") from None
