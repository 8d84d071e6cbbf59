"""The writers' end of recorder.sock: events are handed over without waiting, in order, and are sent again until they are acknowledged.

Callbacks of the running loop (asyncio or uvloop), no tasks. What is appended within one turn of the loop leaves as one AppendEvents; an event nobody
waits for stays up to LINGER_SECONDS, so that ten share the recorder's fsync instead of two. Fails closed: when
the recorder does not acknowledge for GRACE_SECONDS, or too much is unacknowledged, appending raises instead of queueing.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from bailiwick.kernel import limits
from bailiwick.kernel.clock import Clock
from bailiwick.kernel.errors import BackendError, BailiwickError, PeerError
from bailiwick.kernel.framing import Failure, Frame, Framer, Message, raised
from bailiwick.record.batch import Batch
from bailiwick.record.event import Event, encode
from bailiwick.record.messages import RECORDER, AppendEvents, CheckpointTaken, EventsAppended, TakeCheckpoint

GRACE_SECONDS = 1.0
LINGER_SECONDS = 0.002
UNACKNOWLEDGED_BYTES_MAX = 64 * limits.MIB
_MESSAGE_BYTES_MAX = limits.MIB  # of events; escaped once more they at most double
_MESSAGE_EVENTS_MAX = 2_000
_BATCH_BYTES_FULL = _MESSAGE_BYTES_MAX - limits.EVENT_BYTES_MAX  # whatever the next event is, below this it fits
_OUT_BYTES_MAX = 4 * limits.MIB
_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 0.01, 0.5
_CLOSE_SECONDS_MAX = 2.0
_READ_BYTES = 256 * limits.KIB


_T = TypeVar("_T")


class RecorderDown(BackendError):
    """The record does not take events (any more): what needs one may not happen."""

    code = "recorder-down"


class RecordClient:
    """One writer's connection, for one event loop. Events are written in the order appended (but for those that left in one message with one that is
    refused: they are sent again singly, perhaps after later ones).

    `refused` is told of an event that the recorder refused for good and nobody waits for (a mistake of ours: a kind this process may not write); without
    it the loop's exception handler is.
    """

    def __init__(self, path: str, *, clock: Clock, refused: Callable[[BailiwickError], None] | None = None) -> None:
        self._path = path
        self._clock = clock
        self._monotonic = clock.monotonic
        self._refused = refused
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sock: socket.socket | None = None
        self._framer = Framer(RECORDER)
        self._out = bytearray()
        self._writing = False
        self._unsent: deque[Batch] = deque()  # the last one is still filled
        self._sent: dict[int, Batch] = {}  # by call, in order
        self._filling: Batch | None = None  # the last one, while more may simply be added to it
        self._room = 0  # how many more, by every bound on what is unacknowledged
        self._until = 0.0  # before then: later the oldest event has waited too long, or the recorder been away
        self._oldest_at = 0.0  # of what is unacknowledged, while anything is
        self._calls: dict[int, asyncio.Future[str]] = {}
        self._number = 0
        self._events = 0
        self._bytes = 0
        self._scheduled: asyncio.Handle | None = None
        self._urgent = False
        self._down_since: float | None = clock.monotonic()
        self._trouble = "it was not reached yet"
        self._pause = _PAUSE_SECONDS_MIN
        self._retry: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._held_back: list[Callable[[], None]] = []
        self._closed = False

    async def start(self) -> None:
        """Connects, or goes on trying: a recorder that is not there yet shows in `healthy`."""
        self._loop = asyncio.get_running_loop()
        self._connect()

    @property
    def healthy(self) -> bool:
        return not self._why_down(self._clock.monotonic())

    @property
    def behind(self) -> bool:
        """Half of what may be unacknowledged is: who can wait (`when_caught_up`) does better than to go on until it is refused."""
        return self._events >= limits.EVENTS_UNACKNOWLEDGED_MAX // 2

    def when_caught_up(self, call: Callable[[], None]) -> None:
        """Calls once when it is no longer `behind`, or takes no events at all."""
        self._held_back.append(call)

    def append(self, event: Event) -> None:
        """Hands the event over. Raises RecorderDown, or CallerError for an event that cannot be written."""
        self._enqueue(encode(event).decode(), None)

    def append_encoded(self, text: str) -> None:
        """The same for an event in its canonical form, as `record.event.encode` writes it: a writer that fills in a form it once had written by that
        need not build the event. The recorder reads it as strictly as any. Raises RecorderDown."""
        batch = self._filling
        if batch is None or self._room <= 0 or self._monotonic() >= self._until or batch.size >= _BATCH_BYTES_FULL:
            self._enqueue(text, None)
            return
        # What `_enqueue` does for an event that nobody waits for, in a batch begun under the same bounds.
        self._room -= 1
        batch.texts.append(text)
        size = len(text)
        batch.size += size
        self._events += 1
        self._bytes += size

    async def append_durably(self, event: Event, *, seconds_max: float = limits.CALL_SECONDS_MAX) -> int:
        """The event's sequence number, once it is committed. Raises RecorderDown when it is not within `seconds_max` (it may be written later all the
        same: an intent without an outcome), and what the recorder refused it with."""
        assert self._loop is not None, "start() first"
        done: asyncio.Future[int] = self._loop.create_future()
        self._enqueue(encode(event).decode(), done)
        return await self._within(done, seconds_max, f"event {event.kind} was not committed")

    async def take_checkpoint(self, *, seconds_max: float = limits.CALL_SECONDS_MAX) -> str:
        """A signed note over everything appended before. Raises RecorderDown, and PeerError when the signer does not answer the recorder."""
        assert self._loop is not None, "start() first"
        if self._sock is None:
            raise RecorderDown(f"recorder is down: {self._trouble}")
        self._flush()
        self._number += 1
        done = self._calls[self._number] = self._loop.create_future()
        self._write(TakeCheckpoint(), self._number)
        return await self._within(done, seconds_max, "no checkpoint was taken")

    async def close(self) -> None:
        """Sends what is left, waits a little for its acknowledgement, and closes. What is still unacknowledged then fails with RecorderDown."""
        if self._loop is not None and self._sock is not None and self._events and not self._closed:
            self._idle = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle, _CLOSE_SECONDS_MAX)
        self._closed = True
        self._filling = None
        self._disconnect("the client is closed")
        for timer in (self._retry, self._watch):
            if timer is not None:
                timer.cancel()
        for batch in self._unsent:
            for _, done in batch.waiting:
                if not done.done():
                    done.set_exception(RecorderDown("recorder client was closed before the event was committed"))
        self._unsent.clear()
        self._events = self._bytes = 0

    # The queue

    def _enqueue(self, text: str, done: asyncio.Future[int] | None) -> None:
        now = self._monotonic()
        if why := self._why_down(now):
            raise RecorderDown(why)
        size = len(text)
        batch = self._unsent[-1] if self._unsent else None
        if batch is None or len(batch.texts) >= _MESSAGE_EVENTS_MAX or batch.size + size > _MESSAGE_BYTES_MAX:
            batch = Batch(now)
            self._unsent.append(batch)
        if done is not None:
            batch.waiting.append((len(batch.texts), done))
        batch.texts.append(text)
        batch.size += size
        if not self._events:
            self._oldest_at = now
        self._events += 1
        self._bytes += size
        if (self._scheduled is None or (done is not None and not self._urgent)) and self._sock is not None:
            self._schedule(urgent=done is not None)
        if self._scheduled is not None:
            self._fill(batch)

    def _fill(self, batch: Batch) -> None:
        """More may be added to the batch without another look, until it leaves. What is acknowledged meanwhile only widens the bounds taken here."""
        self._filling = batch
        self._room = min(_MESSAGE_EVENTS_MAX - len(batch.texts), limits.EVENTS_UNACKNOWLEDGED_MAX - self._events)
        if self._bytes >= UNACKNOWLEDGED_BYTES_MAX - _MESSAGE_BYTES_MAX:
            self._room = 0
        since = self._oldest_at if self._down_since is None else min(self._oldest_at, self._down_since)
        self._until = since + GRACE_SECONDS

    def _schedule(self, *, urgent: bool) -> None:
        assert self._loop is not None
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._urgent = urgent
        self._scheduled = self._loop.call_soon(self._flush) if urgent else self._loop.call_later(LINGER_SECONDS, self._flush)

    def _why_down(self, now: float) -> str:
        """Empty when events may be appended."""
        if self._closed:
            return "recorder client is closed"
        if self._events >= limits.EVENTS_UNACKNOWLEDGED_MAX or self._bytes >= UNACKNOWLEDGED_BYTES_MAX:
            return f"recorder is behind: {self._events} events are unacknowledged"
        if self._down_since is not None and now - self._down_since > GRACE_SECONDS:
            return f"recorder is down for {now - self._down_since:.1f} s: {self._trouble}"
        if self._events and now - self._oldest_at > GRACE_SECONDS:
            return f"recorder has not acknowledged an event for {now - self._oldest_at:.1f} s: {self._trouble or 'it does not answer'}"
        return ""

    def _oldest(self) -> Batch | None:
        for batch in self._sent.values():
            return batch
        return self._unsent[0] if self._unsent else None

    def _flush(self) -> None:
        self._filling = None
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        while self._unsent and self._sock is not None and len(self._out) < _OUT_BYTES_MAX:
            self._send(self._unsent.popleft())

    def _let_go(self) -> None:
        assert self._loop is not None
        held_back, self._held_back = self._held_back, []
        for call in held_back:
            self._loop.call_soon(call)

    def _send(self, batch: Batch) -> None:
        self._number += 1
        self._sent[self._number] = batch
        self._write(AppendEvents(batch.texts), self._number)

    def _settle(self, batch: Batch) -> None:
        self._events -= len(batch.texts)
        self._bytes -= batch.size
        if self._held_back and not self.behind:
            self._let_go()
        oldest = self._oldest()
        if oldest is not None:
            self._oldest_at = oldest.at
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    # The connection

    def _connect(self) -> None:
        assert self._loop is not None
        self._retry = None
        if self._closed:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)  # a local listener with room in its backlog answers at once
        except OSError as error:
            sock.close()
            self._disconnect(f"it is not reachable at {self._path}: {error.strerror}")
            return
        self._sock = sock
        self._framer = Framer(RECORDER)
        self._loop.add_reader(sock, self._readable)
        if self._watch is None:
            self._watch = self._loop.call_later(GRACE_SECONDS, self._look)
        self._out += self._framer.hello()
        if not self._unsent:
            self._down_since = None
        self._flush()
        self._push()

    def _disconnect(self, trouble: str) -> None:
        """What was sent and not acknowledged is sent again, first and in order."""
        if self._sock is not None and self._loop is not None:
            self._loop.remove_reader(self._sock)
            if self._writing:
                self._loop.remove_writer(self._sock)
            self._sock.close()
        self._sock, self._writing, self._filling = None, False, None
        self._out.clear()
        self._unsent.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(RecorderDown(f"recorder is down: {trouble}"))
        self._calls.clear()
        self._trouble = trouble
        if self._down_since is None:
            self._down_since = self._clock.monotonic()
        if self._loop is not None:
            self._let_go()  # to hear that it is down, should it stay so
        if not self._closed and self._loop is not None and self._retry is None:
            self._retry = self._loop.call_later(self._pause, self._connect)
            self._pause = min(self._pause * 2, _PAUSE_SECONDS_MAX)

    def _look(self) -> None:
        """A recorder that has hung is left: the next connection reaches the one that was started in its place."""
        assert self._loop is not None
        oldest = self._oldest()
        if self._sock is not None and oldest is not None and self._sent and self._clock.monotonic() - oldest.at > limits.CALL_SECONDS_MAX:
            for batch in self._sent.values():
                batch.at = self._clock.monotonic()
            self._oldest_at = oldest.at
            self._down_since = self._down_since or self._clock.monotonic() - limits.CALL_SECONDS_MAX
            self._disconnect(f"it did not answer within {limits.CALL_SECONDS_MAX:g} s")
        elif self._held_back and not self.healthy:
            self._let_go()
        self._watch = self._loop.call_later(GRACE_SECONDS, self._look)

    def _write(self, message: Message, number: int) -> None:
        self._out += self._framer.send("call", message, id=number)
        self._push()

    def _push(self) -> None:
        """Sends what the socket takes now; the rest when it takes more."""
        assert self._loop is not None
        if self._sock is None:
            return
        try:
            if self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._disconnect(f"the connection broke: {error.strerror}")
            return
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _writable(self) -> None:
        self._push()
        self._flush()

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                raise PeerError("it closed the connection")
            for frame in self._framer.receive(data):
                self._answered(frame)
        except BlockingIOError:
            return
        except OSError as error:
            self._disconnect(f"the connection broke: {error.strerror}")
        except PeerError as error:
            self._disconnect(str(error) if self._down_since is None else self._trouble)

    def _answered(self, frame: Frame) -> None:
        batch = self._sent.pop(frame.id, None)
        match frame.message:
            case Failure() as failure if batch is not None:
                self._failed(batch, failure)
            case EventsAppended(sequences=sequences) if batch is not None and len(sequences) == len(batch.texts):
                self._down_since, self._trouble, self._pause = None, "", _PAUSE_SECONDS_MIN
                for place, done in batch.waiting:
                    if not done.done():
                        done.set_result(sequences[place])
                self._settle(batch)
            case Failure() as failure if (waiting := self._calls.pop(frame.id, None)) is not None:
                if not waiting.done():
                    waiting.set_exception(raised(failure))
            case CheckpointTaken(note=note) if (waiting := self._calls.pop(frame.id, None)) is not None:
                if not waiting.done():
                    waiting.set_result(note)
            case other:
                raise PeerError(f"recorder answers with {type(other).__name__} what was not asked")

    def _failed(self, batch: Batch, failure: Failure) -> None:
        """The machine's fault: the recorder closes, and all is sent again in order until it is taken. Ours: the others of the message are written."""
        if failure.code == BackendError.code:
            self._sent = {0: batch, **self._sent}
            self._disconnect(failure.message)
        elif len(batch.texts) > 1:
            for single in batch.singly():
                self._send(single)
        else:
            error = raised(failure)
            if batch.waiting:
                ((_, done),) = batch.waiting
                if not done.done():
                    done.set_exception(error)
            elif self._refused is not None:
                self._refused(error)
            else:
                assert self._loop is not None
                self._loop.call_exception_handler({"message": "the recorder refused an event for good", "exception": error})
            self._settle(batch)

    @staticmethod
    async def _within(done: "asyncio.Future[_T]", seconds_max: float, what: str) -> "_T":
        try:
            return await asyncio.wait_for(done, seconds_max)
        except TimeoutError as error:
            raise RecorderDown(f"recorder is down: {what} within {seconds_max:g} s") from error
