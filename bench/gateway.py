"""What the gateway worker costs a request: ours beside nginx as a proxy of the same upstream (nginx too, 1 KB answers), in the clear and with TLS on both
sides, in interleaved rounds on this machine.

    python -m bench.gateway [--rounds 5] [--seconds 2] [--connections 32]

Ours is the real worker and the real recorder, each a process of its own, with every check on: run by its listener, strict parsing, a decision by the
compiled boundary, budget, a leased credential injected and scrubbed from the answer, two events. This process plays the governor, the launcher, the
broker and the agents. CPU is user and system time of one process, from /proc/PID/stat. Ends with one line of JSON.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from tests.fakes.neighbourhood import Certificates

from bailiwick.broker.messages import BROKER, LeasesUsed, LeaseUse
from bailiwick.critic.boundary import Rule, compile_boundary
from bailiwick.critic.enforcement import ENFORCEMENT, BudgetLimits, HostPin, OpenRun, Usage
from bailiwick.gateway import worker
from bailiwick.kernel import channel
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.channel import Channel, Heartbeat, Received, Reply
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
from bailiwick.record import recorder
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun
from bailiwick.trust.interception import InterceptionAuthority

NAME = "bench.example.org"
EVENTS = 500
SSE_NAME = "sse.example.org"
# One port, at addresses of their own: a pinned name is asked for at its pin's port only.
PLAIN, SECURE, SSE = "127.0.0.2", "127.0.0.3", "127.0.0.4"
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
SECRET = b"bench-secret-value-0123456789"

# 1 KB of what an API says. (A body of one repeated byte is the worst case of a substring search, and nobody's answer.)
ANSWER = json.dumps([{"id": f"cfg-{number:04x}", "name": "staging/service", "value": number * 37, "enabled": number % 2 == 0} for number in range(20)])[:1024]

NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/{name}.pid; error_log {directory}/{name}.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
  uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
  {body}
}}
"""


def nginx(directory: Path, name: str, body: str) -> subprocess.Popen[bytes]:
    path = directory / f"{name}.conf"
    path.write_text(NGINX.format(directory=directory, name=name, body=body))
    return subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(path), "-p", str(directory)], stderr=subprocess.DEVNULL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Agent(asyncio.Protocol):
    """One keep-alive connection: the next request when the last is answered."""

    def __init__(self, raw: bytes, latencies: list[float]) -> None:
        self.raw = raw
        self.latencies = latencies
        self.count = 0
        self.wrong = b""
        self._left = 0
        self._head = b""
        self._sent = 0.0
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self.raw)

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
                self._ask()


async def load(port: int, raw: bytes, *, seconds: float, connections: int, context: ssl.SSLContext | None) -> tuple[int, list[float]]:
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


class Ours:
    """The worker, the recorder, and this process as their neighbours."""

    def __init__(self, directory: Path, certificates: Certificates, port: int) -> None:
        self.layout = Layout(directory / "state")
        for path in (self.layout.sockets, self.layout.record):
            path.mkdir(parents=True)
        self.certificates, self.port = certificates, port
        self.accounts = Accounts.for_machine(uid=os.getuid() or 1, gid=os.getgid(), workers=1)
        if os.getuid() == 0:
            members = tuple(type(member)(member.name, member.role, 0, 0) for member in self.accounts.members)
            self.accounts = Accounts(members, separate=False)
        self.authority = InterceptionAuthority.create(SystemClock())
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1024)

    def bound(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.layout.socket(name))
        sock.listen()
        return sock

    def start(self) -> None:
        """Before there is an event loop to inherit."""
        fork = multiprocessing.get_context("fork")
        enforce, adopt, self.broker = self.bound("gateway-0"), self.bound("gateway-0.adopt"), self.bound("broker")
        self.processes = [
            fork.Process(
                target=recorder.run,
                kwargs={"listener": self.bound("recorder"), "layout": self.layout, "accounts": self.accounts, "clock": SystemClock()},
                daemon=True,
            ),
            fork.Process(
                target=worker.run,
                kwargs={
                    "name": "gateway-0", "listener": enforce, "adopt_listener": adopt, "layout": self.layout, "accounts": self.accounts,
                    "authority": self.authority,
                },
                daemon=True,
            ),
        ]  # fmt: skip
        for process in self.processes:
            process.start()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[int, int]]:
        """The pids of the worker and the recorder."""
        async with anyio.create_task_group() as group:
            group.start_soon(partial(channel.serve, self.broker, BROKER, self.lend, admit=lambda _: True, refused=lambda *_: None))
            governor = await channel.connect(self.layout.socket("gateway-0"), ENFORCEMENT, self.hear)
            launcher = await channel.connect(self.layout.socket("gateway-0.adopt"), ADOPTION)
            for end in (governor, launcher):
                group.start_soon(end.run)
            group.start_soon(self.beat, governor)
            server = await asyncio.start_server(sse_upstream, SSE, self.port)
            await governor.call(self.order())
            await launcher.call(AdoptRun(run="run-1", names=[f"tcp:{self.port}"]), descriptors=[self.listener.fileno()])
            try:
                yield self.processes[1].pid or 0, self.processes[0].pid or 0
            finally:
                server.close()
                group.cancel_scope.cancel()

    def order(self) -> OpenRun:
        rules = [Rule.model_validate({"allow": ["read"], "http": f"{host}:{self.port}"}) for host in ("127.0.0.1", NAME, SSE_NAME)]
        rules += [Rule.model_validate({"allow": ["write"], "http": f"{host}:{self.port}", "path": "/w/**"}) for host in ("127.0.0.1", NAME)]
        hosts = {
            "127.0.0.1": HostPin(address=PLAIN, port=self.port, tls=False),
            NAME: HostPin(address=SECURE, port=self.port, tls=True, ca=self.certificates.pem),
            SSE_NAME: HostPin(address=SSE, port=self.port, tls=False),
        }
        return OpenRun(
            run="run-1", agent="bench", boundary=compile_boundary("bench", rules, None, {}).to_json(), observe=False, hosts=hosts, models=[],
            budget=BudgetLimits(writes=10**12, tokens=10**12), used=Usage(), leased=list(hosts),
        )  # fmt: skip

    async def beat(self, governor: Channel) -> None:
        for number in range(1_000_000):
            await governor.tell(Heartbeat(number=number))
            await anyio.sleep(0.5)

    async def hear(self, _channel: Channel, _received: Received) -> Reply | None:
        return None

    async def lend(self, _channel: Channel, _received: Received) -> Reply | None:
        value, secret = (base64.b64encode(raw).decode() for raw in (b"Bearer " + SECRET, SECRET))
        return Reply(LeasesUsed(uses=[LeaseUse("lease-1", "bench", "authorization", value, secret)]))


async def sse_upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An event every 2 ms that says when it was sent."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for _ in range(EVENTS):
        writer.write(b"data: %.9f\n\n" % time.perf_counter())
        await asyncio.sleep(0.002)
    writer.close()


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


def main(rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as directory:
        return in_directory(Path(directory), rounds, seconds, connections)


def in_directory(directory: Path, rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    certificates = Certificates()
    certificates.context(NAME, directory)
    pem = directory / f"{NAME}.pem"
    (directory / "ca.pem").write_text(certificates.pem)
    port, front_plain, front_tls = (free_port() for _ in range(3))
    keys = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    serve = f"location / {{ default_type application/json; return 200 '{ANSWER}'; }}"
    up = nginx(directory, "upstream", f"server {{ listen {PLAIN}:{port}; {serve} }} server {{ listen {SECURE}:{port} ssl; {keys} {serve} }}")
    forward = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "Bearer x";'
    verify = f"proxy_ssl_trusted_certificate {directory}/ca.pem; proxy_ssl_verify on; proxy_ssl_name {NAME}; proxy_ssl_server_name on;"
    pool = "upstream u {{ server {}:{}; keepalive 128; keepalive_requests 100000000; }}"
    peer = nginx(directory, "plain", f"{pool.format(PLAIN, port)} server {{ listen 127.0.0.1:{front_plain}; location / {{ proxy_pass http://u; {forward} }} }}")
    peer_tls = nginx(
        directory,
        "tls",
        f"{pool.format(SECURE, port)} server {{ listen 127.0.0.1:{front_tls} ssl; {keys} location / {{ proxy_pass https://u; {forward} {verify} }} }}",
    )
    ours = Ours(directory, certificates, port)
    ours.start()
    try:
        measured = partial(measure, ours, (peer.pid, front_plain), (peer_tls.pid, front_tls), rounds, seconds, connections)
        results = anyio.run(measured, backend_options={"use_uvloop": True})
    finally:
        for server in (up, peer, peer_tls):
            server.kill()
            server.wait()
        for process in ours.processes:
            process.kill()
            process.join()
    shown = {name: round(statistics.median(values), 3) for name, values in results.items()}
    ratio: Callable[[str], float] = lambda kind: round(shown[f"ours_{kind}_us"] / shown[f"nginx_{kind}_us"], 3)  # noqa: E731
    return {"ratio_nginx_plain": ratio("plain"), "ratio_nginx_tls": ratio("tls"), "effects_per_s": shown["effects_per_s"], **shown}


async def measure(ours: Ours, plain: tuple[int, int], secure: tuple[int, int], rounds: int, seconds: float, connections: int) -> dict[str, list[float]]:
    trust = ssl.create_default_context(cadata=ours.certificates.pem + ours.authority.certificate_pem)
    results: dict[str, list[float]] = {}
    async with ours.serve() as (pid, recorder_pid):
        await anyio.sleep(0.5)
        here, there = f"127.0.0.1:{ours.port}", f"{NAME}:{ours.port}"
        cases: list[tuple[str, int, int, bytes, ssl.SSLContext | None]] = [
            ("nginx_plain", *plain, request("127.0.0.1"), None),
            ("ours_plain", pid, ours.port, request(here), None),
            ("nginx_tls", *secure, request(NAME), trust),
            ("ours_tls", pid, ours.port, request(there), trust),
            ("effects", pid, ours.port, write(here), None),
        ]
        for number in range(rounds + 1):  # the first is thrown away
            for name, process, port, raw, context in cases:
                before, recorded, started = cpu_seconds(process), cpu_seconds(recorder_pid), time.perf_counter()
                count, latencies = await load(port, raw, seconds=seconds, connections=connections, context=context)
                spent = time.perf_counter() - started
                if number and count:
                    results.setdefault(f"{name}_us", []).append((cpu_seconds(process) - before) / count * 1e6)
                    results.setdefault(f"{name}_ms_p50", []).append(statistics.median(latencies) * 1e3)
                    results.setdefault(f"{name}_per_s", []).append(count / spent)
                    if name == "ours_plain":
                        results.setdefault("recorder_us_per_event", []).append((cpu_seconds(recorder_pid) - recorded) / count / 2 * 1e6)
                await anyio.sleep(0.2)
        for name, port, raw in (
            ("gate_ms_p50", ours.port, write(here)),
            ("read_ms_p50", ours.port, request(here)),
            ("nginx_read_ms_p50", plain[1], request(here)),
        ):
            _, latencies = await load(port, raw, seconds=seconds, connections=1, context=None)
            results[name] = [statistics.median(latencies) * 1e3]
        direct = statistics.median(await sse_delays(SSE, ours.port, SSE_NAME, None))
        results["sse_delay_ms_p50"] = [statistics.median(await sse_delays("127.0.0.1", ours.port, f"{SSE_NAME}:{ours.port}", trust)) - direct]
        first, again = await handshakes(ours.port, trust, 200)
        results["handshake_first_ms_p50"], results["handshake_again_ms_p50"] = first, again
        results["new_tls_host_ms_p50"] = [statistics.median(first) - statistics.median(again)]
        results["rss_mb"] = [rss_mb(pid)]
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.rounds, arguments.seconds, arguments.connections)))
