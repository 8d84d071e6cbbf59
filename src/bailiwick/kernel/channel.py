"""Typed, versioned messages between our processes over a unix socket, with the peer's credentials and passed descriptors.

`kernel.framing` says what is on the wire; here are both ends of a connection, and the loop that accepts them. A peer that breaks the protocol loses its
connection; a handler that breaks loses it too, and says why on standard error. Neither ends the process.
"""

import array
import contextlib
import errno
import logging
import math
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio
import anyio.abc

from bailiwick.kernel import limits
from bailiwick.kernel.errors import BailiwickError, CallerError, PeerError
from bailiwick.kernel.framing import Done, Failure, Frame, Framer, Heartbeat, Message, RemoteFailure, Service, raised

__all__ = [
    "Channel", "Done", "Failure", "Frame", "Framer", "Handler", "Heartbeat", "Message", "Peer", "Received", "RemoteFailure", "Reply", "Service",
    "connect", "serve",
]  # fmt: skip

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_READ_BYTES = 256 * 1024
_CONNECT_RETRY_SECONDS = 0.01
_ACCEPT_PAUSE_SECONDS = 0.1
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel's word (SO_PEERCRED), not by its own."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> "Peer":
        return cls(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


@dataclass(frozen=True, slots=True)
class Received:
    """A message with the descriptors that came with it; the handler owns them and closes what it does not keep."""

    message: Message
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """For who takes no descriptors, or may not keep them."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Reply:
    message: Message = field(default_factory=Done)
    descriptors: tuple[int, ...] = ()  # sent, not closed: they stay the handler's


Handler = Callable[["Channel", Received], Awaitable[Reply | None]]


@dataclass(slots=True)
class _Waiter:
    event: anyio.Event
    outcome: Received | BailiwickError | None = None


class Channel:
    """One end of a connection. `run` reads until the peer closes; `call` and `tell` may be used from other tasks meanwhile, and before.

    A handler's BailiwickError becomes a failure answer with its code and text. Anything else is our own mistake: it is logged with its traceback, answered
    `internal`, and the connection is closed.
    """

    def __init__(self, sock: socket.socket, service: Service, handler: Handler | None = None) -> None:
        sock.setblocking(False)
        self.peer = Peer.of(sock)
        self._sock = sock
        self._framer = Framer(service)
        self._handler = handler
        self._service = service
        self._sending = anyio.Lock()  # a frame and its descriptors leave whole: two tasks may send
        self._hello: bytes = self._framer.hello()  # leaves before anything else
        self._waiting: dict[int, _Waiter] = {}
        self._next_id = 0
        self._arrived: list[int] = []
        self._unserved: dict[int, Received] = {}  # whose task has not begun: their descriptors are still ours
        self._serving = 0
        self._waits = 0  # tasks that wait for the socket: its number is not given back before they know
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def call(self, message: Message, *, descriptors: Sequence[int] = (), seconds_max: float = limits.CALL_SECONDS_MAX) -> Received:
        """The peer's answer. Raises what the peer failed with (by its code), PeerError when it closes or does not answer in time."""
        self._next_id += 1
        number = self._next_id
        waiter = self._waiting[number] = _Waiter(anyio.Event())
        try:
            with anyio.move_on_after(seconds_max if seconds_max != math.inf else None):
                await self._send("call", message, id=number, descriptors=descriptors)
                await waiter.event.wait()
        except BaseException:
            if isinstance(waiter.outcome, Received):
                waiter.outcome.close()
            raise
        finally:
            self._waiting.pop(number, None)
        if isinstance(waiter.outcome, BailiwickError):
            raise waiter.outcome
        if waiter.outcome is None:
            raise PeerError(f"{self._service.name} did not answer {type(message).__name__} within {seconds_max:g} s", code="timeout")
        return waiter.outcome

    async def tell(self, message: Message, *, descriptors: Sequence[int] = ()) -> None:
        await self._send("tell", message, descriptors=descriptors)

    async def run(self) -> None:
        """Reads until the peer closes, serving each request in a task of its own; what is being served then is cancelled. Closes the socket and fails
        what waits, however it ends. Raises PeerError when the peer broke the protocol."""
        broken: PeerError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    with contextlib.suppress(PeerError):  # it has closed already; what it said before is still read
                        await self._send_bytes(b"")
                    async for frame in self._frames():
                        self._dispatch(frame, tasks)
                except PeerError as error:
                    broken = error
                tasks.cancel_scope.cancel()
        finally:
            self.close()
        if broken is not None:
            raise broken

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._waits:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes them; the last one closes
        else:
            self._sock.close()
        for received in self._unserved.values():
            received.close()
        self._unserved.clear()
        for descriptor in self._arrived:
            os.close(descriptor)
        self._arrived.clear()
        for waiter in self._waiting.values():
            waiter.outcome = waiter.outcome or PeerError(f"{self._service.name} closed the connection", code="closed")
            waiter.event.set()

    async def _wait(self, condition: Callable[[socket.socket], Awaitable[None]]) -> None:
        """anyio tells waiting tasks apart by the socket's number alone: were it used again at once, the one that wakes would unregister the other."""
        self._waits += 1
        try:
            await condition(self._sock)
        finally:
            self._waits -= 1
            if self._closed and not self._waits:
                self._sock.close()

    async def _frames(self) -> AsyncIterator[Frame]:
        while not self._closed:
            try:
                await self._wait(anyio.wait_readable)
                data = self._receive()
            except BlockingIOError:
                continue
            except (OSError, anyio.ClosedResourceError):
                return
            if not data:
                return
            for frame in self._framer.receive(data):
                yield frame
            if self._arrived and self._framer.between_frames:
                raise PeerError(f"{self._service.name} sent {len(self._arrived)} descriptors that no frame announced")

    def _receive(self) -> bytes:
        # Not socket.recv_fds: it takes no MSG_CMSG_CLOEXEC (it ignores its `flags`), and a descriptor would leak into every process we start.
        room = self._service.descriptors_max
        data, ancillary, flags, _ = self._sock.recvmsg(_READ_BYTES, socket.CMSG_SPACE(room * 4) if room else 0, socket.MSG_CMSG_CLOEXEC)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._arrived.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
        if flags & socket.MSG_CTRUNC or len(self._arrived) > room:
            raise PeerError(f"{self._service.name} was sent too many descriptors; must be at most {room}")
        return data

    def _dispatch(self, frame: Frame, tasks: anyio.abc.TaskGroup) -> None:
        if len(self._arrived) < frame.fds:
            raise PeerError(f"{self._service.name} announced {frame.fds} descriptors and sent {len(self._arrived)}")
        taken, self._arrived = tuple(self._arrived[: frame.fds]), self._arrived[frame.fds :]
        if frame.kind in ("reply", "failure"):
            waiter = self._waiting.get(frame.id)
            if waiter is None or waiter.outcome is not None:
                for descriptor in taken:
                    os.close(descriptor)
                return
            waiter.outcome = raised(frame.message) if isinstance(frame.message, Failure) else Received(frame.message, taken)
            waiter.event.set()
            return
        assert isinstance(frame.message, Message)
        received = Received(frame.message, taken)
        busy = self._serving >= limits.REQUESTS_IN_FLIGHT_MAX
        self._serving += 1
        self._unserved[id(received)] = received
        tasks.start_soon(self._serve, frame, received, busy)

    async def _serve(self, frame: Frame, received: Received, busy: bool) -> None:
        # A task that is cancelled before it has begun never comes here: `close` closes what it would have taken.
        if self._unserved.pop(id(received), None) is None:
            return
        try:
            await self._handle(frame, received, busy)
        finally:
            self._serving -= 1

    async def _handle(self, frame: Frame, received: Received, busy: bool) -> None:
        try:
            if busy or self._handler is None:
                received.close()
                if self._handler is None:
                    raise CallerError(f"{self._service.name}: this end takes no requests")
                raise CallerError(f"{self._service.name} serves {limits.REQUESTS_IN_FLIGHT_MAX} requests of this connection already; ask later", code="busy")
            reply = await self._handler(self, received) or Reply()
            await self._answer(frame, reply.message, reply.descriptors)
        except BailiwickError as error:
            await self._answer(frame, Failure(error.code, str(error)))
        except Exception:  # noqa: BLE001  whatever it was: the process serves others too
            _log.exception("%s failed on %s", self._service.name, type(frame.message).__name__)
            await self._answer(frame, Failure("internal", f"{self._service.name} failed on {type(frame.message).__name__}; its log says why"))
            self.close()

    async def _answer(self, frame: Frame, message: Message | Failure, descriptors: Sequence[int] = ()) -> None:
        if frame.kind != "call":
            return
        with contextlib.suppress(PeerError):  # nobody is left to hear it
            await self._send("failure" if isinstance(message, Failure) else "reply", message, id=frame.id, descriptors=descriptors)

    async def _send(
        self, kind: Literal["call", "tell", "reply", "failure"], message: Message | Failure, *, id: int = 0, descriptors: Sequence[int] = ()
    ) -> None:
        if len(descriptors) > self._service.descriptors_max:
            raise CallerError(f"{self._service.name} message with {len(descriptors)} descriptors; must be at most {self._service.descriptors_max}")
        await self._send_bytes(self._framer.send(kind, message, id=id, fds=len(descriptors)), descriptors)

    async def _send_bytes(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        async with self._sending:
            if self._hello:
                hello, self._hello = self._hello, b""
                await self._send_whole(hello)
            await self._send_whole(data, descriptors)

    async def _send_whole(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        view, whole = memoryview(data), len(data)
        try:
            while view:
                if self._closed:
                    raise PeerError(f"{self._service.name} closed the connection", code="closed")
                try:
                    sent = socket.send_fds(self._sock, [view], list(descriptors)) if descriptors else self._sock.send(view)
                except BlockingIOError:
                    await self._wait(anyio.wait_writable)
                    continue
                descriptors = ()
                view = view[sent:]
        except (OSError, anyio.ClosedResourceError) as error:
            raise PeerError(f"{self._service.name} closed the connection: {getattr(error, 'strerror', None) or 'it is closed here'}", code="closed") from error
        except BaseException:  # given up: half a frame has left, and the next one would be read as its rest
            if 0 < len(view) < whole:
                self.close()
            raise


async def connect(path: str, service: Service, handler: Handler | None = None) -> Channel:
    """A channel to the service listening at `path`; the caller runs it in a task of its own. PeerError when nobody listens, or nobody accepts in time."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with anyio.fail_after(limits.CONNECT_SECONDS_MAX):
            while True:
                try:
                    sock.connect(path)
                    break
                except BlockingIOError:  # the backlog is full: unix(7) has no event for when it is not
                    await anyio.sleep(_CONNECT_RETRY_SECONDS)
        return Channel(sock, service, handler)
    except TimeoutError as error:
        sock.close()
        raise PeerError(f"{service.name} at {path} did not accept within {limits.CONNECT_SECONDS_MAX:g} s", code="unreachable") from error
    except OSError as error:
        sock.close()
        raise PeerError(f"{service.name} is not reachable at {path}: {error.strerror}", code="unreachable") from error
    except BaseException:
        sock.close()
        raise


async def serve(listener: socket.socket, service: Service, handler: Handler, *, admit: Callable[[Peer], bool], refused: Callable[[Peer, str], None]) -> None:
    """Accepts for ever. `admit` decides by the peer's credentials; `refused` is told of strangers, of peers that broke the protocol, and of a uid that
    holds limits.CONNECTIONS_PER_UID_MAX connections already: one process that was taken over does not shut the others out."""
    listener.setblocking(False)
    held: Counter[int] = Counter()

    async def one(sock: socket.socket) -> None:
        channel = Channel(sock, service, handler)
        peer = channel.peer
        if not admit(peer):
            channel.close()
            refused(peer, "uid is not one of our processes")
            return
        if held[peer.uid] >= limits.CONNECTIONS_PER_UID_MAX:
            channel.close()
            refused(peer, f"uid has {held[peer.uid]} connections; must be at most {limits.CONNECTIONS_PER_UID_MAX}")
            return
        held[peer.uid] += 1
        try:
            await channel.run()
        except PeerError as error:
            refused(peer, str(error))
        finally:
            held[peer.uid] -= 1

    async with anyio.create_task_group() as tasks:
        while True:
            await anyio.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.warning("%s cannot accept: %s", service.name, error.strerror)
                await anyio.sleep(_ACCEPT_PAUSE_SECONDS)
                continue
            tasks.start_soon(one, sock)
