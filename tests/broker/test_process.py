"""The broker as a process of its own, with a real recorder: killed, started anew, searched for what it holds."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from bailiwick.broker.messages import BROKER, GrantLease, LeasesUsed, RevokeLeases, UseLease
from bailiwick.kernel.channel import Channel, Message, RemoteFailure, connect
from bailiwick.kernel.clock import SystemClock, timestamp
from bailiwick.kernel.errors import BailiwickError, PeerError
from bailiwick.kernel.layout import Layout
from bailiwick.record.signing import SIGNER, DescribeKey, KeyDescribed

pytestmark = pytest.mark.anyio

PLANTED = b"planted-s3cret-value"
BROKER_UID, OTHER_UID = 761_901, 761_902

COMMON = """
import os, socket, sys
from pathlib import Path
from bailiwick.kernel import confine
from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
layout, uid = Layout(Path(sys.argv[1])), int(sys.argv[2])
listeners = [socket.socket(fileno=int(number)) for number in sys.argv[4:]]
names = [(Role.RECORDER, "recorder"), (Role.BROKER, "broker"), (Role.GOVERNOR, "governor"), (Role.GATEWAY, "gateway-0")]
accounts = Accounts(tuple(Account(name, role, os.getuid(), os.getgid()) for role, name in names) + (Account("dropped", Role.BROKER, uid, uid),), separate=False)
"""
RECORDER = COMMON + "from bailiwick.record.recorder import run\nrun(listener=listeners[0], layout=layout, accounts=accounts, clock=SystemClock())"
BROKER_MAIN = (
    COMMON
    + """
from bailiwick.broker import server
from bailiwick.broker.configuration import EnvironmentCredential, FileCredential
credentials = {"token": EnvironmentCredential(source="environment", variable="TOKEN"), "key": FileCredential(source="file", path="key")}
sources = server.open_sources(credentials, environment_fd=int(sys.argv[3]), directory=layout.root)
if uid != os.getuid():
    confine.become(accounts.named("dropped"))
confine.harden()
both = {"listener": listeners[0], "signer_listener": listeners[1]}
server.run(**both, layout=layout, accounts=accounts, clock=SystemClock(), sources=sources, origin="example.org/record")
"""
)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return "asyncio"


class Started:
    """A process behind listeners that outlive it."""

    def __init__(self, layout: Layout, script: str, *names: str, uid: int, environment: int = 0) -> None:
        self.listeners = []
        for name in names:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(layout.socket(name))
            os.chmod(layout.socket(name), 0o777)
            listener.listen(64)
            self.listeners.append(listener)
        numbers = [listener.fileno() for listener in self.listeners]
        self._command = [sys.executable, "-c", script, str(layout.root), str(uid), str(environment), *map(str, numbers)]
        self._fds = [*numbers, *([environment] if environment else [])]
        self.log = layout.root / f"{names[0]}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(self._command, pass_fds=self._fds, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        self.kill()
        for listener in self.listeners:
            listener.close()


class Installed:
    def __init__(self, root: Path, uid: int) -> None:
        self.layout = Layout(root)
        self.layout.sockets.mkdir()
        self.layout.record.mkdir()
        self.layout.broker.mkdir()
        for path in (root, self.layout.sockets):
            path.chmod(0o755)
        os.chown(self.layout.broker, uid, uid)
        (root / "key").write_bytes(b"key-" + PLANTED + b"\n")
        (root / "key").chmod(0o600)
        self.environment = os.memfd_create("environment")
        os.write(self.environment, b"PATH=/bin\0TOKEN=" + PLANTED + b"\0OTHER=unwanted-s3cret\0")
        self.recorder = Started(self.layout, RECORDER, "recorder", uid=uid)
        self.broker = Started(self.layout, BROKER_MAIN, "broker", "signer", uid=uid, environment=self.environment)

    def close(self) -> None:
        self.broker.close()
        self.recorder.close()
        os.close(self.environment)


@pytest.fixture(params=[pytest.param("dropped", marks=[pytest.mark.root, pytest.mark.skipif(os.getuid() != 0, reason="drops its uid")]), "same uid"])
def installed(request: pytest.FixtureRequest) -> Iterator[Installed]:
    # Not pytest's directory: every session that starts takes the others' right to traverse it away again, and the broker's uid is another.
    with tempfile.TemporaryDirectory(prefix="bailiwick-broker-") as root:
        house = Installed(Path(root), BROKER_UID if request.param == "dropped" else os.getuid())
        yield house
        house.close()


@asynccontextmanager
async def calling(installed: Installed) -> AsyncIterator[Channel]:
    channel = await connect(installed.layout.socket("broker"), BROKER)
    async with anyio.create_task_group() as tasks:

        async def runs() -> None:
            with contextlib.suppress(PeerError):
                await channel.run()

        tasks.start_soon(runs)
        yield channel
        tasks.cancel_scope.cancel()


def grant(**changed: object) -> GrantLease:
    terms: dict[str, object] = {
        "lease": "lease-1", "run": "run-1", "agent": "deployer", "worker": "gateway-0", "credential": "token", "hosts": ["config.internal"], "verbs": ["read"],
        "template": "Authorization: Bearer {value}", "expires": timestamp(SystemClock().now() + timedelta(minutes=5)),
    }  # fmt: skip
    return GrantLease(**(terms | changed))  # type: ignore[arg-type]


async def patiently(channel: Channel, message: Message) -> Message:
    """Until the recorder is up: before, the broker rightly refuses."""
    with anyio.fail_after(20):
        while True:
            try:
                return (await channel.call(message)).message
            except BailiwickError as error:
                if error.code != "recorder-down":
                    raise
                await anyio.sleep(0.02)


async def values(channel: Channel) -> list[bytes]:
    answer = (await channel.call(UseLease(run="run-1", action="a-1", host="config.internal", verb="read"))).message
    assert isinstance(answer, LeasesUsed)
    return [base64.b64decode(use.secret) for use in answer.uses]


async def test_it_lends_dies_comes_back_empty_and_is_told_again(installed: Installed) -> None:
    """kill -9: the leases are gone with it; the same grant brings them back; both sources work in every life, and nothing of theirs is written."""
    asked, other = grant(), grant(lease="lease-2", credential="key", template="X-Key: {value}")
    for life in range(2):
        async with calling(installed) as channel:
            if life:
                assert await values(channel) == []
            for message in (asked, other):
                await patiently(channel, message)
            assert await values(channel) == [PLANTED, b"key-" + PLANTED]
            if life == 0:
                installed.broker.kill()
                with anyio.fail_after(5):
                    while not channel.closed:
                        await anyio.sleep(0.005)
                installed.broker.start()
    async with calling(installed) as channel:
        await channel.call(RevokeLeases(run="run-1", reason="done"))
        assert await values(channel) == []
    installed.broker.popen.send_signal(signal.SIGTERM)
    assert installed.broker.popen.wait(10) == 0
    installed.recorder.kill()
    written = [path for path in installed.layout.root.rglob("*") if path.is_file() and path.name != "key"]
    assert installed.layout.record / "record.db" in written
    for path in written:
        content = path.read_bytes()
        for form in (PLANTED, base64.b64encode(PLANTED), base64.b64encode(b"Bearer " + PLANTED)[:30], b"unwanted-s3cret"):
            assert form not in content, path
    assert b"lease.granted" in b"".join(path.read_bytes() for path in written)


async def test_it_leaves_no_core_is_not_read_and_is_locked_in_memory(installed: Installed) -> None:
    """No core dump, no new privileges, its memory in RAM where the machine lets it, and as root its uid dropped."""
    async with calling(installed) as channel:
        await patiently(channel, grant())
    pid = installed.broker.popen.pid
    bounds = {line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert bounds["Max core file size"] == "0"
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"].strip() == "1"
    assert (int(status["VmLck"].split()[0]) > 0) == (bounds["Max locked memory"] == "unlimited")
    if installed.broker.listeners and installed.layout.broker.stat().st_uid == BROKER_UID:
        assert status["Uid"].split() == [str(BROKER_UID)] * 4
        assert status["CapEff"].strip() == "0" * 16


async def test_without_a_recorder_it_grants_nothing_and_lends_nothing(installed: Installed) -> None:
    """A recorder that dies takes granting and lending with it; when it is back, they are."""
    async with calling(installed) as channel:
        asked = grant()
        await patiently(channel, asked)
        installed.recorder.kill()
        with anyio.fail_after(30):
            while True:  # within the client's grace an event is queued, and the value lent
                with contextlib.suppress(RemoteFailure):
                    await values(channel)
                    await anyio.sleep(0.05)
                    continue
                break
        with pytest.raises(BailiwickError, match="recorder"):
            await channel.call(grant(lease="lease-2", hosts=["b.example"]))
        installed.recorder.start()
        await patiently(channel, grant(lease="lease-3", hosts=["c.example"]))
        assert await values(channel) == [PLANTED]


async def test_the_signer_is_served_beside_it(installed: Installed) -> None:
    """On its own socket."""
    channel = await connect(installed.layout.socket("signer"), SIGNER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        described = (await channel.call(DescribeKey())).message
        assert isinstance(described, KeyDescribed)
        assert described.verifier.startswith("example.org/record+")
        tasks.cancel_scope.cancel()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="takes another uid")
async def test_a_stranger_is_turned_away(installed: Installed) -> None:
    """A process with a uid of nobody's, a run's for example, gets no answer."""
    async with calling(installed) as channel:
        await patiently(channel, grant())
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5); print(s.recv(100))"
    command = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups", "/usr/bin/python3", "-c", script]
    done = subprocess.run([*command, installed.layout.socket("broker")], capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "b''", done.stderr
