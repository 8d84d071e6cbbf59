"""Typed, versioned messages between our processes over a unix socket, with the peer's credentials and passed descriptors.

A frame is a length (4 bytes, big endian) and that many bytes of JSON: `{"id", "kind", "fds", "body"}`. `kind` is `hello`, `call`, `tell`, `reply` or
`failure`. The first frame of each end is `hello` and names service and version; a stranger is refused by name. Bodies are tagged structs that
the service declares; an unknown type or field, a frame too large, a descriptor too many ends the connection with a `PeerError` that says which.

`Framer` is the protocol without I/O (driven by the recorder's own loop and by the fuzzer); `Channel` is both ends for everybody else.
"""

import contextlib
import math
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import anyio.abc
import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, Forbidden, NotFound, PeerError

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_READ_BYTES = 256 * 1024


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


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel's word (SO_PEERCRED), not by its own."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> "Peer":
        return cls(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


class Service:
    """A protocol between processes: its name, its version, and every message either end may send."""

    def __init__(self, name: str, version: int, messages: Sequence[type[Message]]) -> None:
        self.name = name
        self.version = version
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
        if not 0 <= envelope.fds <= limits.DESCRIPTORS_PER_MESSAGE_MAX:
            raise PeerError(f"{self._service.name} frame announces {envelope.fds} descriptors; must be 0 to {limits.DESCRIPTORS_PER_MESSAGE_MAX}")
        return Frame(envelope.kind, envelope.id, envelope.fds, self._service.decode(envelope.body))

    def _greet(self, envelope: _Envelope) -> None:
        if envelope.kind != "hello":
            raise PeerError(f"{self._service.name}: the first frame is {envelope.kind}; must be hello")
        hello = msgspec.json.decode(envelope.body, type=_Hello)
        if (hello.service, hello.version) != (self._service.name, self._service.version):
            raise PeerError(f"peer speaks {hello.service} {hello.version}; must be {self._service.name} {self._service.version}")
        self._greeted = True


def _frame(kind: Literal["hello", "call", "tell", "reply", "failure"], body: msgspec.Struct, *, id: int = 0, fds: int = 0) -> bytes:
    raw = msgspec.json.encode(_Envelope(kind, msgspec.Raw(msgspec.json.encode(body)), id, fds))
    if len(raw) > limits.FRAME_BYTES_MAX:
        raise CallerError(f"message {type(body).__name__} of {len(raw)} bytes; must be at most {limits.FRAME_BYTES_MAX}", code="too-large")
    return _LENGTH.pack(len(raw)) + raw


@dataclass(frozen=True, slots=True)
class Received:
    """A message with the descriptors that came with it; the handler owns them and closes what it does not keep."""

    message: Message
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    message: Message = field(default_factory=Done)
    descriptors: tuple[int, ...] = ()  # sent, not closed: they stay the handler's


Handler = Callable[["Channel", Received], Awaitable[Reply | None]]


class Channel:
    """One end of a connection. `run` reads until the peer closes; `call` and `tell` may be used from other tasks meanwhile.

    A handler's BailiwickError becomes a failure answer with its code and text; anything else is answered `internal` and raised out of `run`.
    """

    def __init__(self, sock: socket.socket, service: Service, handler: Handler | None = None) -> None:
        sock.setblocking(False)
        self.peer = Peer.of(sock)
        self._sock = sock
        self._framer = Framer(service)
        self._handler = handler
        self._service = service
        self._sending = anyio.Lock()  # a frame and its descriptors leave whole: two tasks may send
        self._waiting: dict[int, _Waiter] = {}
        self._next_id = 0
        self._arrived: list[int] = []
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def call(self, message: Message, *, descriptors: Sequence[int] = (), seconds_max: float = limits.CALL_SECONDS_MAX) -> Received:
        """The peer's answer. Raises what the peer failed with (by its code), PeerError when it closes or does not answer in time."""
        self._next_id += 1
        waiter = self._waiting[self._next_id] = _Waiter(anyio.Event())
        number = self._next_id
        try:
            with anyio.move_on_after(seconds_max if seconds_max != math.inf else None):
                await self._send("call", message, id=number, descriptors=descriptors)
                await waiter.event.wait()
        finally:
            self._waiting.pop(number, None)
        if isinstance(waiter.outcome, BailiwickError):
            raise waiter.outcome
        if waiter.outcome is None:
            raise PeerError(f"{self._service.name} did not answer {type(message).__name__} within {seconds_max:g} s")
        return waiter.outcome

    async def tell(self, message: Message, *, descriptors: Sequence[int] = ()) -> None:
        await self._send("tell", message, descriptors=descriptors)

    async def run(self) -> None:
        """Reads until the peer closes, serving each call in a task of its own. Closes the socket and fails what waits, however it ends."""
        try:
            with contextlib.suppress(ConnectionError):
                await self._send_bytes(self._framer.hello())
            async with anyio.create_task_group() as tasks:
                async for frame in self._frames():
                    self._dispatch(frame, tasks)
                tasks.cancel_scope.cancel()
        finally:
            self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        anyio.notify_closing(self._sock)
        self._sock.close()
        for descriptor in self._arrived:
            os.close(descriptor)
        self._arrived.clear()
        for waiter in self._waiting.values():
            waiter.outcome = waiter.outcome or PeerError(f"{self._service.name} closed the connection", code="closed")
            waiter.event.set()

    async def _frames(self) -> AsyncIterator[Frame]:
        while not self._closed:
            try:
                await anyio.wait_readable(self._sock)
                data, descriptors, _flags, _address = socket.recv_fds(self._sock, _READ_BYTES, limits.DESCRIPTORS_PER_MESSAGE_MAX)
            except BlockingIOError:
                continue
            except (ConnectionError, anyio.ClosedResourceError, OSError):
                return
            self._arrived.extend(descriptors)
            if not data:
                return
            for frame in self._framer.receive(data):
                yield frame

    def _dispatch(self, frame: Frame, tasks: anyio.abc.TaskGroup) -> None:
        taken, self._arrived = tuple(self._arrived[: frame.fds]), self._arrived[frame.fds :]
        if len(taken) != frame.fds:
            raise PeerError(f"{self._service.name} announced {frame.fds} descriptors and sent {len(taken)}")
        if frame.kind in ("reply", "failure"):
            waiter = self._waiting.get(frame.id)
            if waiter is None:
                for descriptor in taken:
                    os.close(descriptor)
                return
            if isinstance(frame.message, Failure):
                waiter.outcome = _raised(frame.message)
            else:
                waiter.outcome = Received(frame.message, taken)
            waiter.event.set()
            return
        assert isinstance(frame.message, Message)
        tasks.start_soon(self._serve, frame, Received(frame.message, taken))

    async def _serve(self, frame: Frame, received: Received) -> None:
        try:
            if self._handler is None:
                raise CallerError(f"{self._service.name}: this end takes no requests")
            reply = await self._handler(self, received)
        except BailiwickError as error:
            await self._answer(frame, Failure(error.code, str(error)))
            return
        except Exception:
            await self._answer(frame, Failure("internal", f"{self._service.name} failed on {type(frame.message).__name__}; its log says why"))
            raise
        if frame.kind == "call":
            reply = reply or Reply()
            await self._answer(frame, reply.message, reply.descriptors)

    async def _answer(self, frame: Frame, message: Message | Failure, descriptors: Sequence[int] = ()) -> None:
        if frame.kind != "call":
            return
        with contextlib.suppress(PeerError):  # nobody is left to hear it
            await self._send("failure" if isinstance(message, Failure) else "reply", message, id=frame.id, descriptors=descriptors)

    async def _send(
        self, kind: Literal["call", "tell", "reply", "failure"], message: Message | Failure, *, id: int = 0, descriptors: Sequence[int] = ()
    ) -> None:
        await self._send_bytes(self._framer.send(kind, message, id=id, fds=len(descriptors)), descriptors)

    async def _send_bytes(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        view = memoryview(data)
        async with self._sending:
            while view:
                if self._closed:
                    raise PeerError(f"{self._service.name} closed the connection", code="closed")
                try:
                    sent = socket.send_fds(self._sock, [view], list(descriptors)) if descriptors else self._sock.send(view)
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                    continue
                except OSError as error:
                    raise PeerError(f"{self._service.name} closed the connection: {error.strerror}", code="closed") from error
                descriptors = ()
                view = view[sent:]


@dataclass(slots=True)
class _Waiter:
    event: anyio.Event
    outcome: Received | BailiwickError | None = None


def _raised(failure: Failure) -> BailiwickError:
    known = _FAILURES.get(failure.code)
    return known(failure.message) if known else RemoteFailure(failure.message, code=failure.code)


async def connect(path: str, service: Service, handler: Handler | None = None) -> Channel:
    """A channel to the service listening at `path`; the caller runs it in a task of its own. PeerError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)  # a local listener with a backlog answers at once or not at all
    except OSError as error:
        sock.close()
        raise PeerError(f"{service.name} is not reachable at {path}: {error.strerror}", code="unreachable") from error
    return Channel(sock, service, handler)


async def serve(listener: socket.socket, service: Service, handler: Handler, *, admit: Callable[[Peer], bool], refused: Callable[[Peer, str], None]) -> None:
    """Accepts for ever. `admit` decides by the peer's credentials; `refused` is told of strangers and of peers that broke the protocol."""
    listener.setblocking(False)

    async def one(sock: socket.socket) -> None:
        channel = Channel(sock, service, handler)
        if not admit(channel.peer):
            refused(channel.peer, "uid is not one of our processes")
            channel.close()
            return
        try:
            await channel.run()
        except BaseExceptionGroup as group:
            broken, rest = group.split(PeerError)
            if broken is not None:
                refused(channel.peer, str(broken.exceptions[0]))
            if rest is not None:
                raise rest from None
        except PeerError as error:
            refused(channel.peer, str(error))

    async with anyio.create_task_group() as tasks:
        while True:
            await anyio.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            tasks.start_soon(one, sock)
