"""The writers' end: what it promises about order, refusals and what is unacknowledged."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bailiwick.kernel import limits
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BailiwickError, CallerError, Forbidden
from bailiwick.kernel.layout import Layout
from bailiwick.record.client import GRACE_SECONDS, RecordClient, RecorderDown
from bailiwick.record.event import Event, encode
from bailiwick.record.repository import RecordReader

pytestmark = pytest.mark.anyio

Make = Callable[..., Event]


async def test_a_refused_event_does_not_take_its_neighbours_along(layout: Layout, recorder: Any, read: Callable[[], RecordReader], event: Make) -> None:
    """A mistake in one of many that left together: that one is reported, the others are written, and the one that waited is told."""
    refused: list[BailiwickError] = []
    client = RecordClient(layout.socket("recorder"), clock=SystemClock(), refused=refused.append)
    await client.start()
    await client.append_durably(event())
    client.append(event())
    client.append(event(kind="run.ended"))
    await client.append_durably(event())
    assert [type(each) for each in refused] == [Forbidden]
    with pytest.raises(Forbidden, match=r"run\.killed is written by governor"):
        await client.append_durably(event(kind="run.killed"))
    await client.append_durably(event())
    assert [each.event.kind for each in read().events()] == ["action.decided"] * 4
    assert client.healthy
    await client.close()


async def test_a_refusal_nobody_waits_for_is_not_silent(layout: Layout, recorder: Any, event: Make) -> None:
    """Without a listener for refusals the loop's exception handler is told."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    await client.append_durably(event())
    client.append(event(kind="run.ended"))
    await client.append_durably(event())
    assert isinstance(told[0]["exception"], Forbidden)
    await client.close()


async def test_what_cannot_be_written_is_refused_before_it_leaves(layout: Layout, recorder: Any, event: Make) -> None:
    """The writer of a float or of a text too long is told where it stands, and nothing is queued."""
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    for body in ({"seconds": 0.5}, {"text": "x" * limits.EVENT_BYTES_MAX}):
        with pytest.raises(CallerError):
            client.append(event(body=body))
    assert await client.append_durably(event()) == 1
    await client.close()


async def test_appended_events_leave_by_themselves(layout: Layout, recorder: Any, read: Callable[[], RecordReader], event: Make) -> None:
    """Nobody need wait for anything: what was appended is committed soon, and what was appended before closing is committed at the latest then."""
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    await client.append_durably(event())
    client.append(event())
    with anyio.fail_after(5):
        while read().head().size < 2:
            await anyio.sleep(0.005)
    client.append(event())
    await client.close()
    assert read().head().size == 3
    with pytest.raises(RecorderDown, match="closed"):
        client.append(event())


async def test_large_events_and_many_stay_in_order(layout: Layout, recorder: Any, read: Callable[[], RecordReader], event: Make) -> None:
    """More than a frame holds, escapes and all, is split and arrives in order."""
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    await client.append_durably(event())
    made = [event(body={"text": '"\\\n' * 30_000, "n": number}) for number in range(30)]
    for each in made[:-1]:
        client.append(each)
    assert await client.append_durably(made[-1]) == 31
    assert [each.event for each in read().events(after=1)] == made
    await client.close()


async def test_a_recorder_that_hangs_is_left(
    layout: Layout, recorder: Any, read: Callable[[], RecordReader], event: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the connection is made anew, and what was unacknowledged is sent again: it stands once."""
    monkeypatch.setattr(limits, "CALL_SECONDS_MAX", 0.5)
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    await client.append_durably(event(), seconds_max=5)
    recorder.signal(signal.SIGSTOP)
    for _ in range(10):
        client.append(event())
    with anyio.fail_after(6):
        while "did not answer" not in client._trouble:
            await anyio.sleep(0.02)
    recorder.signal(signal.SIGCONT)
    with anyio.fail_after(6):
        while not client.healthy:
            await anyio.sleep(0.02)
    assert await client.append_durably(event(), seconds_max=5) == 12
    assert read().head().size == 12
    await client.close()


async def test_an_encoded_event_is_appended_like_any(layout: Layout, recorder: Any, read: Callable[[], RecordReader], event: Make) -> None:
    """In the order of all appends, and read as strictly: what is no event is refused by the recorder, and its neighbours are not."""
    refused: list[BailiwickError] = []
    client = RecordClient(layout.socket("recorder"), clock=SystemClock(), refused=refused.append)
    await client.start()
    made = [event() for _ in range(9)]
    await client.append_durably(made[0])
    for each in made[1:4]:
        client.append_encoded(encode(each).decode())
    client.append(made[4])
    for each in made[5:8]:
        client.append_encoded(encode(each).decode())
    assert await client.append_durably(made[8]) == 9
    assert [each.event for each in read().events()] == made
    client.append_encoded('{"id":"e-1","kind":"action.decided","time":"now", "v":1}')
    await client.append_durably(event())
    assert len(refused) == 1
    assert read().head().size == 10
    await client.close()


async def test_encoded_events_are_bound_as_all_are(layout: Layout, recorder: Any, event: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more are unacknowledged than may be; half of that is `behind`, and whoever waits for it to pass is called once it has."""
    monkeypatch.setattr(limits, "EVENTS_UNACKNOWLEDGED_MAX", 10)
    client = RecordClient(layout.socket("recorder"), clock=SystemClock())
    await client.start()
    await client.append_durably(event())
    called: list[bool] = []
    for number in range(10):
        assert client.behind is (number >= 5)
        client.append_encoded(encode(event()).decode())
    client.when_caught_up(lambda: called.append(client.behind))
    with pytest.raises(RecorderDown, match="10 events are unacknowledged"):
        client.append_encoded(encode(event()).decode())
    assert not client.healthy
    with anyio.fail_after(5):
        while not called:
            await anyio.sleep(0.002)
    assert called == [False]
    assert client.healthy
    await client.close()
    with pytest.raises(RecorderDown, match="closed"):
        client.append_encoded(encode(event()).decode())


async def test_a_recorder_that_is_silent_takes_no_encoded_event_either(layout: Layout, recorder: Any, event: Make) -> None:
    """Past the grace nothing is queued, in a batch that is being filled or not; who waits for it to catch up is told as well."""
    now = 0.0

    class Clock(SystemClock):
        def monotonic(self) -> float:
            return now

    client = RecordClient(layout.socket("recorder"), clock=Clock())
    await client.start()
    await client.append_durably(event())
    called: list[bool] = []
    text = encode(event()).decode()
    client.append_encoded(text)
    client.when_caught_up(lambda: called.append(client.healthy))
    now = GRACE_SECONDS
    client.append_encoded(text)
    now = GRACE_SECONDS + 0.001
    with pytest.raises(RecorderDown, match="has not acknowledged an event for 1"):
        client.append_encoded(text)
    recorder.signal(signal.SIGSTOP)
    with anyio.fail_after(5):
        while not called:
            await anyio.sleep(0.01)
    recorder.signal(signal.SIGCONT)
    await client.close()
