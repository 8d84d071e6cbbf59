"""Frames: what two of our processes say to each other, as bytes. No I/O: `kernel.channel` moves them; the recorder's own loop and the fuzzers drive this.

A frame is a length (4 bytes, big endian) and that many bytes of JSON: `{"id", "kind", "fds", "body"}`. `kind` is `hello`, `call`, `tell`, `reply` or
`failure`. The first frame of each end is `hello` and names service and version; a stranger is refused by name. Bodies are tagged structs that
the service declares; an unknown type or field, a frame too large, a descriptor too many ends the connection with a `PeerError` that says which.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, Forbidden, NotFound, PeerError

_LENGTH = struct.Struct("!I")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag=str):
    """Base of what one process says to another. Subclasses are named in the imperative (a request) or the past tense (an answer)."""


class Done(Message, frozen=True):
    """What was asked is done and there is nothing more to say."""


class Heartbeat(Message, frozen=True):
    """From the governor, every limits.HEARTBEAT_SECONDS; who hears none for limits.HEARTBEAT_STALE_SECONDS fails closed."""

    number: int


class _Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    service: str
    version: int


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str
    message: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    kind: Literal["hello", "call", "tell", "reply", "failure"]
    body: msgspec.Raw
    id: int = 0
    fds: int = 0


_FAILURES: dict[str, type[BailiwickError]] = {kind.code: kind for kind in (CallerError, NotFound, Conflict, Forbidden, PeerError)}


class RemoteFailure(BailiwickError):
    """The other process answered with a failure that has no class of its own here; `code` is the one it sent."""


def raised(failure: Failure) -> BailiwickError:
    """What a failure answer is raised as at this end."""
    known = _FAILURES.get(failure.code)
    return known(failure.message) if known else RemoteFailure(failure.message, code=failure.code)


class Service:
    """A protocol between processes: its name, its version, every message either end may send, and how many descriptors one may bring."""

    def __init__(self, name: str, version: int, messages: Sequence[type[Message]], *, descriptors_max: int = 0) -> None:
        self.name = name
        self.version = version
        self.descriptors_max = descriptors_max
        union: Any = Done | Heartbeat
        for kind in messages:
            union = union | kind
        self._decoder = msgspec.json.Decoder(union)

    def decode(self, raw: bytes | msgspec.Raw) -> Message:
        try:
            message: Message = self._decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"{self.name} message is not understood: {error}") from error
        return message


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Literal["call", "tell", "reply", "failure"]
    id: int
    fds: int
    message: Message | Failure


class Framer:
    """One direction's bytes into frames and back, without I/O. `receive` raises PeerError and is then of no further use."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._greeted = False
        self._envelopes = msgspec.json.Decoder(_Envelope)

    @property
    def between_frames(self) -> bool:
        """Whether everything received so far made whole frames."""
        return not self._buffer

    def hello(self) -> bytes:
        return _frame("hello", _Hello(self._service.name, self._service.version))

    @staticmethod
    def send(kind: Literal["call", "tell", "reply", "failure"], message: Message | Failure, *, id: int = 0, fds: int = 0) -> bytes:
        return _frame(kind, message, id=id, fds=fds)

    def receive(self, data: bytes) -> list[Frame]:
        self._buffer += data
        frames: list[Frame] = []
        offset = 0
        while len(self._buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, offset)
            if length > limits.FRAME_BYTES_MAX:
                raise PeerError(f"{self._service.name} frame of {length} bytes; must be at most {limits.FRAME_BYTES_MAX}")
            end = offset + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frame = self._open(bytes(self._buffer[offset + _LENGTH.size : end]))
            if frame is not None:
                frames.append(frame)
            offset = end
        del self._buffer[:offset]
        return frames

    def _open(self, raw: bytes) -> Frame | None:
        try:
            envelope = self._envelopes.decode(raw)
            if not self._greeted:
                self._greet(envelope)
                return None
            if envelope.kind == "failure":
                return Frame("failure", envelope.id, 0, msgspec.json.decode(envelope.body, type=Failure))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"{self._service.name} frame is not understood: {error}") from error
        if envelope.kind == "hello":
            raise PeerError(f"{self._service.name}: a second hello")
        if not 0 <= envelope.fds <= self._service.descriptors_max:
            raise PeerError(f"{self._service.name} frame announces {envelope.fds} descriptors; must be 0 to {self._service.descriptors_max}")
        return Frame(envelope.kind, envelope.id, envelope.fds, self._service.decode(envelope.body))

    def _greet(self, envelope: _Envelope) -> None:
        if envelope.kind != "hello":
            raise PeerError(f"{self._service.name}: the first frame is {envelope.kind}; must be hello")
        hello = msgspec.json.decode(envelope.body, type=_Hello)
        if (hello.service, hello.version) != (self._service.name, self._service.version):
            raise PeerError(f"peer speaks {hello.service[:64]!r} {hello.version}; must be {self._service.name} {self._service.version}")
        self._greeted = True


def _frame(kind: Literal["hello", "call", "tell", "reply", "failure"], body: msgspec.Struct, *, id: int = 0, fds: int = 0) -> bytes:
    try:
        raw = msgspec.json.encode(_Envelope(kind, msgspec.Raw(msgspec.json.encode(body)), id, fds))
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise CallerError(f"message {type(body).__name__} cannot be written: {type(error).__name__}") from None  # the error's text would hold the value
    if len(raw) > limits.FRAME_BYTES_MAX:
        raise CallerError(f"message {type(body).__name__} of {len(raw)} bytes; must be at most {limits.FRAME_BYTES_MAX}", code="too-large")
    return _LENGTH.pack(len(raw)) + raw
