"""How a secret becomes a header field: `Authorization: Bearer {value}`, or `Authorization: Basic {basic:USER}` for RFC 7617's `USER:secret` in base64."""

import base64
import re
from dataclasses import dataclass

from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.kernel.secret import Secret

TEMPLATE_CHARACTERS_MAX = 1_024

# RFC 9110 7.6.1, RFC 9112, and the older ones that clients still send: they belong to one connection.
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding",
        b"upgrade", b"http2-settings",
    }
)  # fmt: skip

# What decides how and where a request is read. Neither a credential nor `Connection` (RFC 9110 7.6.1) may touch it.
READ_BY = frozenset({b"host", b"content-length", b"content-type", b"content-encoding"})

_FORBIDDEN = HOP_BY_HOP | READ_BY | {b"expect", b"range", b"date", b"content-range", b"content-location", b"via", b"forwarded"}
_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")  # RFC 9110 5.6.2
_SLOT = re.compile(r"\{value\}|\{basic:([^{}:\x00-\x20\x7f]+)\}")
_NOT_IN_A_VALUE = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")


@dataclass(frozen=True, slots=True)
class Template:
    field: str
    before: str
    user: str | None  # of a `{basic:USER}`; None for `{value}`
    after: str

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Raises CallerError, which shows the field and never the rest: who mistakes what belongs here wrote the secret itself."""
        field, colon, rest = text.partition(":")
        if not colon or not _FIELD.fullmatch(field) or len(text) > TEMPLATE_CHARACTERS_MAX:
            raise CallerError(f"is not a header field of at most {TEMPLATE_CHARACTERS_MAX} characters; write it as in 'Authorization: Bearer {{value}}'")
        if field.lower().encode() in _FORBIDDEN or field.lower().startswith("proxy-"):
            raise CallerError(f"field {field} says how a request is read or belongs to one connection, and never carries a credential; name another")
        value = rest.strip(" \t")
        slots = list(_SLOT.finditer(value))
        if len(slots) != 1:
            raise CallerError(f"field {field} has {len(slots)} places for the secret; must have {{value}} (or {{basic:USER}}) exactly once")
        before, after = value[: slots[0].start()], value[slots[0].end() :]
        if "{" in before + after or "}" in before + after:
            raise CallerError(f"field {field} has a brace beside the secret's place; must hold no others than those of {{value}} or {{basic:USER}}")
        if not (before + after).isascii() or not (before + after).isprintable():
            raise CallerError(f"field {field} holds a control character or one that is not ASCII; a header field takes neither")
        return cls(field, before, slots[0][1], after)

    def fill(self, secret: Secret, *, credential: str) -> Secret:
        """The field's whole value. BackendError, naming the credential and not its value, when it cannot stand in a header field."""
        raw = secret.reveal()
        if self.user is not None:
            raw = base64.b64encode(self.user.encode() + b":" + raw)
        return Secret(checked(self.before.encode() + raw + self.after.encode(), field=self.field, credential=credential))


def checked(value: bytes, *, field: str, credential: str) -> bytes:
    """The value, if it is one field's and cannot end it. BackendError without the value otherwise."""
    if _NOT_IN_A_VALUE.search(value) or value != value.strip():
        raise BackendError(f"credential {credential!r} cannot stand in the field {field!r}: it holds a control character, or white space at an end")
    return value


def is_field_name(name: str) -> bool:
    return _FIELD.fullmatch(name) is not None
