"""A launcher in a process of its own, as root or as an ordinary user, with the test as its governor and as its gateway worker."""

import asyncio
import contextvars
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio._backends._asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.channel import Channel, Done, Heartbeat, Received, Reply, connect, serve
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
from bailiwick.sandbox import launcher
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun
from bailiwick.sandbox.messages import LAUNCHER, AgentExited, CreateSandbox, DestroySandbox, SandboxCreated, StartAgent
from bailiwick.sandbox.spec import SandboxLimits, SandboxSpec

ORDINARY_UID = 64_321
MIB = 1 << 20


def authority() -> str:
    return authority_with_leaf("unused.example")[0]


def authority_with_leaf(host: str) -> tuple[str, str]:
    """A new authority's certificate, and a certificate of it for `host` with its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = builder.sign(key, hashes.SHA256())
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    leaf = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(leaf_key.public_key()).serial_number(x509.random_serial_number())
    leaf = leaf.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    key_pem = leaf_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = leaf.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return root.public_bytes(serialization.Encoding.PEM).decode(), (pem + key_pem).decode()


@dataclass
class Adopted:
    """What the worker was handed for a run, as sockets and descriptors."""

    descriptors: dict[str, int]

    def listener(self, name: str) -> socket.socket:
        return socket.socket(fileno=os.dup(self.descriptors[name]))

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            with suppress(OSError):
                os.close(descriptor)


@dataclass
class Installation:
    layout: Layout
    accounts: Accounts
    uid: int
    pid: int
    listener: socket.socket
    bundle: str
    adopted: dict[str, Adopted] = field(default_factory=dict)
    exits: dict[str, AgentExited] = field(default_factory=dict)
    channel: Channel | None = None
    beating: bool = True
    runs: int = 0
    ended: int | None = None

    async def call(self, message, seconds_max: float = 60):
        assert self.channel is not None
        return (await self.channel.call(message, seconds_max=seconds_max)).message

    def spec(self, *command: str, **given) -> SandboxSpec:
        given.setdefault("limits", SandboxLimits(memory_bytes=256 * MIB, disk_bytes=64 * MIB, pids=64))
        return SandboxSpec(command=list(command), environment=given.pop("environment", {}), trust_bundle=self.bundle, **given)

    def script(self, text: str, **given) -> SandboxSpec:
        return self.spec("/bin/sh", "-c", text, **given)

    def python(self, text: str, **given) -> SandboxSpec:
        return self.spec("/usr/bin/python3", "-I", "-c", text, **given)

    async def create(self, spec: SandboxSpec, *, run: str | None = None) -> tuple[str, SandboxCreated]:
        self.runs += 1
        name = run or f"run-{os.getpid()}-{self.runs}"
        created = await self.call(CreateSandbox(run=name, worker="gateway-0", spec=spec))
        assert isinstance(created, SandboxCreated)
        return name, created

    async def begin(self, spec: SandboxSpec) -> str:
        name, created = await self.create(spec)
        assert [finding for finding in created.findings if not finding.held] == []
        await self.call(StartAgent(run=name))
        return name

    async def run(self, spec: SandboxSpec) -> tuple[str, str, AgentExited]:
        """The agent's output, its errors, and how it ended; the sandbox is gone afterwards."""
        name = await self.begin(spec)
        output = await self.read(name, "stdout")
        errors = await self.read(name, "stderr")
        ended = await self.exit_of(name)
        await self.call(DestroySandbox(run=name))
        return output, errors, ended

    async def read(self, name: str, what: str, *, until: str | None = None, seconds_max: float = 30) -> str:
        descriptor, raw = self.adopted[name].descriptors[what], b""
        os.set_blocking(descriptor, False)
        with anyio.fail_after(seconds_max):
            while until is None or until.encode() not in raw:
                await anyio.wait_readable(descriptor)
                chunk = os.read(descriptor, 65_536)
                if not chunk:
                    break
                raw += chunk
        return raw.decode(errors="replace")

    async def exit_of(self, name: str, seconds_max: float = 30) -> AgentExited:
        await wait_until(lambda: name in self.exits, seconds_max=seconds_max)
        return self.exits[name]

    async def _heard(self, _channel: Channel, received: Received) -> Reply | None:
        assert isinstance(received.message, AgentExited)
        self.exits[received.message.run] = received.message
        return None

    async def adopt(self, _channel: Channel, received: Received) -> Reply | None:
        assert isinstance(received.message, AdoptRun)
        if old := self.adopted.get(received.message.run):
            old.close()
        self.adopted[received.message.run] = Adopted(dict(zip(received.message.names, received.descriptors, strict=True)))
        return Reply(Done())

    async def connect(self) -> Channel:
        return await connect(self.layout.socket("launcher"), LAUNCHER, self._heard)

    async def beat(self) -> None:
        number = 0
        while True:
            if self.beating and self.channel is not None and not self.channel.closed:
                number += 1
                with suppress(Exception):
                    await self.channel.tell(Heartbeat(number=number))
            await anyio.sleep(0.5)


async def wait_until(condition: Callable[[], bool], *, seconds_max: float = 10) -> None:
    with anyio.fail_after(seconds_max):
        while not condition():
            await anyio.sleep(0.01)


def bound(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(16)
    return sock


def accounts_for(uid: int) -> Accounts:
    """The test plays governor and worker; the launcher is whom we ask for."""
    us = os.getuid()
    members = [Account("launcher", Role.LAUNCHER, uid, uid), Account("governor", Role.GOVERNOR, us, us), Account("gateway-0", Role.GATEWAY, us, us)]
    return Accounts(tuple(members), separate=uid == 0)


def fork_launcher(layout: Layout, accounts: Accounts, uid: int, listener: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if os.getuid() != uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        log = os.open("/dev/null" if not os.environ.get("LAUNCHER_LOG") else os.environ["LAUNCHER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        asyncio._set_running_loop(None)  # the test's; this process has one of its own
        contextvars.Context().run(lambda: launcher.run(listener=listener, layout=layout, accounts=accounts, clock=SystemClock()))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def make(uid: int) -> Installation:
    root = Path(tempfile.mkdtemp(prefix="bailiwick-test-", dir="/tmp"))
    root.chmod(0o755)
    layout = Layout(root)
    layout.sockets.mkdir()
    for directory in (root, layout.sockets):
        os.chown(directory, uid, uid)
    listener = bound(layout.socket("launcher"))
    accounts = accounts_for(uid)
    os.chmod(layout.socket("launcher"), 0o777)
    pid = fork_launcher(layout, accounts, uid, listener)
    return Installation(layout, accounts, uid, pid, listener, authority())


@asynccontextmanager
async def installed(uid: int) -> AsyncIterator[Installation]:
    here = make(uid)
    adoption = bound(here.layout.socket("gateway-0.adopt"))
    os.chmod(here.layout.socket("gateway-0.adopt"), 0o777)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve(adoption, ADOPTION, here.adopt, admit=lambda peer: peer.uid == uid, refused=lambda *_: None))
            here.channel = await here.connect()
            tasks.start_soon(here.channel.run)
            tasks.start_soon(here.beat)
            yield here
            tasks.cancel_scope.cancel()
    finally:
        here.ended = stop(here.pid)
        for each in here.adopted.values():
            each.close()
        here.listener.close()
        adoption.close()
        shutil.rmtree(here.layout.root, ignore_errors=True)


def stop(pid: int, number: int = signal.SIGTERM) -> int:
    """The status it ended with; it is killed when it does not end by itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    try:
        if not select.select([pidfd], [], [], 30)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return -1


def monotonic_ms() -> float:
    return time.perf_counter() * 1e3
