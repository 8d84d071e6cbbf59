"""The launcher above a fake backend: what it does with a probe that failed, and with a backend that breaks."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.fakes.fake_sandbox import FakeBackend
from tests.fakes.sandboxes import ORDINARY_UID, bound

from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.channel import Channel, Done, Received, Reply, connect, serve
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import CallerError, Conflict, PeerError
from bailiwick.kernel.layout import Layout
from bailiwick.sandbox.adoption import ADOPTION
from bailiwick.sandbox.launcher import Launcher
from bailiwick.sandbox.messages import LAUNCHER, CreateSandbox, DestroySandbox, StartAgent
from bailiwick.sandbox.spec import SandboxSpec

pytestmark = pytest.mark.anyio

SPEC = SandboxSpec(command=["sleep"], environment={}, trust_bundle="x")


@asynccontextmanager
async def launched(backend: FakeBackend, *, worker_uid: int | None = None) -> AsyncIterator[Channel]:
    root = Path(tempfile.mkdtemp(prefix="bailiwick-test-", dir="/tmp"))
    layout, us = Layout(root), (os.getuid(), os.getgid())
    layout.sockets.mkdir()
    accounts = Accounts((Account("governor", Role.GOVERNOR, *us), Account("gateway-0", Role.GATEWAY, *us)), separate=False)
    listener, adoption = bound(layout.socket("launcher")), bound(layout.socket("gateway-0.adopt"))
    if worker_uid is not None:  # the peer of who connects is who called listen()
        os.seteuid(worker_uid)
        adoption.listen(16)
        os.seteuid(0)

    async def adopt(_channel: Channel, received: Received) -> Reply:
        for descriptor in received.descriptors:
            os.close(descriptor)
        return Reply(Done())

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve(adoption, ADOPTION, adopt, admit=lambda _: True, refused=lambda *_: None))
            tasks.start_soon(Launcher(backend, layout, accounts, SystemClock()).serve, listener)
            channel = await connect(layout.socket("launcher"), LAUNCHER)
            tasks.start_soon(channel.run)
            yield channel
            tasks.cancel_scope.cancel()
    finally:
        for sock in (listener, adoption):
            sock.close()
        shutil.rmtree(root)


async def test_a_failed_probe_means_no_start() -> None:
    """The findings are answered, and the agent is not started; the sandbox can only be destroyed."""
    backend = FakeBackend(broken=["network.ipv4"])
    async with launched(backend) as channel:
        created = (await channel.call(CreateSandbox(run="run-1", worker="gateway-0", spec=SPEC))).message
        assert [finding.check for finding in created.findings if not finding.held] == ["network.ipv4"]
        with pytest.raises(Conflict, match=r"network\.ipv4 did not hold; the agent is not started"):
            await channel.call(StartAgent(run="run-1"))
        assert not backend.boxes["run-1"].started
        await channel.call(DestroySandbox(run="run-1"))
        assert backend.boxes["run-1"].destroyed


@pytest.mark.root
async def test_a_worker_that_is_a_stranger_gets_nothing() -> None:
    """Listeners are handed only to who has the uid of the worker they are for, or is one with the launcher's own starter."""
    if os.getuid() != 0:
        pytest.skip("needs root to be somebody else")
    backend = FakeBackend()
    async with launched(backend, worker_uid=ORDINARY_UID) as channel:
        with pytest.raises(PeerError, match=f"who listens as gateway-0 has uid {ORDINARY_UID}, which is not that worker's"):
            await channel.call(CreateSandbox(run="run-1", worker="gateway-0", spec=SPEC))
        assert backend.boxes["run-1"].destroyed


async def test_the_linter_stands_before_the_backend() -> None:
    """What the linter refuses never reaches a backend; another backend's name is refused too."""
    backend = FakeBackend()
    async with launched(backend) as channel:
        for spec in (SandboxSpec(command=[], environment={}, trust_bundle="x"), SandboxSpec(command=["a"], environment={}, trust_bundle="x", backend="docker")):
            with pytest.raises(CallerError):
                await channel.call(CreateSandbox(run="run-1", worker="gateway-0", spec=spec))
        spec = SandboxSpec(command=["a"], environment={}, trust_bundle="x", workspace="/tmp", trees=[])
        with pytest.raises(CallerError, match="is too much"):
            await channel.call(CreateSandbox(run="run-1", worker="gateway-0", spec=spec))
        assert backend.boxes == {}


async def test_its_end_is_the_end_of_every_box() -> None:
    """When the launcher stops every box is destroyed and the backend closed."""
    backend = FakeBackend()
    async with launched(backend) as channel:
        for number in range(3):
            await channel.call(CreateSandbox(run=f"run-{number}", worker="gateway-0", spec=SPEC))
        await channel.call(StartAgent(run="run-0"))
    assert all(box.destroyed for box in backend.boxes.values())
    assert backend.closed
