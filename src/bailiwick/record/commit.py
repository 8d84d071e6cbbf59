"""Group commit: what several writers asked to append, checked one by one, and written in one transaction with the tree that holds it.

Memory follows the disk: a tree is taken over only after its commit, and after any failure it is read again. A database that failed is opened anew at
the next attempt, so that the recorder recovers by itself when space or the disk returns.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bailiwick.kernel.accounts import Role
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BailiwickError, Conflict, Forbidden
from bailiwick.record.event import KINDS, Event, decode
from bailiwick.record.leaf import assemble, disassemble
from bailiwick.record.merkle import CompactRange, leaf_hash
from bailiwick.record.repository import Duplicate, RecordWriter, Row, StoreError

_RUNS_REMEMBERED_MAX = 10_000

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Append:
    """Events of one writer that stand or fall together, and after `Committer.commit` what became of them."""

    events: Sequence[tuple[bytes, Event]]
    writers: Sequence[str]
    sequences: Sequence[int] = ()
    refused: BailiwickError | None = None


def admitted(texts: Sequence[str], roles: frozenset[Role]) -> tuple[list[tuple[bytes, Event]], frozenset[Role]]:
    """The events, and which of `roles` may have written all of them. CallerError for one that is no event, Forbidden for one that nobody of these
    roles may write."""
    events = []
    for text in texts:
        raw = text.encode()
        event = decode(raw)
        allowed = KINDS[event.kind].writers
        if not roles <= allowed:
            if roles.isdisjoint(allowed):
                raise Forbidden(f"event {event.kind} is written by {_names(allowed)}; this writer is {_names(roles)}")
            roles &= allowed
        events.append((raw, event))
    return events, roles


class Committer:
    """The record's only writer. `size` is the number of events that are committed."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._writer: RecordWriter | None = None
        self._tree = CompactRange()
        self._last_of_run: dict[str, int] = {}
        self.store()

    @property
    def size(self) -> int:
        return self._tree.size

    @property
    def root(self) -> bytes:
        return self._tree.root()

    def store(self) -> RecordWriter:
        """The open database, opened now if need be. Raises StoreError."""
        if self._writer is None:
            self._writer = RecordWriter.open(self._path)
            self._tree = self._writer.tree()
            self._last_of_run.clear()
        return self._writer

    def commit(self, appends: Sequence[Append]) -> None:
        """Writes all of them that can be, in order, or none; says on each what became of it. Never raises."""
        try:
            store = self.store()
            try:
                self._write(store, appends, None)
            except Duplicate:
                known = store.known([event.id for append in appends for _, event in append.events])
                self._write(store, appends, {id: (seq, bytes(disassemble(leaf).event)) for id, (seq, leaf) in known.items()})
        except StoreError as error:
            self._refuse_all(appends, error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours that one event brings out: nobody is told it was written, and the recorder goes on
            _log.exception("cannot commit")
            self._refuse_all(appends, error)

    def _refuse_all(self, appends: Sequence[Append], error: Exception) -> None:
        self.recover()
        for append in appends:
            append.sequences, append.refused = (), StoreError(f"nothing was appended: {error}")

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):  # it is given up whatever closing says
                self._writer.close()
            self._writer = None

    def recover(self) -> None:
        """After a failure: what is on the disk is what counts. What cannot even be read is opened anew at the next attempt."""
        self._last_of_run.clear()
        if self._writer is not None:
            try:
                self._tree = self._writer.tree()
            except StoreError:
                self.close()

    def _write(self, store: RecordWriter, appends: Sequence[Append], known: dict[str, tuple[int, bytes]] | None) -> None:
        received = timestamp(self._clock.now())
        tree, tiles, rows = self._tree.copy(), list[tuple[int, int, bytes]](), list[Row]()
        last_of_run: dict[str, int] = {}
        for append in appends:
            append.sequences, append.refused = [], None
            if known is not None and (clash := _clash(append, known)):
                append.refused = Conflict(f"event {clash} is in the record already, with other content; an event is never changed")
                continue
            for (raw, event), writer in zip(append.events, append.writers, strict=True):
                if known is not None and event.id in known:
                    append.sequences.append(known[event.id][0])
                    continue
                seq = tree.size + 1
                previous = None
                if event.run is not None:
                    previous = last_of_run.get(event.run)
                    if previous is None:
                        previous = self._previous(store, event.run)
                    last_of_run[event.run] = seq
                leaf = assemble(raw, previous=previous, received=received, seq=seq, writer=writer)
                hashed = leaf_hash(leaf)
                tree.append(hashed, tiles)
                rows.append(Row(seq, event, received, writer, leaf, hashed))
                append.sequences.append(seq)
                if known is not None:
                    known[event.id] = (seq, raw)
        if rows:
            store.append(rows, tiles, tree)
        self._tree = tree
        self._last_of_run.update(last_of_run)
        if len(self._last_of_run) > _RUNS_REMEMBERED_MAX:
            self._last_of_run.clear()

    def _previous(self, store: RecordWriter, run: str) -> int:
        found = self._last_of_run.get(run)
        return store.last_of_run(run) if found is None else found


def _clash(append: Append, known: dict[str, tuple[int, bytes]]) -> str | None:
    """An id that already stands for something else."""
    seen: dict[str, bytes] = {}
    for raw, event in append.events:
        if seen.setdefault(event.id, known[event.id][1] if event.id in known else raw) != raw:
            return event.id
    return None


def _names(roles: frozenset[Role]) -> str:
    return ", ".join(sorted(roles)) or "nobody"
