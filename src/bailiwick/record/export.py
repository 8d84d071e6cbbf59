"""Writes an export (`record.export_format` says what it is and what it proves) from the record's database."""

import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from bailiwick.kernel.errors import CallerError, Conflict, NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.record.export_format import Header, checkpoint_line, header_line, leaf_line, subtree_line
from bailiwick.record.merkle import subtrees
from bailiwick.record.repository import RecordReader, StoredCheckpoint

_CHUNK = 500


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: the signed size, and how many events stand in it in full."""

    size: int
    events: int
    verifier: str


def export(record: RecordReader, path: Path, *, run: RunId | None = None) -> Exported:
    """Everything up to the last checkpoint; ask the recorder for one (TakeCheckpoint) to have the newest events in it. The file appears whole or not at
    all, readable by its owner. Conflict when nothing is signed yet, NotFound for a run of which nothing is signed, CallerError when the file cannot
    be written."""
    last, verifiers = record.last_checkpoint(), record.verifiers()
    if last is None or not verifiers:
        raise Conflict("no checkpoint is signed yet, so nothing can be proved; is the broker up?")
    header = Header(run=run, size=last.size, verifier=verifiers[-1], checkpoint=last.note)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header_line(header))
                events = _write_all(record, file, last) if run is None else _write_run(record, file, last, run)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CallerError(f"export cannot be written to {path}: {error.strerror}") from error
    return Exported(size=last.size, events=events, verifier=header.verifier)


def _write_all(record: RecordReader, file: BinaryIO, last: StoredCheckpoint) -> int:
    written, due = 0, record.checkpoint_covering(1)
    while written < last.size:
        for hashed, leaf in record.hashed_leaves(written + 1, min(last.size, written + _CHUNK)):
            file.write(leaf_line(hashed.hex(), leaf))
            written += 1
            if due is not None and written == due.size:
                file.write(checkpoint_line(due.note))
                due = record.checkpoint_covering(written + 1)
    return written


def _write_run(record: RecordReader, file: BinaryIO, last: StoredCheckpoint, run: RunId) -> int:
    """The run's events, and after each stretch of them the first checkpoint that covers it: a change is then found between two of these."""
    written = events = 0
    due: StoredCheckpoint | None = None
    for sequence in record.run_sequences(run, upto=last.size):
        if due is not None and sequence > due.size:
            _hide(record, file, written, due.size)
            file.write(checkpoint_line(due.note))
            written, due = due.size, None
        _hide(record, file, written, sequence - 1)
        for hashed, leaf in record.hashed_leaves(sequence, sequence):
            file.write(leaf_line(hashed.hex(), leaf))
        written = sequence
        events += 1
        due = due or record.checkpoint_covering(sequence)
    if not events:
        raise NotFound(f"run {run!r} has no event in the signed record; see `bailiwick ps --all`, or wait for the next checkpoint")
    if due is not None and due.size < last.size:
        _hide(record, file, written, due.size)
        file.write(checkpoint_line(due.note))
        written = due.size
    _hide(record, file, written, last.size)
    file.write(checkpoint_line(last.note))
    return events


def _hide(record: RecordReader, file: BinaryIO, start: int, end: int) -> None:
    for level, index in subtrees(start, end):
        file.write(subtree_line(record.node(level, index).hex(), level))
