"""What every sandbox backend does, and its fake: the same cases for bubblewrap from root, bubblewrap from an ordinary user, and the fake.

Each case runs in a child of its own, which is whom the backend is for. No deviations are listed, because there are none.
"""

import asyncio
import contextvars
import os
import shutil
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio._backends._asyncio
import pytest
from tests.fakes.fake_sandbox import FakeBackend
from tests.fakes.sandboxes import MIB, ORDINARY_UID, authority

from bailiwick.kernel.errors import BackendError, CallerError, Conflict
from bailiwick.sandbox.backend import Backend
from bailiwick.sandbox.bubblewrap import Bubblewrap
from bailiwick.sandbox.spec import SandboxLimits, SandboxSpec

Case = Callable[[Backend, "Words"], Awaitable[None]]
BUNDLE = authority()


class Words:
    """How a backend is told to run something that ends, something that does not, something that writes, something that is not there."""

    def __init__(self, real: bool) -> None:
        self._real = real

    def spec(self, *command: str, **given: object) -> SandboxSpec:
        given.setdefault("limits", SandboxLimits(memory_bytes=256 * MIB, disk_bytes=16 * MIB))
        return SandboxSpec(command=list(command), environment={}, trust_bundle=BUNDLE, **given)

    def ends(self, status: int, **given: object) -> SandboxSpec:
        return self.spec("/bin/sh", "-c", f"exit {status}", **given) if self._real else self.spec("exit", str(status), **given)

    def stays(self) -> SandboxSpec:
        return self.spec("/bin/sleep", "60") if self._real else self.spec("sleep")

    def writes(self, text: str) -> SandboxSpec:
        return self.spec("/bin/echo", "-n", text) if self._real else self.spec("write", text)

    def missing(self) -> SandboxSpec:
        return self.spec("no-such-program") if self._real else self.spec("missing")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def case_examined_before_it_starts(backend: Backend, words: Words) -> None:
    """Findings are there before the agent is started, and all hold."""
    box = await backend.create("run-1", words.writes("begun"))
    assert box.findings
    assert all(finding.held for finding in box.findings)
    os.set_blocking(box.descriptors["stdout"], False)
    with pytest.raises(BlockingIOError):
        os.read(box.descriptors["stdout"], 1)
    assert await box.start() > 0
    assert (await box.wait()).status == 0
    assert os.read(box.descriptors["stdout"], 100) == b"begun"
    await box.destroy()


async def case_descriptors_are_those_of_adoption(backend: Backend, words: Words) -> None:
    """The names of AdoptRun, the specification's ports among them, all open; gone with the box."""
    box = await backend.create("run-1", words.ends(0, ports=[5432]))
    assert set(box.descriptors) == {"tcp:80", "tcp:443", "tcp:3128", "tcp:5432", "udp:53", "tap", "stdout", "stderr"}
    for descriptor in box.descriptors.values():
        os.fstat(descriptor)
        assert not os.get_inheritable(descriptor)
    await box.destroy()
    assert box.descriptors == {}


async def case_status_and_cause(backend: Backend, words: Words) -> None:
    """The agent's own end is `exited` with its status."""
    for status in (0, 3):
        box = await backend.create(f"run-{status}", words.ends(status))
        await box.start()
        ended = await box.wait()
        assert (ended.status, ended.cause) == (status, "exited")
        await box.destroy()


async def case_first_kill_is_the_cause(backend: Backend, words: Words) -> None:
    """Killed while frozen; the second reason does not replace the first; killing the dead is done."""
    box = await backend.create("run-1", words.stays())
    await box.start()
    await box.freeze()
    await box.kill("killed", "first")
    await box.kill("killed", "second")
    ended = await box.wait()
    assert (ended.status, ended.cause, ended.detail) == (-9, "killed", "first")
    await box.destroy()


async def case_freeze_and_thaw_may_be_repeated(backend: Backend, words: Words) -> None:
    """Twice frozen and twice thawed, started or not."""
    box = await backend.create("run-1", words.stays())
    for _ in range(2):
        await box.freeze()
    for _ in range(2):
        await box.thaw()
    await box.start()
    await box.freeze()
    await box.thaw()
    await box.destroy()


async def case_refusals_leave_nothing(backend: Backend, words: Words) -> None:
    """A command that is not there and a limit that cannot be kept are the caller's errors, and cost no descriptor."""
    warm = await backend.create("run-0", words.ends(0))
    await warm.destroy()
    before = descriptors()
    for _ in range(2):
        with pytest.raises(CallerError, match="is not found"):
            await backend.create("run-1", words.missing())
    unenforced = [name for name, how in backend.capabilities().items() if how.startswith("not enforced") and name in ("cpu", "memory_bytes")]
    for name in unenforced:
        with pytest.raises(CallerError, match=f"limits.{name}: cannot be enforced here"):
            await backend.create("run-1", words.ends(0, limits=SandboxLimits(required=frozenset({name}))))
    assert descriptors() == before


async def case_orders_out_of_turn(backend: Backend, words: Words) -> None:
    """Started twice, collected while it lives, started when gone: each is refused."""
    box = await backend.create("run-1", words.stays())
    await box.start()
    for order in (box.start, lambda: box.collect(1)):
        with pytest.raises(Conflict):
            await order()
    await box.destroy()
    await box.destroy()
    with pytest.raises(BackendError):
        await box.start()


async def case_destroyed_while_waited_for(backend: Backend, words: Words) -> None:
    """Who waits for the end is told of it; nothing is left."""
    ends = []
    box = await backend.create("run-1", words.stays())
    await box.start()

    async def wait() -> None:
        ends.append(await box.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(0.01)
        await box.destroy()
    assert ends[0].cause == "killed"


async def case_names_are_free_again(backend: Backend, words: Words) -> None:
    """The same run name may be used once its box is destroyed, and costs no descriptor in the end."""
    before = None
    for _ in range(3):
        box = await backend.create("run-1", words.ends(0))
        await box.destroy()
        before = before or descriptors()
    assert descriptors() == before
    assert backend.clean() == 0
    backend.close()


CASES: list[Case] = [value for name, value in sorted(globals().items()) if name.startswith("case_")]


def in_child(uid: int, real: bool, case: Case) -> str:
    """What went wrong; empty when nothing did."""
    directory = Path(tempfile.mkdtemp(prefix="bailiwick-conformance-", dir="/tmp"))
    os.chown(directory, uid, uid)
    directory.chmod(0o755)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() != uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            asyncio._set_running_loop(None)
            backend: Backend = Bubblewrap.find(directory, directory / "state", installation=directory.name[-8:]) if real else FakeBackend()

            async def body() -> None:
                with anyio.fail_after(60):
                    await case(backend, Words(real))

            contextvars.Context().run(lambda: anyio.run(body))
            backend.close()
            os._exit(0)
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-8_000:])
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    shutil.rmtree(directory, ignore_errors=True)
    return said or ("" if status == 0 else f"ended with {status}")


@pytest.mark.sandbox
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("case_"))
@pytest.mark.parametrize("backend", ["bubblewrap-root", "bubblewrap-ordinary", "fake"])
def test_backend(backend: str, case: Case) -> None:
    """Every case holds on every backend."""
    if backend == "bubblewrap-root" and os.getuid() != 0:
        pytest.skip("needs root")
    if backend != "fake" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    uid = ORDINARY_UID if backend == "bubblewrap-ordinary" and os.getuid() == 0 else os.getuid()
    assert in_child(uid, backend != "fake", case) == ""
