"""The recorder as a process, over its socket."""

import socket
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bailiwick.kernel.channel import Received, Reply, connect
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.layout import Layout
from bailiwick.record.checkpoint import Verifier, verify_checkpoint
from bailiwick.record.client import RecordClient
from bailiwick.record.event import encode
from bailiwick.record.export import export
from bailiwick.record.messages import RECORDER, AppendEvents, EventsAppended, EventsCommitted, SubscribeEvents
from bailiwick.record.repository import RecordReader
from bailiwick.record.verify import verify_export

pytestmark = pytest.mark.anyio


async def client_of(layout: Layout) -> RecordClient:
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    return client


async def test_appended_events_are_signed_exported_and_verified(
    layout: Layout, read: Callable[[], RecordReader], recorder: Any, signer: Any, event: Callable[..., Any]
) -> None:
    """What was appended stands in the record, the tree head over it is signed, and an export of it verifies with the public key alone."""
    client = await client_of(layout)
    first = await client.append_durably(event(verb="write", decision="allow", action="a-1"))
    for number in range(600):
        client.append(event(run=f"run-{number % 7}", verb="read", decision="allow", action=f"a-x{number}"))
    last = await client.append_durably(event(kind="action.finished", action="a-1", input_tokens=3, cost_microusd=5))
    assert (first, last) == (1, 602)
    note = await client.take_checkpoint()
    reader = read()
    (vkey,) = reader.verifiers()
    assert verify_checkpoint(note, Verifier.parse(vkey)).size == 602
    assert reader.head().size == 602
    for run in (None, "run-1"):
        export(reader, layout.root / "export.jsonl", run=run)  # type: ignore[arg-type]
        verified = verify_export(layout.root / "export.jsonl", vkey)
        assert verified.size == 602
        assert verified.events == (602 if run is None else 88)
    usage = reader.usage("run-1")  # type: ignore[arg-type]
    assert (usage.calls, usage.writes, usage.tokens, usage.microusd) == (87, 1, 3, 5)
    await client.close()


async def test_a_refused_event_fails_its_message_alone(layout: Layout, recorder: Any, event: Callable[..., Any]) -> None:
    """An event nobody of the writer's role may write, or that is no event, is refused by name; what came before and after is appended."""
    channel = await connect(layout.socket("recorder"), RECORDER)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        await anyio.wait_all_tasks_blocked()  # its hello is out
        good = encode(event()).decode()
        assert (await channel.call(AppendEvents([good]))).message == EventsAppended([1])
        for bad, what in [
            (encode(event(kind="run.started")).decode(), "written by governor"),
            ("{}", "not understood"),
            (good.replace('":"', '": "'), "canonical"),
        ]:
            with pytest.raises(BailiwickError, match=what):
                await channel.call(AppendEvents([encode(event()).decode(), bad]))
        assert (await channel.call(AppendEvents([good, encode(event()).decode()]))).message == EventsAppended([1, 2])
        with pytest.raises(BailiwickError, match="other content"):
            await channel.call(AppendEvents([good.replace("run-1", "run-2")]))
        channel.close()


async def test_a_subscription_is_told_everything_once(layout: Layout, recorder: Any, event: Callable[..., Any]) -> None:
    """The governor's subscription gets what is in the record already and then what is committed, each event once, in order."""
    client = await client_of(layout)
    told: list[str] = []

    async def take(channel: object, received: Received) -> Reply:
        message = received.message
        assert isinstance(message, EventsCommitted)
        assert message.first == len(told) + 1
        told.extend(message.leaves)
        return Reply()

    for _ in range(1_500):
        client.append(event())
    await client.append_durably(event())
    channel = await connect(layout.socket("recorder"), RECORDER, take)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        await anyio.wait_all_tasks_blocked()  # its hello is out
        await channel.call(SubscribeEvents(1))
        await client.append_durably(event())
        with anyio.fail_after(5):
            while len(told) < 1_502:
                await anyio.sleep(0.005)
        channel.close()
    await client.close()


async def test_garbage_is_refused_and_noted(
    layout: Layout, read: Callable[[], RecordReader], recorder: Any, event: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    """Whoever breaks the protocol is cut off; the recorder lives, and the record says so at a bounded rate."""
    client = await client_of(layout)
    await client.append_durably(event())
    for garbage in [b"\xff" * 100, b"\x00\x00\x00\x02{}", b"GET / HTTP/1.1\r\n\r\n"] * 20:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(layout.socket("recorder"))
            sock.sendall(garbage)
            sock.settimeout(5)
            while sock.recv(4096):
                pass
    await client.append_durably(event())
    reader = read()
    refused = reader.events(kinds=["peer.refused"])
    assert 1 <= len(refused) <= 3
    assert refused[0].event.body["service"] == "recorder"
    await client.close()
