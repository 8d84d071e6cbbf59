"""A gateway's neighbourhood in one process: a run with a real critic, fakes of the recorder, the broker and the governor, upstreams and an agent on
loopback sockets. The listeners are plain ones; which address the agent dialled is said by the test, as `getsockname` says it in a sandbox."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bailiwick.broker.messages import LeasesUsed, UseLease
from bailiwick.critic.boundary import compile_boundary
from bailiwick.critic.enforcement import BudgetLimits, HoldOpened, HostPin, ModelRoute, OpenHold, OpenRun, RedeemHold, Usage
from bailiwick.critic.evaluate import Critic
from bailiwick.critic.rules import ApproverGroup, Rule
from bailiwick.gateway.connection import AgentConnection
from bailiwick.gateway.holds import HoldDesk
from bailiwick.gateway.neighbours import House
from bailiwick.gateway.runs import Run
from bailiwick.gateway.waiting import Tasks
from bailiwick.kernel.accounts import Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BackendError, Conflict, PeerError
from bailiwick.record.event import KINDS, Event, decode, encode
from bailiwick.trust.interception import InterceptionAuthority

GROUPS = {"oncall": ApproverGroup.model_validate({"operators": ["ana", "bo"], "quorum": 1})}


class FakeRecorder:
    """Takes what the real one takes: canonical events of kinds a gateway may write."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.durable: list[Event] = []
        self.healthy = True
        self.behind = False
        self.held_back: list[Callable[[], None]] = []
        self.gate: asyncio.Event | None = None  # while set and unset, commits wait

    def when_caught_up(self, call: Callable[[], None]) -> None:
        self.held_back.append(call)

    def append(self, event: Event) -> None:
        if not self.healthy:
            raise BackendError("recorder is down", code="recorder-down")
        assert Role.GATEWAY in KINDS[event.kind].writers
        self.events.append(decode(encode(event)))

    def append_encoded(self, text: str) -> None:
        self.append(decode(text.encode()))

    async def append_durably(self, event: Event) -> int:
        if self.gate is not None:
            await self.gate.wait()
        self.append(event)
        self.durable.append(event)
        return len(self.events)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


class FakeBroker:
    def __init__(self) -> None:
        self.lent: dict[str, LeasesUsed] = {}
        self.asked: list[UseLease] = []
        self.alive = True

    async def use(self, request: UseLease) -> LeasesUsed:
        self.asked.append(request)
        if not self.alive:
            raise PeerError("broker is not reachable")
        return self.lent.get(request.host, LeasesUsed(uses=[]))


class FakeGovernor:
    """Remembers holds as the real one does: one for each run and digest, a grant used once."""

    def __init__(self) -> None:
        self.fresh = True
        self.opened: list[OpenHold] = []
        self.states: dict[str, str] = {}
        self.redeemed: list[RedeemHold] = []
        self.answers_lost = 0  # of redemptions to come: they are done, and nobody hears of it

    async def open_hold(self, request: OpenHold) -> HoldOpened:
        if not self.fresh:
            raise PeerError("governor is gone")
        self.opened.append(request)
        hold = f"hold-{request.digest[-8:]}"
        return HoldOpened(hold=hold, state=self.states.setdefault(hold, "pending"), reason="")

    async def redeem(self, request: RedeemHold) -> None:
        if request not in self.redeemed:
            if self.states.get(request.hold) != "granted":
                raise Conflict(f"hold {request.hold} is not granted")
            self.states[request.hold] = "used"
            self.redeemed.append(request)
        if self.answers_lost:
            self.answers_lost -= 1
            raise PeerError("governor closed the channel")


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes
    head: bytes


class Wire:
    """The agent's end of a connection, in raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def ask(self, raw: bytes) -> Answer:
        self.send(raw)
        return await self.answer(head_only=raw.startswith(b"HEAD "))

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            fields = {name.decode().lower(): value.strip().decode() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:-2])}
            if head_only or status < 200 or status in (204, 304):
                return Answer(status, fields, b"", head)
            if fields.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif "content-length" in fields:
                body = await self.reader.readexactly(int(fields["content-length"]))
            else:
                body = await self.reader.read()
            return Answer(status, fields, body, head)

    async def reader_after(self, raw: bytes) -> bytes:
        """The head that answers a CONNECT."""
        self.send(raw)
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Everything until the other end closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def start_tls(self, context: ssl.SSLContext, name: str | None) -> None:
        async with asyncio.timeout(10):
            await self.writer.start_tls(context, server_hostname=name)

    def close(self) -> None:
        self.writer.transport.abort()


Handler = Callable[["Upstream", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """A server that plays an upstream: what it was sent, connection by connection, and what it answers."""

    answers: list[bytes] = field(default_factory=lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])
    handler: Handler | None = None
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            try:
                if self.handler is not None:
                    await self.handler(self, reader, writer)
                else:
                    await self._serve(reader, writer)
            finally:
                writer.transport.abort() if self.handler is None else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await read_request(reader))
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if match := re.search(rb"content-length: (\d+)", head):
        return head + await reader.readexactly(int(match[1]))
    if b"transfer-encoding: chunked" in head:
        while not (line := await reader.readuntil(b"\r\n")).startswith(b"0\r\n"):
            head += (await reader.readexactly(int(line, 16) + 2))[:-2]
        await reader.readexactly(2)
    return head


_CA_USAGE = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False, key_cert_sign=True,
    crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


class Certificates:
    """An authority of the test's own, for its TLS upstreams."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test upstream authority")])
        self.pem = self._sign(self._name, self._key, ca=True).public_bytes(serialization.Encoding.PEM).decode()

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool = False, name: str | None = None) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        if ca:  # Python 3.13 and newer verify strictly, and ask for it
            builder = builder.add_extension(_CA_USAGE, critical=True)
        if name is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def context(self, name: str, directory: Path) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, name=name)
        path = directory / f"{name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class Neighbourhood:
    """Build with `async with neighbourhood(...)`. `pin` gives a name an upstream, `dial` connects the agent to an address as its sandbox would."""

    def __init__(self, directory: Path, *rules: dict[str, Any], observe: bool = False, budget: BudgetLimits | None = None, resolver: Any = None) -> None:
        self.directory = directory
        self.recorder, self.broker, self.governor = FakeRecorder(), FakeBroker(), FakeGovernor()
        self.authority = InterceptionAuthority.create(SystemClock())
        self.certificates = Certificates()
        loop = asyncio.get_running_loop()
        self.tasks = Tasks(loop)
        self.desk = HoldDesk()
        self.house = House(
            loop=loop,
            clock=SystemClock(),
            recorder=self.recorder,
            broker=self.broker,
            governor=self.governor,
            context_for=self.authority.context_for,
            tasks=self.tasks,
            resolver=resolver,
        )
        self.observe = observe
        self.budget = budget or BudgetLimits()
        self.hosts: dict[str, HostPin] = {}
        self.leased: list[str] = []
        self.models: list[ModelRoute] = []
        self.rules = [Rule.model_validate(rule) for rule in rules]
        self.model_rules: Any = None
        self._servers: list[asyncio.Server] = []
        self._wires: list[Wire] = []
        self.run = self._run()

    def order(self) -> OpenRun:
        compiled = compile_boundary("deployer", self.rules, self.model_rules, GROUPS)
        return OpenRun(
            run="run-1", agent="deployer", boundary=compiled.to_json(), observe=self.observe, hosts=self.hosts, models=self.models, budget=self.budget,
            used=Usage(), leased=self.leased,
        )  # fmt: skip

    def _run(self) -> Run:
        critic = Critic(compile_boundary("deployer", self.rules, self.model_rules, GROUPS))
        return Run(self.house, self.order(), critic, critic.digest)

    def reopen(self) -> None:
        """Holds the run to what was changed here."""
        critic = Critic(compile_boundary("deployer", self.rules, self.model_rules, GROUPS))
        self.run.hold_to(self.order(), critic, critic.digest)

    async def pin(
        self, name: str, upstream: Upstream | None = None, *, tls: bool = False, certified: str | None = None, watch: Callable[..., None] | None = None
    ) -> Upstream:
        """`watch` is called as `ssl.SSLContext.sni_callback` is."""
        upstream = upstream or Upstream()
        context = self.certificates.context(certified or name, self.directory) if tls else None
        if context is not None and watch is not None:
            context.sni_callback = watch
        server = await asyncio.start_server(upstream, "127.0.0.1", 0, ssl=context)
        self._servers.append(server)
        upstream.port = server.sockets[0].getsockname()[1]
        self.hosts[name] = HostPin(address="127.0.0.1", port=upstream.port, ca=self.certificates.pem if tls else None, tls=tls)
        self.reopen()
        return upstream

    async def dial(self, name_or_address: str, port: int) -> Wire:
        address = name_or_address if name_or_address[0].isdigit() or ":" in name_or_address else self.run.names.address_of(name_or_address)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: AgentConnection(self.run, self.desk, lambda _: (address, port)), "127.0.0.1", 0)
        self._servers.append(server)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        wire = Wire(reader, writer)
        self._wires.append(wire)
        return wire

    async def dial_tls(self, name: str, port: int = 443, *, sni: str | None = None) -> Wire:
        wire = await self.dial(name, port)
        await wire.start_tls(self.agent_context(), sni or name)
        return wire

    def agent_context(self) -> ssl.SSLContext:
        """What every program in a sandbox trusts."""
        return ssl.create_default_context(cadata=self.authority.certificate_pem)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    async def finished(self, count: int = 1) -> list[Event]:
        await self.until(lambda: len(self.recorder.of("action.finished")) >= count)
        return self.recorder.of("action.finished")

    async def close(self) -> None:
        for wire in self._wires:
            wire.close()
        self.run.close("the test is over")
        for server in self._servers:
            server.close()
        self.tasks.cancel()
        await self.until(lambda: not self.tasks)


@contextlib.asynccontextmanager
async def neighbourhood(directory: Path, *rules: dict[str, Any], **options: Any) -> AsyncIterator[Neighbourhood]:
    built = Neighbourhood(directory, *rules, **options)
    try:
        yield built
    finally:
        await built.close()
