"""What is read from the record, and that what was damaged is not."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.record.commit import Append, Committer
from bailiwick.record.event import Event, encode
from bailiwick.record.merkle import leaf_hash, verify_consistency, verify_inclusion
from bailiwick.record.repository import FILE, RecordReader, RecordWriter, RunUsage, StoreError

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    committer = Committer(tmp_path / FILE, SystemClock())
    count = 0

    def written(*events: dict[str, Any]) -> None:
        nonlocal count
        made = [Event(id=f"e{count + number}", time="t", **{"kind": "action.decided", **fields}) for number, fields in enumerate(events)]  # type: ignore[arg-type]
        count += len(made)
        append = Append([(encode(event), event) for event in made], ["gateway-0"] * len(made))
        committer.commit([append])
        assert append.refused is None

    yield written
    committer.close()


@pytest.fixture
def reader(tmp_path: Path, write: Write) -> Iterator[RecordReader]:
    reader = RecordReader.open(tmp_path / FILE)
    yield reader
    reader.close()


def test_events_are_found_by_what_was_asked(reader: RecordReader, write: Write) -> None:
    """By run, by kinds, by credential, after and before a number, oldest or newest first, at most so many."""
    kinds = ["run.output", "action.decided", "name.asked"]
    write(*[{"run": f"run-{number % 2}", "kind": kinds[number % 3], "credential": "token" if number in (4, 9) else None} for number in range(12)])

    def found(*arguments: Any, **named: Any) -> list[int]:
        return [each.sequence for each in reader.events(*arguments, **named)]

    assert found() == list(range(1, 13))
    assert found(after=3, before=6) == [4, 5]
    assert found(newest_first=True, limit=2) == [12, 11]
    assert found(RunId("run-1")) == [2, 4, 6, 8, 10, 12]
    assert found(RunId("run-1"), kinds=["run.output"], newest_first=True) == [10, 4]
    assert found(kinds=["run.output", "name.asked"]) == [1, 3, 4, 6, 7, 9, 10, 12]
    assert found(kinds=["run.output", "name.asked"], newest_first=True, limit=3, before=12) == [10, 9, 7]
    assert found(kinds=[]) == found(RunId("run-x")) == found(limit=-1) == []
    assert [each.sequence for each in reader.events_of_credential("token")] == [5, 10]
    one = reader.event(5)
    assert (one.writer, one.event.credential, one.event.run) == ("gateway-0", "token", "run-0")
    with pytest.raises(NotFound):
        reader.event(13)


def test_usage_counts_actions_once(reader: RecordReader, write: Write) -> None:
    """A held action that is released is one call; a denied one none; what ended in observe mode was forwarded, whatever was decided."""
    run = {"run": "run-1"}
    write(
        {**run, "action": "a", "verb": "write", "decision": "hold"},
        {**run, "action": "a", "verb": "write", "decision": "allow"},
        {**run, "action": "a", "kind": "action.finished"},
        {**run, "action": "b", "verb": "call-model", "decision": "allow"},
        {**run, "action": "b", "kind": "action.finished", "input_tokens": 10, "output_tokens": 5, "cost_microusd": 7, "body": {"request_bytes": 2**40}},
        {**run, "action": "c", "verb": "delete", "decision": "deny"},
        {**run, "action": "d", "verb": "send", "decision": "deny"},
        {**run, "action": "d", "verb": "send", "kind": "action.finished", "body": {"request_bytes": 3, "result": "\u00fc"}},
        {**run, "action": "e", "verb": "send", "decision": "hold"},
        {"run": "run-2", "action": "f", "verb": "write", "decision": "allow"},
        {"run": "run-2", "action": "f", "kind": "action.finished", "body": {"request_bytes": 5}},
    )
    assert reader.usage(RunId("run-1")) == RunUsage(calls=3, writes=2, tokens=15, microusd=7, egress_bytes=2**40 + 3, held=2, denied=2)
    assert reader.usage(RunId("run-x")) == RunUsage(calls=0, writes=0, tokens=0, microusd=0, egress_bytes=0, held=0, denied=0)


def test_proofs_come_from_the_stored_tiles(reader: RecordReader, write: Write) -> None:
    """Across a tile's edge: every event can be proved, and every head against an earlier one."""
    for _ in range(7):
        write(*[{"run": "run-1"}] * 101)
    size, root = reader.head().size, bytes.fromhex(reader.head().root)
    assert size == 707
    assert reader.root(size) == root
    for sequence in (1, 255, 256, 257, 512, 513, 707):
        verify_inclusion(leaf_hash(reader.event(sequence).leaf), sequence - 1, size, reader.inclusion(sequence, size), root)
    for first in (1, 256, 300, 512, 706, 707):
        verify_consistency(first, size, reader.consistency(first, size), reader.root(first), root)
    assert len(list(reader.leaf_hashes(200, 600))) == 401


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("DROP TRIGGER events_never_go; DELETE FROM events WHERE seq = 3", "tree has 3 leaves and the last event is 2"),
        ("UPDATE tree SET size = 2", "roots of 32 bytes"),
        ("UPDATE tree SET hashes = x'00'", "damaged"),
        ("PRAGMA user_version = 99", "install the version"),
    ],
)
def test_a_damaged_record_is_not_written_to(damage: str, what: str, tmp_path: Path, write: Write) -> None:
    """A record whose tree and events do not fit together, or that a newer version wrote, is refused at the start."""
    write({}, {}, {})
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript(damage)
    connection.close()
    with pytest.raises(StoreError, match=what):
        RecordWriter.open(tmp_path / FILE)


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET leaf = x'' WHERE seq = 1", "DELETE FROM events", "INSERT OR REPLACE INTO events SELECT * FROM events"]
)
def test_the_database_itself_refuses_changes(statement: str, tmp_path: Path, write: Write) -> None:
    """Not even SQL changes or removes an event without taking the triggers away first."""
    write({}, {})
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA recursive_triggers = ON")
    with pytest.raises(sqlite3.IntegrityError, match="an event is never"):
        connection.execute(statement)
    connection.close()


def test_a_missing_hash_is_damage(tmp_path: Path, write: Write, reader: RecordReader) -> None:
    """A proof is never made from what is not there."""
    write({}, {}, {})
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript("DROP TRIGGER events_never_go; DELETE FROM events WHERE seq = 2")
    connection.close()
    with pytest.raises(StoreError, match="damaged"):
        reader.root(3)
