"""The launcher as the governor meets it: orders, silence, death, and what is left afterwards (nothing)."""

import hashlib
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from tests.fakes.sandboxes import ORDINARY_UID, Installation, fork_launcher, stop, wait_until

from bailiwick.kernel.channel import connect
from bailiwick.kernel.errors import BailiwickError, CallerError, Conflict, NotFound, PeerError
from bailiwick.sandbox.messages import (
    LAUNCHER,
    CollectWorkspace,
    CreateSandbox,
    DestroySandbox,
    FreezeRun,
    HandOver,
    KillRun,
    ListSandboxes,
    MeasureRun,
    StartAgent,
    ThawRun,
)

pytestmark = [pytest.mark.anyio, pytest.mark.sandbox]

TICKING = "import time\nwhile True: print('tick', flush=True); time.sleep(0.005)"
BUSY = """
import time
open("/workspace/a", "wb").write(b"x" * 5_000_000)
until = time.time() + 0.6
while time.time() < until: pass
print("done")
"""
FORKING = """
import os, time
for _ in range(6):
    if os.fork() == 0: break
while True: print('tick', flush=True); time.sleep(0.005)
"""


def drain(here: Installation, name: str) -> int:
    """Bytes that came since the last look."""
    count = 0
    with suppress(BlockingIOError):
        while chunk := os.read(here.adopted[name].descriptors["stdout"], 65_536):
            count += len(chunk)
    return count


async def ticking(here: Installation, text: str = FORKING) -> str:
    name = await here.begin(here.python(text))
    await here.read(name, "stdout", until="tick")
    return name


async def still(here: Installation, name: str) -> bool:
    """Whether nothing is written for a tenth of a second, after what was in the pipe."""
    drain(here, name)
    await anyio.sleep(0.1)
    return drain(here, name) == 0


def children_of(pid: int) -> list[int]:
    return [int(child) for thread in Path(f"/proc/{pid}/task").iterdir() for child in (thread / "children").read_text().split()]


def processes_of(here: Installation) -> list[int]:
    """Every process below the launcher."""
    found, waiting = [], [here.pid]
    while waiting:
        with suppress(OSError):
            children = children_of(waiting.pop())
            found += children
            waiting += children
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def groups(here: Installation) -> set[str]:
    """Of this installation: others may be on the machine."""
    name = hashlib.sha256(os.fsencode(here.layout.root.resolve())).hexdigest()[:12]
    found = [*Path("/sys/fs/cgroup").glob(f"*/bailiwick-{name}/*"), *Path("/sys/fs/cgroup").glob(f"bailiwick-{name}/*")]
    return {str(path) for path in found if path.is_dir()}


async def test_freezing_stops_every_process(here: Installation) -> None:
    """After FreezeRun is answered no process of the run does anything; after ThawRun all go on. Both may be asked twice."""
    name = await ticking(here)
    for _ in range(2):
        await here.call(FreezeRun(run=name))
        assert await still(here, name)
    assert (await here.call(ListSandboxes())).sandboxes[0].state == "frozen"
    for _ in range(2):
        await here.call(ThawRun(run=name))
    await here.read(name, "stdout", until="tick")


async def test_a_frozen_run_is_killed(here: Installation) -> None:
    """KillRun needs no thaw, leaves no process, and the exit says who ordered it and why."""
    name = await ticking(here)
    await wait_until(lambda: len(processes_of(here)) >= 8)
    before = processes_of(here)
    await here.call(FreezeRun(run=name))
    await here.call(KillRun(run=name, reason="operator ana: wrong branch"))
    assert not [pid for pid in before if alive(pid)]
    ended = await here.exit_of(name)
    assert (ended.cause, ended.detail, ended.status) == ("killed", "operator ana: wrong branch", -9)
    await here.call(KillRun(run=name, reason="again"))


async def test_silence_of_the_governor_freezes_every_run(here: Installation) -> None:
    """Within the stale time of the heartbeat every run stands still; when it is heard again those go on that no order froze."""
    ordered, other = await ticking(here), await ticking(here)
    await here.call(FreezeRun(run=ordered))
    here.beating = False
    silent = time.monotonic()
    while not await still(here, other):
        assert time.monotonic() - silent < 3.5
    here.beating = True
    await here.read(other, "stdout", until="tick")
    assert await still(here, ordered)


async def test_a_killed_launcher_leaves_no_process(here: Installation) -> None:
    """kill -9 of the launcher is the end of every process of every run; its successor takes the control groups away and serves."""
    for _ in range(3):
        await ticking(here)
    waiting, _ = await here.create(here.script("true"))
    await wait_until(lambda: len(processes_of(here)) > 20)
    before = processes_of(here)
    os.kill(here.pid, signal.SIGKILL)
    os.waitpid(here.pid, 0)
    await wait_until(lambda: not [pid for pid in before if alive(pid)])
    left = groups(here)
    here.pid = fork_launcher(here.layout, here.accounts, here.uid, here.listener)
    channel = await connect(here.layout.socket("launcher"), LAUNCHER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        listed = (await channel.call(ListSandboxes())).message
        assert listed.sandboxes == []
        assert not [path for path in left if Path(path).exists() and path.rsplit("/", 1)[1] == waiting]
        with pytest.raises(NotFound):
            await channel.call(StartAgent(run=waiting))
        channel.close()
        tasks.cancel_scope.cancel()
    assert list(here.layout.sandboxes.glob("etc-*")) == []


async def test_sigterm_takes_everything_away(here: Installation) -> None:
    """The launcher ends in order: no process, control group or directory is left, and it says 0."""
    names = [await ticking(here) for _ in range(2)]
    before = processes_of(here)
    assert stop(here.pid) == 0
    assert not [pid for pid in before if alive(pid)]
    assert not [path for path in groups(here) if path.rsplit("/", 1)[1] in names]
    assert list(here.layout.sandboxes.iterdir()) == []


async def test_destroying_is_done_once_and_again(here: Installation) -> None:
    """DestroySandbox in any state leaves nothing, and of what is gone it is simply true."""
    created, _ = await here.create(here.script("true"))
    running = await ticking(here)
    frozen = await ticking(here)
    await here.call(FreezeRun(run=frozen))
    ended = await here.begin(here.script("true"))
    await here.exit_of(ended)
    open_before = len(os.listdir(f"/proc/{here.pid}/fd")) if os.getuid() == 0 else None
    for name in (created, running, frozen, ended):
        for _ in range(2):
            await here.call(DestroySandbox(run=name))
    assert processes_of(here) == []
    assert not [path for path in groups(here) if path.rsplit("/", 1)[1] in (created, running, frozen, ended)]
    assert (await here.call(ListSandboxes())).sandboxes == []
    if open_before is not None:
        assert len(os.listdir(f"/proc/{here.pid}/fd")) <= open_before - 4 * 10
    await here.call(DestroySandbox(run="run-never-made"))


async def test_a_failed_creation_leaves_nothing(here: Installation) -> None:
    """Whatever step fails, processes, groups, descriptors and the name are given back, and the next run is made as if nothing had been."""
    await here.run(here.script("true"))
    descriptors, live = len(os.listdir(f"/proc/{here.pid}/fd")), groups(here)
    for spec, said in (
        (here.spec("no-such-program"), "is not found"),
        (here.script("true", workspace="/no/such"), "is not there"),
        (here.script("true", trees=["/usr/no-such"]), "is not there"),
        (here.script("true", ports=[53]), "not 53"),
    ):
        with pytest.raises(CallerError, match=said):
            await here.create(spec, run="run-failing")
    with pytest.raises(CallerError, match="worker 'gateway-9' is unknown"):
        await here.call(CreateSandbox(run="run-failing", worker="gateway-9", spec=here.script("true")))
    assert processes_of(here) == []
    assert groups(here) == live
    assert len(os.listdir(f"/proc/{here.pid}/fd")) == descriptors
    await here.create(here.script("true"), run="run-failing")


async def test_listeners_are_handed_over_again(here: Installation) -> None:
    """A worker that was started anew gets the same sockets: a connection that waited in the backlog is answered by the successor."""
    name = await here.begin(here.python("import socket; s = socket.create_connection(('93.184.216.34', 443), 10); print(s.recv(100).decode())"))
    old = here.adopted.pop(name)
    listening = old.listener("tcp:443")
    await wait_until(lambda: _has_waiting(listening))
    listening.close()
    old.close()
    await here.call(HandOver(run=name, worker="gateway-0"))
    successor = here.adopted[name].listener("tcp:443")
    connection, _ = successor.accept()
    connection.sendall(b"from the successor")
    connection.close()
    successor.close()
    assert await here.read(name, "stdout") == "from the successor\n"


def _has_waiting(listening: socket.socket) -> bool:
    import select

    look = select.poll()
    look.register(listening, select.POLLIN)
    return bool(look.poll(0))


async def test_an_exit_is_told_when_the_governor_comes_again(here: Installation) -> None:
    """An agent that ends while nobody listens is told on the next channel, and listed until destroyed."""
    name = await here.begin(here.script("sleep 0.3; exit 7"))
    assert here.channel is not None
    here.channel.close()
    await wait_until(lambda: not processes_of(here))
    assert name not in here.exits
    async with anyio.create_task_group() as tasks:
        here.channel = await here.connect()
        tasks.start_soon(here.channel.run)
        listed = await here.call(ListSandboxes())
        assert listed.sandboxes[0].exited.status == 7
        assert (await here.exit_of(name)).status == 7
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$; sleep 0.1; exit 5", 5), ("sh -c 'kill -KILL $$'; exit $?", -9)]
)
async def test_status_is_the_agents(here: Installation, script: str, status: int) -> None:
    """The exit status, or minus the signal as a shell says it. (The first process of a namespace does not die by a signal it sends itself.)"""
    _, _, ended = await here.run(here.script(script))
    assert (ended.status, ended.cause) == (status, "exited")


async def test_a_broken_sandbox_is_not_the_agents_fault(here: Installation) -> None:
    """bubblewrap killed from outside is told as cause `sandbox`, with what happened."""
    name = await ticking(here)
    (bubblewrap,) = (pid for pid in children_of(here.pid) if b"--args" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(bubblewrap, signal.SIGKILL)
    ended = await here.exit_of(name)
    assert ended.cause == "sandbox"
    assert "bubblewrap" in ended.detail


async def test_orders_in_the_wrong_state(here: Installation) -> None:
    """Each is refused by name, and changes nothing."""
    name, _ = await here.create(here.script("sleep 60"))
    with pytest.raises(Conflict, match="is there already"):
        await here.create(here.script("true"), run=name)
    with pytest.raises(Conflict, match="has not ended"):
        await here.call(CollectWorkspace(run=name))
    await here.call(StartAgent(run=name))
    with pytest.raises(Conflict, match="is started already"):
        await here.call(StartAgent(run=name))
    for order in (StartAgent(run="run-x"), FreezeRun(run="run-x"), ThawRun(run="run-x"), MeasureRun(run="run-x"), KillRun(run="run-x", reason="")):
        with pytest.raises(NotFound, match="run-x is not here"):
            await here.call(order)
    for odd in ("", "../x", "a/b", "x" * 65, "run\n"):
        with pytest.raises(CallerError, match="is no name of one"):
            await here.create(here.script("true"), run=odd or None) if odd else await here.call(
                CreateSandbox(run="", worker="gateway-0", spec=here.script("true"))
            )
    measured = await here.call(MeasureRun(run=name))
    assert measured.pids >= 1


async def test_nobody_but_the_governor_is_served(here: Installation) -> None:
    """A process of another uid is turned away before it says anything."""
    if os.getuid() != 0:
        pytest.skip("needs root to be somebody else")
    pid = os.fork()
    if pid == 0:
        os.setresuid(ORDINARY_UID + 1, ORDINARY_UID + 1, ORDINARY_UID + 1)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(here.layout.socket("launcher"))
        sock.settimeout(10)
        with suppress(ConnectionError):
            os._exit(0 if sock.recv(100) == b"" else 1)
        os._exit(0)
    with anyio.fail_after(15):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            await anyio.sleep(0.01)


async def test_stats_are_kept_after_the_end(here: Installation) -> None:
    """Processor time, memory, processes and disk are measured while it runs and stand in what is told at the end."""
    name = await here.begin(here.python(BUSY))
    ended = await here.exit_of(name)
    assert ended.stats.disk_bytes >= 5_000_000
    if here.uid == 0:
        assert ended.stats.cpu_seconds > 0.03
        assert ended.stats.memory_bytes_max > 1_000_000


async def test_many_at_once(here: Installation) -> None:
    """Twelve runs asked for at the same time all start, each with its own sockets, and all go."""
    said: dict[str, str] = {}

    async def one(number: int) -> None:
        name, created = await here.create(here.script(f"echo {number}"), run=f"run-many-{number}")
        assert [finding for finding in created.findings if not finding.held] == []
        await here.call(StartAgent(run=name))
        said[name] = await here.read(name, "stdout")
        await here.call(DestroySandbox(run=name))

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number)
    assert said == {f"run-many-{number}": f"{number}\n" for number in range(12)}
    assert processes_of(here) == []


async def test_a_worker_that_does_not_listen(here: Installation) -> None:
    """A sandbox whose listeners nobody takes is not made."""
    os.unlink(here.layout.socket("gateway-0.adopt"))
    with pytest.raises((PeerError, BailiwickError), match="adoption is not reachable"):
        await here.create(here.script("true"))
    assert processes_of(here) == []
