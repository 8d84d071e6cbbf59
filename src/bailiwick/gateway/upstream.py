"""Upstream: the side of the gateway that reaches out. A name is resolved only here, after its action was allowed, and every address is checked.

A destination is the authorised name; the connection goes to the address that was checked, and TLS verifies the name. Connections are kept for the run
that opened them and for no other. An effect is never sent twice: only a read whose reused connection closed before any byte of an answer is.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol, cast

from bailiwick.critic.enforcement import HostPin
from bailiwick.gateway.addresses import special_purpose
from bailiwick.gateway.answers import KnownAnswer, KnownAnswers
from bailiwick.gateway.layers.chunked import ProtocolViolation
from bailiwick.gateway.layers.heads import ResponseHead
from bailiwick.gateway.layers.http1 import END, End, ResponseReader
from bailiwick.gateway.layers.tls import TlsFailure, TlsPump
from bailiwick.kernel import limits

ADDRESSES_TRIED_MAX = 4
IDLE_PER_DESTINATION_MAX = 32
IDLE_SECONDS_MAX = 30.0  # below the 60 to 75 s after which common servers close
WRITE_HIGH_BYTES = 256 * limits.KIB

Resolver = Callable[[str, int], Awaitable[list[str]]]


class UpstreamFailed(Exception):
    """The other side could not be reached, or broke off. `code` is stable; `answered` is whether any byte of an answer had come."""

    def __init__(self, code: str, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.answered = answered


class Destination(NamedTuple):
    """`name` is what was authorised: a host name or an address literal."""

    name: str
    port: int
    tls: bool


class Receiver(Protocol):
    """Who asked. Heard in order: head, data, end; or a failure at any time. Or all of it at once, if that is what it takes."""

    def takes_whole(self, answer: KnownAnswer, out: bytes) -> bool: ...
    def answer_whole(self, answer: KnownAnswer, out: bytes) -> None: ...
    def answer_head(self, head: ResponseHead) -> None: ...
    def answer_data(self, data: bytes) -> None: ...
    def answer_flush(self) -> None:
        """What came at once has been handed over: nothing more may be held back."""

    def answer_end(self) -> None: ...
    def answer_failed(self, failure: UpstreamFailed) -> None: ...
    def upstream_full(self) -> None: ...
    def upstream_drained(self) -> None: ...


class TlsContexts:
    """Contexts that verify: the system's roots, or the one authority that a pin names."""

    def __init__(self) -> None:
        self._system: ssl.SSLContext | None = None
        self._pinned: dict[str, ssl.SSLContext] = {}

    def context(self, ca: str | None) -> ssl.SSLContext:
        if ca is None:
            self._system = self._system or _verifying(None)
            return self._system
        if ca not in self._pinned:
            try:
                self._pinned[ca] = _verifying(ca)
            except (ssl.SSLError, ValueError) as error:
                raise UpstreamFailed("pin-invalid", "the pinned authority is not a PEM certificate") from error
        return self._pinned[ca]


def _verifying(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamConnection(asyncio.Protocol):
    """One connection. `ask` takes it for one exchange; afterwards it may be kept if `reusable`."""

    def __init__(self, address: str, pump: TlsPump | None, lost: "Callable[[UpstreamConnection], None]", known: KnownAnswers | None = None) -> None:
        self.address = address
        self.reused = False
        self.idle_since = 0.0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._pump = pump
        self._reader = ResponseReader()
        self._receiver: Receiver | None = None
        self._answered = False
        self._kept = False
        self._paused = False
        self._lost = lost
        self._known = KnownAnswers() if known is None else known

    # -- the asking side

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        return self._kept and self._receiver is None and self._transport is not None and not self._transport.is_closing()

    def ask(self, method: str, receiver: Receiver) -> None:
        self._receiver, self._answered, self._kept = receiver, False, False
        if self._paused:
            self.resume_reading()
        self._reader.expect(method)

    def send(self, data: bytes) -> None:
        if self._transport is None or not data:
            return
        if self._pump is None:
            self._transport.write(data)
            return
        try:
            self._pump.send(data)
        except TlsFailure as failure:
            self._fail(UpstreamFailed(failure.code, str(failure), answered=self._answered))
            return
        self._transport.write(self._pump.outgoing())

    def pause_reading(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        self._receiver = None
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        if self._pump is None:
            self.opened.set_result(None)
        else:
            self._decrypt(b"")

    def data_received(self, data: bytes) -> None:
        if self._pump is None:
            self._take(data)
            return
        for piece in self._decrypt(data):
            self._take(piece)
        if self._pump.closed:
            self.close()

    def _decrypt(self, data: bytes) -> list[bytes]:
        assert self._pump is not None
        assert self._transport is not None
        try:
            pieces = self._pump.feed(data)
        except TlsFailure as failure:
            self._transport.write(self._pump.outgoing())
            self._fail(UpstreamFailed(failure.code, str(failure), answered=self._answered))
            return []
        if out := self._pump.outgoing():
            self._transport.write(out)
        if self._pump.ready and not self.opened.done():
            self.opened.set_result(None)
        return pieces

    def _take(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.close()  # it speaks without being asked: out of step
            return
        self._answered = True
        reader, raw = self._reader, b""
        if reader.asked:
            end = data.find(b"\r\n\r\n") + 4
            raw = data[:end]
            known = self._known.get(raw)
            if known is not None and len(data) - end == known.length and receiver.takes_whole(known, out := known.outgoing + data[end:]):
                reader.pass_over()
                self._receiver, self._kept = None, True
                receiver.answer_whole(known, out)
                return
        try:
            events = self._reader.feed(data)
        except ProtocolViolation as violation:
            self._fail(UpstreamFailed(f"answer-{violation.code}", f"the answer breaks HTTP: {violation}", answered=True))
            return
        for event in events:
            if isinstance(event, bytes):
                receiver.answer_data(event)
            elif isinstance(event, End):
                self._receiver = None
                receiver.answer_end()
            else:
                self._kept = event.keep_alive
                if raw and event.status // 100 == raw[9] - 0x30:  # and not of an interim answer before it
                    self._known.add(raw, event)
                receiver.answer_head(event)
            if self._receiver is not receiver:
                return
        receiver.answer_flush()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(UpstreamFailed("connect-failed", "the connection closed in the TLS handshake"))
            self.opened.exception()  # heard by `connect`, or by nobody if it gave up
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self._ended(receiver, exc)
        self._lost(self)

    def _ended(self, receiver: Receiver, exc: Exception | None) -> None:
        cut = exc is not None or (self._pump is not None and not self._pump.closed)
        try:
            ended = not cut and END in self._reader.close()
        except ProtocolViolation:
            ended = False
        if ended:
            receiver.answer_end()
        elif self._answered:
            receiver.answer_failed(UpstreamFailed("answer-cut", "the answer ended before it was whole", answered=True))
        else:
            receiver.answer_failed(UpstreamFailed("no-answer", "the connection closed without an answer"))

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_full()

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_drained()

    def _fail(self, failure: UpstreamFailed) -> None:
        if not self.opened.done():
            self.opened.set_exception(failure)
            self.opened.exception()
        receiver, self._receiver = self._receiver, None
        if self._transport is not None:
            self._transport.close() if self._pump is not None and not self._pump.ready else self._transport.abort()
        if receiver is not None:
            receiver.answer_failed(failure)


class Upstreams:
    """The connections of one run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, contexts: TlsContexts, *, resolver: Resolver | None = None) -> None:
        self._loop = loop
        self._contexts = contexts
        self._resolve = resolver or self._resolve_by_system
        self._pins: Mapping[str, HostPin] = {}
        self._idle: dict[Destination, list[UpstreamConnection]] = {}
        self._all: set[UpstreamConnection] = set()
        self._known = KnownAnswers()

    def pin(self, pins: Mapping[str, HostPin]) -> None:
        """Names whose address the configuration says. What was kept under other pins is closed."""
        if pins != self._pins:
            self.close()
        self._pins = dict(pins)

    def pinned_port(self, name: str) -> int | None:
        """Where the configuration says that the name is; None when it says nothing of it."""
        pin = self._pins.get(name)
        return None if pin is None else pin.port

    def destination(self, name: str, port: int, scheme: str) -> Destination:
        pin = self._pins.get(name)
        tls = scheme == "https" if pin is None or pin.tls is None else pin.tls
        return Destination(name, port, tls)

    def kept(self, destination: Destination) -> UpstreamConnection | None:
        """An open connection that was used before, if there is one."""
        idle = self._idle.get(destination)
        while idle:
            connection = idle.pop()
            if connection.reusable:
                connection.reused = True
                return connection
        return None

    async def connect(self, destination: Destination) -> UpstreamConnection:
        """A new connection to a checked address. Raises UpstreamFailed, within limits.UPSTREAM_CONNECT_SECONDS_MAX."""
        try:
            async with asyncio.timeout(limits.UPSTREAM_CONNECT_SECONDS_MAX):
                addresses, port = await self._addresses(destination)
                failure = UpstreamFailed("connect-failed", "no address could be reached")
                for address in addresses[:ADDRESSES_TRIED_MAX]:
                    try:
                        return await self._open(destination, address, port)
                    except OSError as error:
                        failure = UpstreamFailed("connect-failed", f"{address} port {port}: {error.strerror or type(error).__name__}".lower())
                raise failure
        except TimeoutError:
            raise UpstreamFailed("connect-timeout", f"no connection within {limits.UPSTREAM_CONNECT_SECONDS_MAX:g} s") from None

    def keep(self, destination: Destination, connection: UpstreamConnection) -> None:
        """The exchange is over: the connection waits for the next one of this run, or goes."""
        idle = self._idle.get(destination)
        if idle is None:
            idle = self._idle[destination] = []
        if connection.reusable and len(idle) < IDLE_PER_DESTINATION_MAX:
            connection.resume_reading()  # or its closing would not be noticed
            connection.idle_since = self._loop.time()
            idle.append(connection)
        else:
            connection.close()

    def sweep(self, now: float) -> None:
        """Closes what has been idle for too long."""
        for destination, idle in list(self._idle.items()):
            for connection in idle:
                if now - connection.idle_since > IDLE_SECONDS_MAX:
                    connection.close()
            self._idle[destination] = [connection for connection in idle if connection.open]
            if not self._idle[destination]:
                del self._idle[destination]

    def close(self) -> None:
        self._idle.clear()
        for connection in tuple(self._all):
            connection.close()

    async def _addresses(self, destination: Destination) -> tuple[list[str], int]:
        pin = self._pins.get(destination.name)
        if pin is not None:
            return [pin.address], pin.port
        found = await self._resolve(destination.name, destination.port)
        if not found:
            raise UpstreamFailed("name-unknown", f"{destination.name} has no address")
        for address in found:
            if (why := special_purpose(address)) is not None:  # one bad address is enough: an honest name has none beside its good ones
                raise UpstreamFailed("address-refused", f"{destination.name} is at {address} ({why}); pin the name in hosts to allow it")
        return found, destination.port

    async def _open(self, destination: Destination, address: str, port: int) -> UpstreamConnection:
        pump = None
        if destination.tls:
            pin = self._pins.get(destination.name)
            pump = TlsPump.client(self._contexts.context(pin.ca if pin else None), destination.name)
        _, connection = await self._loop.create_connection(lambda: UpstreamConnection(address, pump, self._all.discard, self._known), address, port)
        self._all.add(connection)
        try:
            await connection.opened
        except BaseException:
            connection.close()
            raise
        return connection

    async def _resolve_by_system(self, name: str, port: int) -> list[str]:
        try:
            found = await self._loop.getaddrinfo(name, port, type=1)  # SOCK_STREAM
        except (OSError, UnicodeError) as error:
            raise UpstreamFailed("name-unknown", f"{name} cannot be resolved") from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
