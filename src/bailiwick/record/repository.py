"""The record's tables: the recorder's only way to write them, and everybody's way to read them.

`RecordWriter` is for the recorder process. `RecordReader` is a read-only connection: the governor's uid reads while the recorder writes.
"""

import contextlib
import heapq
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bailiwick.kernel.errors import NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.record.event import Event
from bailiwick.record.leaf import Leaf, disassemble
from bailiwick.record.merkle import TILE_LEVELS, CompactRange, consistency_proof, inclusion_proof, node_hash, root_of
from bailiwick.record.messages import RecordHead
from bailiwick.store.connection import open_reader, open_writer, transaction, translated
from bailiwick.store.errors import StoreError
from bailiwick.store.queries import load

ROOM = "bailiwick.record"
FILE = "record.db"
EVENTS_MAX = 10_000  # of one answer
_SEQUENCE_MAX = 2**63 - 1
_CHUNK = 1_000
_WAL_PAGES = 4_000  # 16 MiB; at 1,000 commits/s SQLite's default of 1,000 pages would be reached seven times a second

_events = msgspec.json.Decoder(Event)


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it stands in the record."""

    sequence: int
    received: str
    writer: str
    event: Event
    leaf: bytes


class RunUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has used, by the record. Calls and writes are actions that were forwarded; money is in millionths of a US dollar;
    `egress_bytes` are those of requests, heads and bodies, whose outcome is on file."""

    calls: int
    writes: int
    tokens: int
    microusd: int
    egress_bytes: int
    held: int
    denied: int


class StoredCheckpoint(msgspec.Struct, frozen=True):
    size: int
    note: str


class Row(msgspec.Struct, frozen=True):
    """What is written of one event, in the order of `append_event`."""

    seq: int
    event: Event
    received: str
    writer: str
    leaf: bytes
    hash: bytes

    def columns(self) -> tuple[Any, ...]:
        event = self.event
        spent = event.input_tokens, event.output_tokens
        tokens = None if spent == (None, None) else (spent[0] or 0) + (spent[1] or 0)
        return (
            self.seq, event.id, self.received, event.time, self.writer, event.kind, event.run, event.agent, event.action, event.verb, event.resource,
            event.decision, event.credential, event.model, tokens, event.cost_microusd, self.leaf, self.hash,
        )  # fmt: skip


class _Tables:
    """What writer and reader both read."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._query = load(ROOM)

    def close(self) -> None:
        self._connection.close()

    def _all(self, name: str, parameters: Any = ()) -> list[Any]:
        with translated(self._path):
            return self._connection.execute(self._query[name], parameters).fetchall()

    def _one(self, name: str, parameters: Any = ()) -> Any:
        rows = self._all(name, parameters)
        return rows[0] if rows else None

    def tree(self) -> CompactRange:
        size, hashes = self._one("tree")
        try:
            return CompactRange.of_bytes(size, hashes)
        except ValueError as error:
            raise StoreError(f"{self._path}: {error}: it is damaged") from error

    def leaves(self, first: int, *, limit: int, bytes_max: int) -> list[bytes]:
        """Leaves from sequence number `first` on: at most `limit`, and no more than one beyond `bytes_max`."""
        found, size = [], 0
        with translated(self._path), contextlib.closing(self._connection.execute(self._query["leaves"], (first, limit))) as rows:
            for _seq, leaf in rows:
                found.append(leaf)
                size += len(leaf)
                if size >= bytes_max:
                    break
        return found

    def consistency(self, first: int, second: int) -> list[bytes]:
        return consistency_proof(first, second, self.node) if first else []

    def node(self, level: int, index: int) -> bytes:
        """The root over 2**level leaves, from the stored tile level below it."""
        stored = level - level % TILE_LEVELS
        first = index << (level - stored)
        last = ((index + 1) << (level - stored)) - 1
        hashes = [row[0] for row in (self._all("tiles", (stored, first, last)) if stored else self._all("hashes", (first + 1, last + 1)))]
        if len(hashes) != last - first + 1:
            raise StoreError(f"{self._path}: tree level {stored} has {len(hashes)} hashes from {first} to {last}; must be {last - first + 1}: it is damaged")
        while len(hashes) > 1:
            hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
        return bytes(hashes[0])

    def last_checkpoint(self) -> StoredCheckpoint | None:
        row = self._one("last_checkpoint")
        return StoredCheckpoint(*row) if row else None


class RecordWriter(_Tables):
    """Raises StoreError for whatever the machine refuses; what was asked is then not written, in no part."""

    @classmethod
    def open(cls, path: Path) -> "RecordWriter":
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cls(open_writer(path, ROOM, wal_pages=_WAL_PAGES), path)
        try:
            size, (last,) = writer.tree().size, writer._one("last_sequence")
            if size != last:
                raise StoreError(f"{path}: the tree has {size} leaves and the last event is {last}; they must be the same: it is damaged")
        except BaseException:
            writer.close()
            raise
        return writer

    def append(self, rows: Sequence[Row], tiles: Sequence[tuple[int, int, bytes]], tree: CompactRange) -> None:
        """`tree` is the tree after these rows. Durable when it returns. Duplicate says that an event's id is there already."""
        with transaction(self._connection):
            try:
                self._connection.executemany(self._query["append_event"], [row.columns() for row in rows])
            except sqlite3.IntegrityError as error:
                if "events.id" not in str(error):
                    raise
                raise Duplicate(str(error)) from error
            if tiles:
                self._connection.executemany(self._query["append_tile"], tiles)
            moved = self._connection.execute(self._query["move_tree"], {"size": tree.size, "hashes": bytes(tree), "before": tree.size - len(rows)})
            if moved.rowcount != 1:
                raise StoreError(f"{self._path}: the tree is not of {tree.size - len(rows)} leaves; somebody else writes this record")

    def append_checkpoint(self, size: int, note: str, *, time: str) -> None:
        with transaction(self._connection):
            self._connection.execute(self._query["append_checkpoint"], {"size": size, "time": time, "note": note})

    def append_verifier(self, verifier: str, *, since: str) -> None:
        with transaction(self._connection):
            self._connection.execute(self._query["append_verifier"], {"verifier": verifier, "since": since})

    def known(self, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Sequence number and leaf of those that are in the record."""
        return {id: (seq, leaf) for id, seq, leaf in self._all("known_ids", (msgspec.json.encode(list(ids)).decode(),))}

    def last_of_run(self, run: str) -> int:
        return int(self._one("last_of_run", (run,))[0])


class Duplicate(StoreError):
    """An event's id is in the record already."""


class RecordReader(_Tables):
    """Raises StoreError when the record cannot be read. Each call is one short read: a reader holds no transaction open."""

    @classmethod
    def open(cls, path: Path) -> "RecordReader":
        return cls(open_reader(path, ROOM), path)

    def head(self) -> RecordHead:
        tree = self.tree()
        return RecordHead(tree.size, tree.root().hex())

    def event(self, sequence: int) -> Recorded:
        row = self._one("event", (sequence,))
        if row is None:
            raise NotFound(f"event {sequence} is not in the record")
        return _recorded(row)

    def events(
        self,
        run: RunId | None = None,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1_000,
        kinds: Sequence[str] | None = None,
        newest_first: bool = False,
    ) -> list[Recorded]:
        """Events with `after` < sequence < `before`, at most `limit` (and EVENTS_MAX)."""
        bounds = {"after": after, "before": _SEQUENCE_MAX if before is None else before, "limit": max(0, min(limit, EVENTS_MAX))}
        order = "_newest" if newest_first else ""
        if run is not None:
            listed = None if kinds is None else msgspec.json.encode(list(kinds)).decode()
            rows = self._all("events_of_run" + order, {"run": run, "kinds": listed, **bounds})
        elif kinds is not None:  # each kind in the order of its index, merged: sorting all of them would read all of them
            parts = [self._all("events_of_kind" + order, {"kind": kind, **bounds}) for kind in sorted(set(kinds))]
            rows = list(itertools.islice(heapq.merge(*parts, key=lambda row: row[0], reverse=newest_first), bounds["limit"]))
        else:
            rows = self._all("events" + order, bounds)
        return [_recorded(row) for row in rows]

    def events_of_credential(self, credential: str, *, after: int = 0, limit: int = 1_000) -> list[Recorded]:
        bounds = {"after": after, "before": _SEQUENCE_MAX, "limit": max(0, min(limit, EVENTS_MAX))}
        return [_recorded(row) for row in self._all("events_of_credential", {"credential": credential, **bounds})]

    def usage(self, run: RunId) -> RunUsage:
        calls, writes, tokens, microusd, egress_bytes, held, denied = self._one("usage", (run,))
        return RunUsage(calls=calls, writes=writes, tokens=tokens, microusd=microusd, egress_bytes=egress_bytes, held=held, denied=denied)

    def run_sequences(self, run: RunId, *, upto: int) -> Iterator[int]:
        """The sequence numbers of the run's events up to `upto`, in order."""
        after = 0
        while rows := self._all("run_sequences", (run, after, upto, _CHUNK)):
            for (seq,) in rows:
                yield seq
            after = rows[-1][0]

    def leaf_hashes(self, first: int, last: int) -> Iterator[bytes]:
        """Leaf hashes of the events `first` to `last`, in order."""
        while first <= last:
            rows = self._all("hashes", (first, min(last, first + _CHUNK - 1)))
            if not rows:
                return
            for (hash_,) in rows:
                yield hash_
            first += len(rows)

    def hashed_leaves(self, first: int, last: int) -> list[tuple[bytes, bytes]]:
        """Leaf hash and leaf of the events `first` to `last`, in order."""
        return self._all("hashed_leaves", (first, last))

    def inclusion(self, sequence: int, size: int) -> list[bytes]:
        """The proof that event `sequence` stands in the tree of the first `size` events."""
        return inclusion_proof(sequence - 1, size, self.node)

    def root(self, size: int) -> bytes:
        """The root of the tree of the first `size` events."""
        return root_of(size, self.node)

    def checkpoint_covering(self, sequence: int) -> StoredCheckpoint | None:
        """The first signed tree head that covers this event; None when none does yet."""
        row = self._one("checkpoint_covering", (sequence,))
        return StoredCheckpoint(*row) if row else None

    def verifiers(self) -> list[str]:
        """The keys (C2SP vkeys) that signed checkpoints of this record, the newest last."""
        return [verifier for (verifier,) in self._all("verifiers")]


def _recorded(row: tuple[int, bytes]) -> Recorded:
    sequence, raw = row
    leaf: Leaf = disassemble(raw)
    return Recorded(sequence=sequence, received=leaf.received, writer=leaf.writer, event=_events.decode(leaf.event), leaf=raw)


__all__ = ["Duplicate", "RecordReader", "RecordWriter", "Recorded", "Row", "RunUsage", "StoreError", "StoredCheckpoint"]
