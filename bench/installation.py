"""Our side of `bench.gateway`: the real worker and the real recorder, each a process of its own, and their neighbours played by this one."""

import asyncio
import base64
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
from bench.load import EVENTS, NAME
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

SSE_NAME = "sse.example.org"
SECRET = b"bench-secret-value-0123456789"
# One port, at addresses of their own: a pinned name is asked for at its pin's port only.
PLAIN, SECURE, SSE = "127.0.0.2", "127.0.0.3", "127.0.0.4"


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
