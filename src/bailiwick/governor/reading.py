"""The record as the governor reads it: by a connection that can write nothing, woken by the recorder when something new is committed."""

import itertools
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from bailiwick.critic.enforcement import Usage
from bailiwick.governor.links import Link
from bailiwick.governor.views import RecordedEvent
from bailiwick.kernel.channel import Channel, Received, Reply
from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.kernel.ids import RunId
from bailiwick.kernel.layout import Layout
from bailiwick.record.export import export
from bailiwick.record.messages import EventsCommitted, SubscribeEvents, TakeCheckpoint
from bailiwick.record.repository import EVENTS_MAX, FILE, RecordReader


class Reading:
    def __init__(self, layout: Layout) -> None:
        self._path = layout.record / FILE
        self._open: RecordReader | None = None
        self._newest = 0
        self._news = anyio.Event()
        self._exports = itertools.count()

    def _reader(self) -> RecordReader:
        if self._open is None:
            self._open = RecordReader.open(self._path)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    async def subscribe(self, recording: Link) -> None:
        """From what stands there now: what is older is read from the tables when somebody asks."""
        self._newest = max(self._newest, self.head()[0])
        await recording.call_now(SubscribeEvents(sequence=self._newest + 1))

    async def heard(self, _channel: Channel, received: Received) -> Reply | None:
        if not isinstance(received.message, EventsCommitted):
            raise CallerError(f"recorder sent {type(received.message).__name__}; only EventsCommitted is expected")
        self._newest = max(self._newest, received.message.first + len(received.message.leaves) - 1)
        self._news.set()
        self._news = anyio.Event()
        return None

    async def take_checkpoint(self, recording: Link) -> None:
        await recording.call(TakeCheckpoint())

    async def wait_newer(self, after: int, seconds_max: float) -> int:
        """The newest sequence number, as soon as it is greater than `after`, or when the time is up."""
        with anyio.move_on_after(seconds_max):
            while self._newest <= after:
                await self._news.wait()
        return self._newest

    def events(self, *, run: RunId | None, after: int, limit: int, kinds: Sequence[str] | None) -> list[RecordedEvent]:
        found = self._reader().events(run, after=after, limit=limit, kinds=kinds)
        return [RecordedEvent(sequence=each.sequence, received=each.received, writer=each.writer, event=msgspec.to_builtins(each.event)) for each in found]

    def head(self) -> tuple[int, str]:
        head = self._reader().head()
        return head.size, head.root

    def usage(self, run: str) -> Usage:
        found = self._reader().usage(RunId(run))
        return Usage(calls=found.calls, writes=found.writes, tokens=found.tokens, microusd=found.microusd, egress_bytes=found.egress_bytes)

    def leases(self, run: str) -> dict[str, str]:
        """What the run was lent: lease id and expiry, in the order they were first granted."""
        granted = self._reader().events(RunId(run), kinds=["lease.granted"])
        return {str(each.event.body["lease"]): str(each.event.body["expires"]) for each in granted}

    def names(self, run: str) -> list[str]:
        """The names the run was given addresses for, in the order of those: a worker that was started anew goes on answering as the last one did."""
        asked = {
            IPv4Address(each.event.body["address"]): each.event.resource for each in self._reader().events(RunId(run), kinds=["name.asked"], limit=EVENTS_MAX)
        }
        return [name for _, name in sorted(asked.items()) if name is not None]

    def refusals(self, run: str) -> tuple[int, int]:
        """Actions held, and actions denied."""
        found = self._reader().usage(RunId(run))
        return found.held, found.denied

    def key(self) -> str:
        verifiers = self._reader().verifiers()
        if not verifiers:
            raise BackendError("no checkpoint has been signed yet; the first is within a second of the first event")
        return verifiers[-1]

    async def export(self, run: RunId | None, directory: Path, recording: Link) -> Path:
        """A new file, the caller's to remove; everything up to a checkpoint taken now."""
        await self.take_checkpoint(recording)
        directory.mkdir(mode=0o700, exist_ok=True)
        target = directory / f"{run or 'record'}-{next(self._exports)}.export"
        await anyio.to_thread.run_sync(self._export, target, run)
        return target

    def _export(self, target: Path, run: RunId | None) -> None:
        reader = RecordReader.open(self._path)
        try:
            export(reader, target, run=run)
        finally:
            reader.close()
