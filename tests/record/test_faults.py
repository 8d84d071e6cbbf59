"""What is acknowledged stays, whatever is killed, full, slow or silent."""

import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from bailiwick.kernel.channel import Framer, connect
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.layout import Layout
from bailiwick.record.client import RecordClient, RecorderDown
from bailiwick.record.event import Event
from bailiwick.record.export import export
from bailiwick.record.merkle import CompactRange
from bailiwick.record.messages import RECORDER, SubscribeEvents
from bailiwick.record.repository import RecordReader
from bailiwick.record.verify import verify_export

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}  # as the gateway runs it


async def client_of(layout: Layout) -> RecordClient:
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    return client


def check_whole(reader: RecordReader) -> RecordReader:
    """The tree is that of the leaves, and every sequence number is there once."""
    tree = CompactRange()
    for leaf in reader.leaf_hashes(1, reader.head().size):
        tree.append(leaf)
    assert (tree.size, tree.root().hex()) == (reader.head().size, reader.head().root)
    assert tree.root() == reader.root(tree.size)
    return reader


async def test_kill_9_loses_nothing_that_was_acknowledged(
    layout: Layout, read: Callable[[], RecordReader], recorder: Any, signer: Any, event: Callable[..., Event]
) -> None:
    """The recorder is killed at random moments under two writers: each acknowledged event stands once, where it was said to; each writer's order is kept."""
    chance = random.Random(7)
    clients = [await client_of(layout), await client_of(layout)]
    appended: list[list[str]] = [[], []]
    acknowledged: dict[str, int] = {}
    stop = False

    async def write(number: int) -> None:
        while not stop:
            made = [event(run=f"run-{number}", body={"n": len(appended[number])}) for _ in range(chance.randint(1, 20))]
            try:
                for each in made[:-1]:
                    clients[number].append(each)
                    appended[number].append(each.id)
                appended[number].append(made[-1].id)
                acknowledged[made[-1].id] = await clients[number].append_durably(made[-1])
            except RecorderDown:
                await anyio.sleep(0.01)
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, 0)
        tasks.start_soon(write, 1)
        for _ in range(8):
            await anyio.sleep(chance.random() * 0.15)
            recorder.kill()
            recorder.start()
            enough = len(acknowledged) + 4  # the new one takes events again, from before and after its start
            with anyio.fail_after(20):
                while len(acknowledged) < enough:
                    await anyio.sleep(0.005)
        stop = True
    for client in clients:
        with anyio.fail_after(10):
            while not client.healthy:
                await anyio.sleep(0.01)
        await client.append_durably(event(run="run-end"))
        await client.close()
    reader = check_whole(read())
    stored = [each for page in range(100) for each in reader.events(after=page * 10_000, before=page * 10_000 + 10_001, limit=10_000)]
    by_id = {each.event.id: each.sequence for each in stored}
    assert len(by_id) == len(stored)
    assert len(acknowledged) > 20
    assert {id: by_id.get(id) for id in acknowledged} == acknowledged
    for number in (0, 1):
        ours = [each.event.id for each in stored if each.event.run == f"run-{number}"]
        kept = set(ours)
        assert ours == [id for id in appended[number] if id in kept]


async def test_a_signer_that_hangs_or_dies_delays_nothing(layout: Layout, recorder: Any, signer: Any, event: Callable[..., Event]) -> None:
    """Appending goes on; who asks for a checkpoint is told after a while that the signer is to blame; when it is back, checkpoints are."""
    client = await client_of(layout)
    await client.append_durably(event())
    await client.take_checkpoint()
    signer.signal(signal.SIGSTOP)
    for _ in range(20):
        with anyio.fail_after(1):
            await client.append_durably(event())
    with pytest.raises(BailiwickError, match="signer has not signed"):
        await client.take_checkpoint()
    signer.kill()
    with anyio.fail_after(1):
        await client.append_durably(event())
    signer.start()
    assert (await client.take_checkpoint()).splitlines()[1] == "22"
    await client.close()


async def test_a_recorder_that_hangs_fails_closed(layout: Layout, recorder: Any, event: Callable[..., Event]) -> None:
    """A recorder that does not acknowledge for a second: no event is taken any more, by name of the dead part; when it goes on, nothing is lost."""
    client = await client_of(layout)
    await client.append_durably(event())
    recorder.signal(signal.SIGSTOP)
    client.append(event())
    with anyio.fail_after(5):
        while client.healthy:
            await anyio.sleep(0.02)
    with pytest.raises(RecorderDown, match="recorder has not acknowledged"):
        client.append(event())
    with pytest.raises(RecorderDown, match="recorder"):
        await client.append_durably(event())
    recorder.signal(signal.SIGCONT)
    with anyio.fail_after(5):
        while not client.healthy:
            await anyio.sleep(0.02)
    assert await client.append_durably(event()) == 3
    await client.close()


async def test_a_recorder_that_is_gone_fails_closed(layout: Layout, event: Callable[..., Event]) -> None:
    """Nobody listens: appending raises once the grace is over, and a full queue at once."""
    layout.sockets.mkdir(parents=True)
    client = await client_of(layout)
    client.append(event())
    with anyio.fail_after(5):
        while client.healthy:
            await anyio.sleep(0.02)
    with pytest.raises(RecorderDown, match="recorder is down"):
        client.append(event())
    await client.close()
    with pytest.raises(RecorderDown, match="closed"):
        client.append(event())


async def test_what_is_unacknowledged_is_bounded(layout: Layout, recorder: Any, event: Callable[..., Event]) -> None:
    """A writer faster than the recorder is refused, not buffered without end."""
    client = await client_of(layout)
    await client.append_durably(event())
    recorder.signal(signal.SIGSTOP)

    def flood() -> None:
        for _ in range(20_000):
            client.append(event())

    with pytest.raises(RecorderDown, match="events are unacknowledged"):
        flood()
    recorder.signal(signal.SIGCONT)
    with anyio.fail_after(10):
        while not client.healthy:
            await anyio.sleep(0.02)
    assert await client.append_durably(event()) == 10_002
    await client.close()


async def test_a_subscriber_that_does_not_read_costs_no_memory(layout: Layout, recorder: Any, event: Callable[..., Event]) -> None:
    """What a slow subscriber has not read stays in the database."""
    client = await client_of(layout)
    channel = await connect(layout.socket("recorder"), RECORDER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        await anyio.wait_all_tasks_blocked()
        await channel.call(SubscribeEvents(1))
        tasks.cancel_scope.cancel()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(layout.socket("recorder"))
    framer = Framer(RECORDER)
    sock.sendall(framer.hello() + framer.send("call", SubscribeEvents(1), id=1))
    memory = Path(f"/proc/{recorder.pid}/statm")
    before = int(memory.read_text().split()[1])
    for _ in range(60):
        for _ in range(99):
            client.append(event(body={"text": "x" * 2_000}))
        await client.append_durably(event())
    grown = (int(memory.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 12_000_000 < 60 * 99 * 2_000 + 200_000
    sock.close()
    await client.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_disk_refuses_and_recovers(
    layout: Layout, read: Callable[[], RecordReader], small_disk: Path, event: Callable[..., Event], request: pytest.FixtureRequest
) -> None:
    """Disk full: appends are refused, nothing is half written; when space returns, what was queued is written by itself, once."""
    layout.record.symlink_to(small_disk, target_is_directory=True)
    (small_disk / "ballast").write_bytes(b"x" * 700_000)
    request.getfixturevalue("recorder")
    client = await client_of(layout)
    written = 0

    async def fill() -> None:
        nonlocal written
        for _ in range(5_000):
            await client.append_durably(event(body={"text": "x" * 3_000}), seconds_max=1.0)
            written += 1

    with pytest.raises(RecorderDown):
        await fill()
    assert written > 10
    with anyio.fail_after(5):
        while client.healthy:
            await anyio.sleep(0.02)
    check_whole(read())
    (small_disk / "ballast").unlink()
    with anyio.fail_after(10):
        while not client.healthy:
            await anyio.sleep(0.02)
    last = await client.append_durably(event())
    assert written + 2 <= last <= written + 3
    check_whole(read())
    await client.close()


async def test_two_clients_of_one_record_verify(
    layout: Layout, read: Callable[[], RecordReader], recorder: Any, signer: Any, event: Callable[..., Event]
) -> None:
    """After the signer and the recorder were both killed, checkpoints go on from what was signed, and the export verifies."""
    client = await client_of(layout)
    for _ in range(3):
        for _ in range(50):
            client.append(event())
        await client.append_durably(event())
        await client.take_checkpoint()
        recorder.kill()
        signer.kill()
        signer.start()
        recorder.start()
    await client.append_durably(event())
    await client.take_checkpoint()
    reader = read()
    export(reader, layout.root / "e.jsonl")
    verified = verify_export(layout.root / "e.jsonl", reader.verifiers()[-1])
    assert (verified.size, verified.events) == (154, 154)
    assert verified.checkpoints >= 4
    await client.close()
