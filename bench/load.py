"""The agents of `bench.gateway`: what asks, how fast, and what it costs whom."""

import asyncio
import os
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

NAME = "bench.example.org"
EVENTS = 500  # of one stream
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
PACE_SECONDS = 0.004  # requests of a paced load leave in groups this far apart, as those of many agents do


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Agent(asyncio.Protocol):
    """One keep-alive connection: the next request when the last is answered; with `idle`, when it is taken from there."""

    def __init__(self, raw: bytes | Callable[[], bytes], latencies: list[float], idle: "list[Agent] | None" = None) -> None:
        self.raw = raw
        self.latencies = latencies
        self.count = 0
        self.wrong = b""
        self._left = 0
        self._head = b""
        self._sent = 0.0
        self.stopped = False
        self._idle = idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._next()

    def _next(self) -> None:
        if self._idle is None:
            self.ask()
        else:
            self._idle.append(self)

    def ask(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self.raw if isinstance(self.raw, bytes) else self.raw())

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, found, rest = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = b""
            if not head.startswith(b"HTTP/1.1 200"):
                self.wrong = head + rest
                self._transport.abort()
                return
            lower = head.lower()
            if b"transfer-encoding: chunked" in lower:
                self._left, data = -1, rest
            else:
                self._left, data = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]), rest
        if self._left == -1:
            if not data.endswith(b"0\r\n\r\n"):
                return
            self._left = 0
        else:
            self._left -= len(data)
        if self._left == 0:
            self.count += 1
            self.latencies.append(time.perf_counter() - self._sent)
            if self.stopped:
                self._transport.abort()
            else:
                self._next()


async def load(port: int, raw: bytes | Callable[[], bytes], *, seconds: float, connections: int, context: ssl.SSLContext | None) -> tuple[int, list[float]]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    agents = []
    for _ in range(connections):
        _, agent = await loop.create_connection(lambda: Agent(raw, latencies), "127.0.0.1", port, ssl=context, server_hostname=NAME if context else None)
        agents.append(agent)
    await asyncio.sleep(seconds)
    for agent in agents:
        agent.stopped = True
        if agent.wrong:
            raise SystemExit(f"answered: {agent.wrong[:600]!r}")
    await asyncio.sleep(0.05)
    return sum(agent.count for agent in agents), latencies


async def paced(port: int, raw: bytes, *, per_second: int, seconds: float, connections: int) -> int:
    """Offers so many requests a second, whatever they cost; how many were answered."""
    loop = asyncio.get_running_loop()
    idle: list[Agent] = []
    agents = [(await loop.create_connection(lambda: Agent(raw, [], idle), "127.0.0.1", port))[1] for _ in range(connections)]
    started, asked = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        while asked < passed * per_second and idle:
            idle.pop(0).ask()
            asked += 1
        await asyncio.sleep(PACE_SECONDS)
    await asyncio.sleep(0.1)
    for agent in agents:
        agent.abort()
    return sum(agent.count for agent in agents)


async def idle_connections(port: int, raw: bytes, number: int) -> list[asyncio.Transport]:
    """Each has been answered once, and stays."""
    loop = asyncio.get_running_loop()
    idle: list[Agent] = []
    transports = []
    for _ in range(number):
        transport, agent = await loop.create_connection(lambda: Agent(raw, [], idle), "127.0.0.1", port)
        transports.append(transport)
        agent.ask()
        while not agent.count:
            await asyncio.sleep(0.0005)
    return transports


class Sink(asyncio.Protocol):
    """Takes an answer and counts its bytes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(self.raw)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)


async def streams(port: int, raw: bytes, number: int, *, size: int, seconds: float, pid: int) -> tuple[int, list[float]]:
    """So many answers of one size at once, for as long as that takes or so many seconds: bytes received, and the memory of a process over the time."""
    loop = asyncio.get_running_loop()
    sinks = [(await loop.create_connection(lambda: Sink(raw), "127.0.0.1", port))[1] for _ in range(number)]
    memory: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds and any(sink.received < size for sink in sinks):
        await asyncio.sleep(0.25)
        memory.append(rss_mb(pid))
    for sink in sinks:
        sink.transport.abort()
    return sum(sink.received for sink in sinks), memory


async def sse_delays(address: str, port: int, host: str, context: ssl.SSLContext | None) -> list[float]:
    reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host.partition(":")[0] if context else None)
    writer.write(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    delays: list[float] = []
    while line := await reader.readline():
        if line.startswith(b"data: "):
            delays.append((time.perf_counter() - float(line[6:])) * 1e3)
        if len(delays) == EVENTS:
            break
    writer.close()
    return delays


async def handshakes(port: int, context: ssl.SSLContext, count: int) -> tuple[list[float], list[float]]:
    """How long a TLS handshake takes for a name that was never asked for, and for the same name again: the difference is what the name cost."""
    first: list[float] = []
    again: list[float] = []
    for number in range(count):
        times = []
        for _ in range(2):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            started = time.perf_counter()
            await writer.start_tls(context, server_hostname=f"new-{number}.example.org")
            times.append((time.perf_counter() - started) * 1e3)
            writer.close()
        first.append(times[0])
        again.append(times[1])
    return first, again


def request(host: str) -> bytes:
    """What a Python client sends."""
    return (
        f"GET /v1/configuration/staging/service?version=12 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: python-httpx/0.28.1\r\nAccept: */*\r\n"
        "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nX-Request-Id: 0123456789abcdef\r\n\r\n"
    ).encode()


def write(host: str) -> bytes:
    return f"PUT /w/thing HTTP/1.1\r\nHost: {host}\r\nContent-Length: 16\r\nContent-Type: text/plain\r\n\r\n0123456789abcdef".encode()


def unseen(host: str) -> Callable[[], bytes]:
    """The same with an identifier of its own each time, so that no head comes twice."""
    before, after = request(host).split(b"0123456789abcdef")
    numbers: Iterator[int] = count()
    return lambda: b"%b%016x%b" % (before, next(numbers), after)


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
