"""Heads of HTTP messages as the layers hand them around: what was on the wire, checked, and nothing decided yet."""

from dataclasses import dataclass
from typing import Literal

Fields = tuple[tuple[bytes, bytes], ...]  # in order; names in lower case, values without surrounding white space

Framing = Literal["none", "length", "chunked", "until-close"]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """`target` as sent. `form` is RFC 9112 3.2's. `authority` is the lower-cased host and port of an absolute or authority form target, else of the
    Host field; it is what the client claims, never what it is connected to."""

    method: str
    target: str
    form: Literal["origin", "absolute", "authority", "asterisk"]
    authority: str
    fields: Fields
    framing: Framing
    length: int | None
    keep_alive: bool
    upgrade: bool
    expects_continue: bool

    def first(self, name: bytes) -> bytes | None:
        for key, value in self.fields:
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    reason: bytes
    fields: Fields
    framing: Framing
    length: int | None
    keep_alive: bool

    def first(self, name: bytes) -> bytes | None:
        for key, value in self.fields:
            if key == name:
                return value
        return None
