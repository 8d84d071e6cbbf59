"""Whatever is changed in an export is found, and named."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bailiwick.kernel.accounts import Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import CallerError, Conflict, NotFound
from bailiwick.record.checkpoint import Checkpoint, NoteSigner
from bailiwick.record.commit import Append, Committer
from bailiwick.record.event import KINDS, Event, Verdict, encode
from bailiwick.record.export import export
from bailiwick.record.export_format import checkpoint_line, leaf_line
from bailiwick.record.leaf import assemble, disassemble
from bailiwick.record.merkle import CompactRange, leaf_hash
from bailiwick.record.repository import RecordReader
from bailiwick.record.verify import Tampered, Verified, verify_export

SIGNER = NoteSigner("example.org/record", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
KEY = str(SIGNER.verifier)
FIELDS: dict[str, Any] = {
    "agent": "deployer", "action": "a-1", "verb": "write", "resource": "https://config.internal/v1", "decision": "allow", "credential": "token",
    "model": "gpt", "input_tokens": 1, "output_tokens": 2, "cost_microusd": 3,
}  # fmt: skip


class Made(NamedTuple):
    path: Path
    reader: RecordReader
    whole: bytes
    run: bytes


def append(committer: Committer, events: list[Event]) -> None:
    item = Append([(encode(event), event) for event in events], ["gateway-0"] * len(events))
    committer.commit([item])
    assert item.refused is None
    note = SIGNER.sign(Checkpoint(SIGNER.name, committer.size, committer.root).text())
    committer.store().append_checkpoint(committer.size, note, time="2026-01-01T00:00:00.000000Z")
    committer.store().append_verifier(KEY, since="2026-01-01T00:00:00.000000Z")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A record of every kind with every field, two runs and the installation taking turns, a checkpoint now and then."""
    path = tmp_path_factory.mktemp("record")
    committer = Committer(path / "record.db", SystemClock())
    kinds = sorted(KINDS)
    events = [
        Event(id=f"e{number}", kind=kind, time="2026-01-01T00:00:00.000000Z", run=[None, "run-a", "run-b"][number % 3], body={"n": [number, "ü\n"]}, **FIELDS)  # type: ignore[arg-type, list-item]
        for number, kind in enumerate(kinds)
    ]
    for some in (events[:5], events[5:20], events[20:21], events[21:]):
        append(committer, some)
    reader = RecordReader.open(path / "record.db")
    for name, run in (("whole", None), ("run", "run-a")):
        export(reader, path / name, run=run)  # type: ignore[arg-type]
    committer.close()
    yield Made(path, reader, (path / "whole").read_bytes(), (path / "run").read_bytes())
    reader.close()


def verify(made: Made, raw: bytes, **arguments: Any) -> Verified:
    file = made.path / "changed"
    file.write_bytes(raw)
    return verify_export(file, arguments.pop("verifier", KEY), **arguments)


def test_an_untouched_export_verifies(made: Made) -> None:
    """Both scopes; the same record makes the same bytes."""
    size = len(KINDS)
    whole, run = verify(made, made.whole), verify(made, made.run)
    assert (whole.size, whole.events, whole.checkpoints) == (size, size, 4)
    assert (run.size, run.events) == (size, len(range(1, size, 3)))
    assert whole.pinned
    assert b"run-b" not in made.run
    export(made.reader, made.path / "again")
    assert (made.path / "again").read_bytes() == made.whole
    assert [path.name for path in made.path.iterdir() if "part" in path.name] == []


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(made: Made, data: st.DataObject) -> None:
    """One byte changed, added or removed anywhere in an export of either scope: Tampered."""
    original = data.draw(st.sampled_from([made.whole, made.run]))
    raw = bytearray(original)
    place = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["change", "change", "add", "remove"])):
        case "change":
            raw[place] ^= data.draw(st.integers(1, 255))
        case "add":
            raw.insert(place, data.draw(st.integers(0, 255)))
        case _:
            del raw[place]
    if bytes(raw) == original:
        return
    with pytest.raises(Tampered):
        verify(made, bytes(raw))


def leaf_lines(raw: bytes) -> list[bytes]:
    return [line for line in raw.splitlines(keepends=True) if b'"leaf":' in line]


@pytest.mark.parametrize("scope", ["whole", "run"])
def test_every_field_of_every_kind_is_covered(made: Made, scope: str) -> None:
    """Whoever changes one field of one event, and its hash with it, is found at the next checkpoint; without its hash, by the event's number."""
    raw: bytes = getattr(made, scope)
    for line in leaf_lines(raw):
        hashed, leaf = line[9:73].decode(), line[82:-2]
        fields = msgspec.json.decode(leaf)
        for field in [("event", name) for name in fields["event"]] + [(name,) for name in fields if name != "event"]:
            changed = msgspec.json.decode(leaf)
            inner = changed["event"] if field[0] == "event" else changed
            value = inner[field[-1]]
            inner[field[-1]] = (
                value + 1 if isinstance(value, int) else {**value, "n": 0} if isinstance(value, dict) else "deny" if field[-1] == "decision"
                else "run.output" if value == "run.paused" else "run.paused" if field[-1] == "kind" else value + "x"
            )  # fmt: skip
            forged = msgspec.json.encode(changed, order="sorted")
            assert forged != leaf
            with pytest.raises(Tampered) as found:
                verify(made, raw.replace(line, leaf_line(hashed, forged)))
            assert found.value.sequence == fields["seq"]
            with pytest.raises(Tampered) as found:
                verify(made, raw.replace(line, leaf_line(leaf_hash(forged).hex(), forged)))
            assert found.value.sequence is not None
            assert found.value.sequence <= fields["seq"] or field == ("previous",)


@pytest.mark.parametrize("scope", ["whole", "run"])
def test_removed_reordered_and_truncated_events_are_named(made: Made, scope: str) -> None:
    """Each event taken away, each two neighbours changed, each cut: the first event that is wrong is named."""
    raw: bytes = getattr(made, scope)
    lines = leaf_lines(raw)
    numbers = [disassemble(line[82:-2]).seq for line in lines]
    for number, line in zip(numbers, lines, strict=True):
        with pytest.raises(Tampered) as found:
            verify(made, raw.replace(line, b""))
        assert found.value.sequence == number or (scope, line) == ("run", lines[-1])
        with pytest.raises(Tampered) as found:
            verify(made, raw[: raw.index(line)])
        assert found.value.sequence is not None
        assert found.value.sequence <= number
        with pytest.raises(Tampered):
            verify(made, raw[: raw.index(line) + 20])
    for (number, line), (_, after) in itertools.pairwise(zip(numbers, lines, strict=True)):
        with pytest.raises(Tampered) as found:
            verify(made, raw.replace(line, b"#").replace(after, line).replace(b"#", after))
        assert found.value.sequence == number


def test_an_event_of_the_run_cannot_be_hidden(made: Made) -> None:
    """In an export of a run, an event shown by its hash alone is missed: the run's next event names it."""
    lines = leaf_lines(made.run)
    for line in lines[:-1]:
        hidden = b'{"hash":"%b","level":0}\n' % line[9:73]
        with pytest.raises(Tampered, match="missing") as found:
            verify(made, made.run.replace(line, hidden))
        assert found.value.sequence == disassemble(line[82:-2]).seq


def rewritten(raw: bytes, change: Callable[[int, dict[str, Any]], None]) -> list[bytes]:
    """A whole export forged from the first line to the last, but for the signatures."""
    lines, tree = [], CompactRange()
    for line in raw.splitlines(keepends=True):
        if b'"leaf":' in line:
            leaf = msgspec.json.decode(line[82:-2])
            change(leaf["seq"], leaf["event"])
            event = msgspec.json.encode(leaf["event"], order="sorted")
            forged = assemble(event, previous=leaf.get("previous"), received=leaf["received"], seq=leaf["seq"], writer=leaf["writer"])
            tree.append(leaf_hash(forged))
            line = leaf_line(leaf_hash(forged).hex(), forged)
        lines.append(line)
    return lines


def test_a_forged_history_is_found_between_two_checkpoints(made: Made) -> None:
    """Hashes and all are made anew: the stretch between the checkpoint before and the one after the change is named."""

    def change(seq: int, event: dict[str, Any]) -> None:
        if seq == 12:
            event["verb"] = "read"

    forged = rewritten(made.whole, change)
    with pytest.raises(Tampered, match="one of those up to 20 was changed") as found:
        verify(made, b"".join(forged))
    assert found.value.sequence == 6
    without = [line for line in forged if not line.startswith(b'{"checkpoint"')]
    with pytest.raises(Tampered) as found:
        verify(made, b"".join(without))
    assert found.value.sequence == 1


def test_another_key_is_not_trusted(made: Made) -> None:
    """A forger signs with a key of their own: found when the key is pinned, and said when it is not."""
    other = NoteSigner(SIGNER.name, Ed25519PrivateKey.generate())
    tree, lines = CompactRange(), []
    for line in leaf_lines(made.whole)[:3]:
        tree.append(leaf_hash(line[82:-2]))
        lines.append(line)
    note = other.sign(Checkpoint(SIGNER.name, 3, tree.root()).text())
    header = {"format": "bailiwick-record-export", "version": 1, "run": None, "size": 3, "verifier": str(other.verifier), "checkpoint": note}
    forged = msgspec.json.encode(header) + b"\n" + b"".join(lines) + checkpoint_line(note)
    with pytest.raises(Tampered, match="names the key"):
        verify(made, forged)
    answer = verify(made, forged, verifier=None)
    assert not answer.pinned
    assert "from the export itself, unpinned" in answer.key


def test_a_record_that_was_set_back_is_found(made: Made) -> None:
    """A kept checkpoint finds an export of an older state, and one that was rewritten under the same key."""
    notes = [msgspec.json.decode(line)["checkpoint"] for line in made.whole.splitlines(keepends=True) if line.startswith(b'{"checkpoint"')]
    assert not [finding for finding in verify(made, made.whole, kept=notes[1]).findings if "kept" in finding.what]
    older = made.whole.splitlines(keepends=True)[1:22]
    header = {"format": "bailiwick-record-export", "version": 1, "run": None, "size": 20, "verifier": KEY, "checkpoint": notes[1]}
    set_back = msgspec.json.encode(header) + b"\n" + b"".join(older) + checkpoint_line(notes[1])
    set_back = (
        msgspec.json.encode(header)
        + b"\n"
        + made.whole[made.whole.index(b"\n") + 1 : made.whole.index(checkpoint_line(notes[1])) + len(checkpoint_line(notes[1]))]
    )
    assert verify(made, set_back).size == 20
    with pytest.raises(Tampered, match="was kept") as found:
        verify(made, set_back, kept=notes[3])
    assert found.value.sequence == 21
    forked = SIGNER.sign(Checkpoint(SIGNER.name, 5, bytes(32)).text())
    with pytest.raises(Tampered, match="kept checkpoint"):
        verify(made, made.whole, kept=forked)


def test_calls_without_outcome_are_findings(tmp_path: Path) -> None:
    """An allowed action that has no action.finished, a run that has no end: reported, with the event's number, and no error."""
    committer = Committer(tmp_path / "record.db", SystemClock())

    def event(number: int, kind: str, **fields: Any) -> Event:
        return Event(id=f"e{number}", kind=kind, time="t", run="run-a", **fields)  # type: ignore[arg-type]

    append(committer, [event(1, "action.decided", action="a-1", decision="allow", verb="write"), event(2, "action.decided", action="a-2", decision="deny")])
    append(committer, [event(3, "action.decided", action="a-3", decision="allow", verb="send"), event(4, "action.finished", action="a-3")])
    reader = RecordReader.open(tmp_path / "record.db")
    export(reader, tmp_path / "e", run="run-a")  # type: ignore[arg-type]
    findings = verify_export(tmp_path / "e", KEY).findings
    assert [finding.sequence for finding in findings] == [1, 4]
    assert "write a-1 was allowed and has no outcome" in findings[0].what
    with pytest.raises(NotFound):
        export(reader, tmp_path / "none", run="run-z")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    reader.close()
    committer.close()


@pytest.mark.parametrize("decision", ["allow", "deny", "hold"])
def test_an_observed_call_without_outcome_is_a_finding(tmp_path: Path, decision: Verdict) -> None:
    """While a run is only observed its actions go whatever was decided; one without an outcome is missing as any other is."""
    committer = Committer(tmp_path / "record.db", SystemClock())

    def decided(number: int, **body: Any) -> Event:
        return Event(id=f"e{number}", kind="action.decided", time="t", run="run-a", action=f"a-{number}", verb="write", decision=decision, body=body)  # type: ignore[arg-type]

    finished = Event(id="e3", kind="action.finished", time="t", run="run-a", action="a-2")  # type: ignore[arg-type]
    append(committer, [decided(1, observed=True), decided(2, observed=True), finished, decided(4, observed="yes")])
    reader = RecordReader.open(tmp_path / "record.db")
    export(reader, tmp_path / "e", run="run-a")  # type: ignore[arg-type]
    findings = verify_export(tmp_path / "e", KEY).findings
    assert findings[0].what == "write a-1 was only observed and has no outcome on file"
    assert [finding.sequence for finding in findings[1:-1]] == ([4] if decision == "allow" else [])
    reader.close()
    committer.close()


def test_what_cannot_be_exported_or_read(tmp_path: Path) -> None:
    """Nothing signed, no file, a directory that is not there, a key that is none: said as such, never as tampering."""
    committer = Committer(tmp_path / "record.db", SystemClock())
    reader = RecordReader.open(tmp_path / "record.db")
    with pytest.raises(Conflict, match="no checkpoint"):
        export(reader, tmp_path / "e")
    append(committer, [Event(id="e", kind="run.output", time="t")])  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="cannot be written"):
        export(reader, tmp_path / "nowhere" / "e")
    with pytest.raises(CallerError, match="cannot be read"):
        verify_export(tmp_path / "none", KEY)
    export(reader, tmp_path / "e")
    with pytest.raises(CallerError, match="verifier key"):
        verify_export(tmp_path / "e", "x")
    reader.close()
    committer.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_garbage_is_tampered(made: Made, raw: bytes) -> None:
    """Nothing but Tampered comes out of a file that is no export, alone or behind a header that is one."""
    for text in (raw, made.whole[: made.whole.index(b"\n") + 1] + raw):
        with pytest.raises(Tampered):
            verify(made, text)


def test_roles_are_known() -> None:
    """Every kind of event has a writer."""
    assert all(kind.writers <= frozenset(Role) and kind.writers for kind in KINDS.values())
