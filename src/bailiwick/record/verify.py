"""Offline verification of an export: with the file and a public key, without our service, database or network; one pass, bounded memory.

    (1) the header is ours and its checkpoint is signed by the key
    (2) each line is exactly what an exporter writes, and stands where its event says
    (3) each leaf has the hash beside it, and each event of a run names the one before it
    (4) at each checkpoint the tree so far has the signed root; at the end it is the header's
    (5) what the events say about each other: a call has an outcome, a run an end (findings: the record is whole, what it tells is not)

(3) names the very event that was changed. Whoever changed the hash with it is found at (4), which names the stretch since the checkpoint before.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from bailiwick.kernel.errors import BailiwickError, CallerError
from bailiwick.kernel.ids import RunId
from bailiwick.record.checkpoint import Checkpoint, NoteRefused, Verifier, verify_checkpoint
from bailiwick.record.event import Event, decode
from bailiwick.record.export_format import FORMAT, VERSION, Header, checkpoint_line, header_line, subtree_line
from bailiwick.record.leaf import LEAF_BYTES_MAX, disassemble
from bailiwick.record.merkle import CompactRange, leaf_hash

LINE_BYTES_MAX = LEAF_BYTES_MAX + 256
_FINDINGS_MAX = 1_000
_OPEN_ACTIONS_MAX = 1_000_000
_LEAF_LINE = re.compile(rb'\{"hash":"([0-9a-f]{64})","leaf":(\{.*\})\}\n', re.DOTALL)
_SUBTREE_LINE = re.compile(rb'\{"hash":"([0-9a-f]{64})","level":([0-9]{1,2})\}\n')


class Tampered(BailiwickError):
    """The export is not what was recorded. `sequence` is that of the first event that is wrong or missing; None when it is not about an event."""

    code = "tampered"

    def __init__(self, what: str, sequence: int | None = None) -> None:
        super().__init__(what if sequence is None else f"event {sequence}: {what}")
        self.what = what
        self.sequence = sequence


class Finding(msgspec.Struct, frozen=True):
    """The record is unchanged; this is what it lacks."""

    sequence: int
    what: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """`size` events are covered by the checkpoint, `events` of them stand in the export. `key` is the verifier and where it came from."""

    origin: str
    run: RunId | None
    size: int
    events: int
    root: str
    first_received: str
    last_received: str
    key: str
    pinned: bool
    checkpoints: int
    findings: list[Finding]


def verify_export(path: Path, verifier: str | None, *, kept: str | None = None) -> Verified:
    """Raises Tampered, or CallerError for a file that cannot be read or a `verifier` that is none.

    `verifier` is the public key (a C2SP vkey) from a place the export did not come from; None trusts the one in the export, which shows only that the
    file is consistent with itself, and the answer says so. `kept` is a checkpoint that was kept elsewhere: a record that was set back behind it, or
    rewritten before it, is found.
    """
    try:
        with path.open("rb") as file:
            return _Verification(file, Verifier.parse(verifier) if verifier is not None else None, kept).run()
    except OSError as error:
        raise CallerError(f"{path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Open:
    sequence: int
    verb: str
    why: str


class _Verification:
    def __init__(self, file: BinaryIO, verifier: Verifier | None, kept: str | None) -> None:
        self._file = file
        self._tree = CompactRange()
        self._header, self._key = self._read_header(verifier)
        self._signed = self._checked(self._header.checkpoint)
        self._kept = self._known(kept) if kept is not None else None
        self._proved = 0  # the size of the last checkpoint whose root was right
        self._checkpoints = 0
        self._events = 0
        self._pinned = verifier is not None
        self._received = ["", ""]
        self._last_of_run = 0
        self._ended = False
        self._open: dict[str, _Open] = {}
        self._findings: list[Finding] = []
        if self._signed.size != self._header.size:
            raise Tampered(f"the header says {self._header.size} events, its checkpoint {self._signed.size}")
        if self._kept is not None and self._kept.size > self._signed.size:
            raise Tampered(f"the export ends with event {self._signed.size}; a checkpoint over {self._kept.size} was kept", self._signed.size + 1)

    def run(self) -> Verified:
        for line in self._lines():
            if match := _LEAF_LINE.fullmatch(line):
                self._leaf(match[1].decode(), match[2])
            elif match := _SUBTREE_LINE.fullmatch(line):
                self._subtree(bytes.fromhex(match[1].decode()), int(match[2]), line)
            else:
                self._checkpoint(line)
            self._compare_kept()
        if self._tree.size < self._signed.size:
            raise Tampered(f"is missing, with all after it: the export ends here, its checkpoint covers {self._signed.size}", self._tree.size + 1)
        self._compare(self._signed)
        self._conclude()
        return Verified(
            origin=self._signed.origin,
            run=self._header.run,
            size=self._signed.size,
            events=self._events,
            root=self._signed.root.hex(),
            first_received=self._received[0],
            last_received=self._received[1],
            key=str(self._key) if self._pinned else f"{self._key} (from the export itself, unpinned)",
            pinned=self._pinned,
            checkpoints=self._checkpoints,
            findings=self._findings,
        )

    # (1)
    def _read_header(self, verifier: Verifier | None) -> tuple[Header, Verifier]:
        line = self._file.readline(LINE_BYTES_MAX)
        try:
            header = msgspec.json.decode(line, type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Tampered(f"the first line is not the header of an export: {error}") from error
        if header.format != FORMAT or header.version != VERSION:
            raise Tampered(f"the header says {header.format[:40]!r} version {header.version}; must be {FORMAT!r} version {VERSION}")
        if header_line(header) != line:
            raise Tampered("the header is not written as an exporter writes it")
        try:
            claimed = Verifier.parse(header.verifier)
        except CallerError as error:
            raise Tampered(f"the header's key: {error}") from error
        if verifier is not None and claimed != verifier:
            raise Tampered(f"the header names the key {claimed}; the key to verify with is {verifier}")
        if str(claimed) != header.verifier:
            raise Tampered("the header's key is not written as an exporter writes it")
        return header, claimed

    def _checked(self, note: str) -> Checkpoint:
        try:
            return verify_checkpoint(note, self._key)
        except NoteRefused as error:
            raise Tampered(f"a checkpoint is not what {self._key.name} signed: {error}") from error

    # (2)
    def _lines(self) -> Iterator[bytes]:
        while line := self._file.readline(LINE_BYTES_MAX + 1):
            if not line.endswith(b"\n") or len(line) > LINE_BYTES_MAX:
                raise Tampered("its line is cut off or too long", self._tree.size + 1)
            yield line

    # (3)
    def _leaf(self, hashed: str, raw: bytes) -> None:
        sequence = self._tree.size + 1
        if sequence > self._signed.size:
            raise Tampered(f"it stands after the last event that is signed, {self._signed.size}", sequence)
        actual = leaf_hash(raw)
        if actual.hex() != hashed:
            raise Tampered("its content does not have the hash that stands beside it", sequence)
        try:
            leaf = disassemble(raw)
            event = decode(bytes(leaf.event))
        except CallerError as error:
            raise Tampered(f"it is not as a recorder writes it: {error}", sequence) from error
        if (leaf.previous is None) != (event.run is None):
            raise Tampered("it does not say which event of its run came before, or is of no run and does", sequence)
        if self._header.run is not None:
            if event.run != self._header.run:
                raise Tampered(f"it is of run {event.run}; the export is of {self._header.run}", sequence)
            if leaf.previous != self._last_of_run:
                raise Tampered(f"it is of the run, and missing: event {leaf.seq} names it as the one before", leaf.previous or sequence)
            self._last_of_run = sequence
        if leaf.seq != sequence:
            raise Tampered(f"event {leaf.seq} stands in its place: events are missing or in another order", sequence)
        self._tree.append(actual)
        self._events += 1
        self._received = [self._received[0] or leaf.received, leaf.received]
        self._relate(sequence, event)

    def _subtree(self, root: bytes, level: int, line: bytes) -> None:
        start = self._tree.size
        if self._header.run is None:
            raise Tampered("it is hidden; an export of the whole record shows every event", start + 1)
        if line != subtree_line(root.hex(), level) or start + (1 << level) > self._signed.size:
            raise Tampered("what is hidden here is not as an exporter hides it", start + 1)
        try:
            self._tree.append_subtree(level, root)
        except ValueError as error:
            raise Tampered(str(error), start + 1) from error

    # (4)
    def _checkpoint(self, line: bytes) -> None:
        try:
            note = msgspec.json.decode(line, type=dict[str, str])["checkpoint"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
            raise Tampered("its line is none that an exporter writes", self._tree.size + 1) from error
        if checkpoint_line(note) != line:
            raise Tampered("a checkpoint is not written as an exporter writes it", self._tree.size + 1)
        checkpoint = self._checked(note)
        if checkpoint.size != self._tree.size:
            raise Tampered(f"the checkpoint over {checkpoint.size} events stands after {self._tree.size}", min(checkpoint.size, self._tree.size) + 1)
        if checkpoint.size == self._proved:
            raise Tampered(f"the checkpoint over {checkpoint.size} events stands there twice")
        self._compare(checkpoint)
        self._checkpoints += 1

    def _compare(self, checkpoint: Checkpoint) -> None:
        if checkpoint.size != self._tree.size or checkpoint.root != self._tree.root():
            first = self._proved + 1
            which = "it was" if first == checkpoint.size else f"it or one of those up to {checkpoint.size} was"
            raise Tampered(f"{which} changed: the tree of {self._tree.size} events does not have the signed root", first)
        self._proved = checkpoint.size

    def _known(self, kept: str) -> Checkpoint:
        """The checkpoint that was kept elsewhere. One that does not hold is the caller's fault, not the export's."""
        try:
            return self._checked(kept)
        except Tampered as error:
            raise CallerError(f"the kept checkpoint is not one of this record: {error.what}; give the note exactly as it was kept") from error

    def _compare_kept(self) -> None:
        if self._kept is not None and self._kept.size == self._tree.size:
            if self._kept.root != self._tree.root():
                raise Tampered(f"it or one of those up to {self._kept.size} is not what was recorded when the kept checkpoint was signed", self._proved + 1)
            self._kept = None

    # (5)
    def _relate(self, sequence: int, event: Event) -> None:
        if event.kind == "run.ended":
            self._ended = True
        if event.action is None:
            return
        if event.kind == "action.decided" and len(self._open) < _OPEN_ACTIONS_MAX:
            observed = event.body.get("observed") is True  # then it went, whatever was decided
            if event.decision == "allow" or observed:
                self._open[event.action] = _Open(sequence, event.verb or "action", "only observed" if observed else "allowed")
        elif event.kind == "action.finished":
            self._open.pop(event.action, None)

    def _conclude(self) -> None:
        for action, opened in list(self._open.items())[:_FINDINGS_MAX]:
            self._findings.append(Finding(opened.sequence, f"{opened.verb} {action} was {opened.why} and has no outcome on file"))
        if len(self._open) > _FINDINGS_MAX:
            self._findings.append(Finding(0, f"{len(self._open) - _FINDINGS_MAX} more actions have no outcome on file"))
        if self._header.run is not None and not self._ended:
            self._findings.append(Finding(self._last_of_run, "the run has no run.ended in this export: it was not over yet, or later events are not shown"))
        if self._kept is not None:
            self._findings.append(Finding(0, f"the kept checkpoint over {self._kept.size} events lies in a stretch that is hidden; use an export of all runs"))
