"""One connection of an agent: bytes on a run's listener to requests, and answers back to bytes.

Which run it is follows from the listener, where it leads from the address that was dialled. The first byte says whether TLS follows; a CONNECT begins the
same again behind it. One exchange at a time: what the agent pipelines waits in the reader.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from bailiwick.gateway import server
from bailiwick.gateway.exchange import QUEUED_BYTES_MAX, Exchange
from bailiwick.gateway.holds import HoldDesk
from bailiwick.gateway.layers.chunked import ProtocolViolation
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.gateway.layers.http1 import End, RequestEvent, RequestReader, response_bytes
from bailiwick.gateway.layers.tls import TlsFailure, TlsPump
from bailiwick.gateway.refusal import render
from bailiwick.gateway.repeated import begun
from bailiwick.gateway.repeats import Repeat
from bailiwick.gateway.runs import Run
from bailiwick.gateway.target import Door, connect_door, door, may_change, target_of
from bailiwick.gateway.waiting import drive
from bailiwick.kernel import limits

TLS_PORT = 443
WRITE_HIGH_BYTES = 256 * limits.KIB
_HANDSHAKE = 0x16  # the content type of a TLS record that begins one; no HTTP method begins with it

Dialled = Callable[[asyncio.BaseTransport], tuple[str, int]]


def dialled(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """In a sandbox every address is local, so the socket's own name is what the agent dialled."""
    name = transport.get_extra_info("sockname")
    return str(name[0]), int(name[1])


class AgentConnection(asyncio.Protocol):
    def __init__(self, run: Run, desk: HoldDesk, dialled: Dialled = dialled) -> None:
        self._run = run
        self._desk = desk
        self._dialled = dialled
        self._transport: asyncio.Transport | None = None
        self._door: Door | None = None
        self._pump: TlsPump | None = None
        self._peek = True
        self._reader = RequestReader()
        self._heads: dict[bytes, Repeat] | None = None  # what was asked at this door before; once it is known to which
        self._exchange: Exchange | None = None
        self._working = False
        self._paused = False
        self._closing = False
        self._full = False  # the agent reads slower than it is answered
        self._stopped = False  # nobody governs what is under way
        self._deadline = run.house.loop.time() + limits.HEAD_SECONDS_MAX

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        run = self._run
        address, port = self._dialled(transport)
        self._door = door(run, address, port)
        held = len(run.connections) + run.denials.waiting  # an agent that left its refusal unheard has left no room
        if run.closed is not None or held >= limits.CONNECTIONS_PER_RUN_MAX:
            why = "the run is closed" if run.closed else f"the run has {held} connections open or refused; must be at most {limits.CONNECTIONS_PER_RUN_MAX}"
            run.refuse_attempt("connection", f"{self._door.name}:{port}", why)
            self._closing = True
            transport.abort()
            return
        run.connections.add(self)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._pump is not None:
            self._decrypt(data)
        elif self._peek:
            self._first_bytes(data)
        else:
            self._take(data)

    def eof_received(self) -> None:
        """An agent that stops sending is gone: a half-closed socket cannot be told from a closed one, and nothing is done for who does not wait."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.connections.discard(self)
        self._closing = True
        if self._exchange is not None:
            self._exchange.agent_gone("agent-gone")

    def pause_writing(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.agent_full()

    def resume_writing(self) -> None:
        self._full = False
        if not self._stopped:
            self._flow()

    def _flow(self) -> None:
        if self._exchange is not None:
            self._exchange.agent_drained()
        elif not self._working:
            self._work(self._next())

    # -- what an exchange asks for

    @property
    def full(self) -> bool:
        return self._full or self._stopped

    @property
    def speaks_chunked(self) -> bool:
        return self._reader.minor_version == 1

    def write(self, data: bytes) -> None:
        if self._transport is None or self._closing:
            return
        if self._pump is None:
            self._transport.write(data)
            return
        try:
            self._pump.send(data)
        except TlsFailure:
            self.cut("tls-record")
            return
        self._transport.write(self._pump.outgoing())

    def pause_reading(self) -> None:
        if not self._paused and self._transport is not None and not self._closing:
            self._paused = True
            if not self._stopped:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._transport is not None and not self._closing:
            self._paused = False
            if not self._stopped:
                self._transport.resume_reading()

    def exchange_over(self, keep: bool) -> None:
        self._exchange = None
        if self._stopped:
            self.govern(True)  # whatever comes next is decided anew
        self._deadline = self._run.house.loop.time() + limits.IDLE_SECONDS_MAX
        if not keep:
            self.close()
        elif not self._working:
            if self._paused:
                self.resume_reading()
            if events := self._next():
                self._work(events)

    def close(self) -> None:
        """Sends what is left, then closes."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        if self._pump is not None:
            self._pump.close()
            self._transport.write(self._pump.outgoing())
        self._transport.close()
        self._leave("closed")

    def cut(self, reason: str) -> None:
        """Ends the connection now, whatever is under way."""
        if self._transport is not None:
            self._closing = True
            self._transport.abort()
        self._run.connections.discard(self)
        self._leave(reason)

    def sweep(self, now: float) -> None:
        """Called now and then: a head that does not end, a connection nobody uses, an answer that does not come."""
        if self._exchange is not None:
            self._exchange.expire(now)
        elif now > self._deadline and not self._closing:
            if not self._reader.idle or (self._pump is not None and not self._pump.ready):
                self._run.refuse_attempt("head-timeout", self._where(), f"no whole request within {limits.HEAD_SECONDS_MAX:g} s")
            self.cut("idle")

    def govern(self, governed: bool) -> None:
        """An exchange under way stands still while nobody governs: not a byte more of it either way. It is not cut, so that a governor that comes back in
        time leaves no effect unknown; one that has not begun is refused by `Run.check_alive`."""
        stopped = not governed and self._exchange is not None and self._exchange.under_way
        if stopped == self._stopped or self._transport is None or self._closing:
            return
        self._stopped = stopped
        if stopped:
            if not self._paused:
                self._transport.pause_reading()
            if self._exchange is not None:
                self._exchange.agent_full()
            return
        if not self._paused:
            self._transport.resume_reading()
        if not self._full and self._exchange is not None:
            self._exchange.agent_drained()

    def _leave(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.agent_gone(reason)

    # -- bytes to requests

    def _first_bytes(self, data: bytes) -> None:
        assert self._door is not None
        self._peek = False
        if data[0] == _HANDSHAKE:
            door = self._door
            self._pump = TlsPump.server(self._run.front.context(), door.name if door.known else None, None if door.known else door.name)
            self._decrypt(data)
        elif self._door.port == TLS_PORT:
            self._refuse(ProtocolViolation("plain-on-tls-port", "plain bytes came on the port of https; speak TLS"))
        else:
            self._take(data)

    def _decrypt(self, data: bytes) -> None:
        pump, transport = self._pump, self._transport
        assert pump is not None
        assert transport is not None
        was_ready = pump.ready
        try:
            pieces = pump.feed(data)
        except TlsFailure as failure:
            transport.write(pump.outgoing())
            self._run.refuse_attempt(failure.code, self._where(), str(failure))
            self._closing = True
            transport.close()
            self._leave(failure.code)
            return
        if out := pump.outgoing():
            transport.write(out)
        if pump.ready and not was_ready and pump.name is not None and self._door is not None and not self._door.known:
            self._door = Door(self._door.via, pump.name, self._door.port, True)
        for piece in pieces:
            if self._closing:
                return
            self._take(piece)
        if pump.closed and not self._closing:
            self.cut("agent-gone") if self._exchange is not None else self.close()

    def _take(self, data: bytes) -> None:
        if self._reader.idle and self._exchange is None:
            if self._heads and not self.full and (repeat := self._heads.get(data)) is not None and self._again(repeat):
                return
            self._deadline = self._run.house.loop.time() + limits.HEAD_SECONDS_MAX
        try:
            events = self._reader.feed(data)
        except ProtocolViolation as violation:
            self._refuse(violation)
            return
        if events and not self._working:
            self._work(events)
        if self._exchange is not None and self._reader.pending > QUEUED_BYTES_MAX:
            self.pause_reading()

    def _work(self, events: list[RequestEvent]) -> None:
        """Hands events over until an exchange is under way or nothing is left; never recursive, however much was pipelined."""
        self._working = True
        try:
            while events and not self._closing:
                for event in events:
                    if isinstance(event, RequestHead):
                        self._begin(event)
                    elif self._exchange is None:
                        break
                    elif isinstance(event, End):
                        self._exchange.body_end()
                    else:
                        self._exchange.body_data(event)
                if self._occupied:
                    break
                self.resume_reading()
                events = self._next()
        except ProtocolViolation as violation:
            self._refuse(violation)
        finally:
            self._working = False

    @property
    def _occupied(self) -> bool:
        return self._exchange is not None or self._closing or self._peek

    def _next(self) -> list[RequestEvent]:
        """The next message's beginning, if it is here and the agent takes its answers."""
        if self.full:
            self.pause_reading()
            return []
        recorder = self._run.house.recorder
        if recorder.behind:  # a run that asks faster than its record is written is slowed, not refused
            self.pause_reading()
            recorder.when_caught_up(self._go_on)
            return []
        try:
            return self._reader.next()
        except ProtocolViolation as violation:
            self._refuse(violation)
            return []

    def _go_on(self) -> None:
        if self._exchange is None and not self._closing and not self.full:
            self.resume_reading()
            self._work(self._next())

    def _begin(self, head: RequestHead) -> None:
        assert self._door is not None
        if head.method == "CONNECT":
            self._tunnel(head)
            return
        if head.upgrade:
            raise ProtocolViolation("upgrade", "upgrades (WebSocket) are not carried yet; use plain requests", status=501)
        target = target_of(self._run, self._door, head, secure=self._pump is not None)
        self._exchange = exchange = Exchange(self, self._run, head, target)
        if self._reader.alone is not None and self._reader.minor_version == 1 and not may_change(head.authority):
            if self._heads is None:
                self._heads = self._run.asked.at((self._door, self._pump is not None))
            exchange.raw, exchange.heads = self._reader.alone, self._heads
        drive(server.walk(exchange, self._desk), lambda error: server.failed(exchange, error))

    def _again(self, repeat: Repeat) -> bool:
        """Whether the request, which was asked before, is under way the short way."""
        exchange = begun(self, self._run, repeat)
        if exchange is None:
            return False
        self._reader.pass_over()
        self._exchange = exchange
        exchange.forward()
        return True

    def _tunnel(self, head: RequestHead) -> None:
        assert self._door is not None
        if self._door.via != "proxy":
            raise ProtocolViolation("connect-refused", "CONNECT is for the proxy; this connection leads to its host already", status=403)
        self._door = connect_door(self._run, head)
        self.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        rest = self._reader.take_rest()
        self._reader, self._heads = RequestReader(), None
        self._peek = True
        self._deadline = self._run.house.loop.time() + limits.HEAD_SECONDS_MAX
        if rest:
            self._run.house.loop.call_soon(self.data_received, rest)

    def _refuse(self, violation: ProtocolViolation) -> None:
        """What is no request gets an answer as well, and a place in the record; the connection is out of step and ends."""
        self._run.refuse_attempt(violation.code, self._where(), str(violation))
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            begun = exchange.answer_begun
            exchange.agent_gone(violation.code)
            if begun:
                self.cut(violation.code)
                return
        kind = "unsupported" if violation.status == 501 else "protocol"
        status, fields, body = render(
            status=violation.status, kind=kind, reason=str(violation), rules=(f"bailiwick.http/{violation.code}",), retry="never", run=self._run.id, action=None
        )
        self.write(response_bytes(status, b"Refused", (*fields, (b"connection", b"close"))) + body)
        self.close()

    def _where(self) -> str:
        return "" if self._door is None else f"{self._door.name}:{self._door.port}"
