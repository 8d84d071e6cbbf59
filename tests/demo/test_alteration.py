from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bailiwick.cli.demo.alteration import alter
from bailiwick.kernel.ids import ActionId, EventId, RunId
from bailiwick.record.checkpoint import Checkpoint, NoteSigner
from bailiwick.record.event import Event, encode
from bailiwick.record.export_format import Header, header_line, leaf_line
from bailiwick.record.leaf import assemble
from bailiwick.record.merkle import CompactRange, leaf_hash
from bailiwick.record.verify import Tampered, verify_export

TIME = "2026-01-01T00:00:00.000000Z"


def exported(path: Path, *decisions: Any) -> str:
    """A signed export of one decided action each; the public key."""
    signer = NoteSigner("demo/record", Ed25519PrivateKey.generate())
    tree, lines = CompactRange(), []
    for number, decision in enumerate(decisions, 1):
        event = Event(
            id=EventId(f"e{number}"), kind="action.decided", time=TIME, run=RunId("run-1"), action=ActionId(f"a{number}"), verb="read", decision=decision
        )
        leaf = assemble(encode(event), previous=number - 1, received=TIME, seq=number, writer="gateway-0")
        hashed = leaf_hash(leaf)
        tree.append(hashed)
        lines.append(leaf_line(hashed.hex(), leaf))
    note = signer.sign(Checkpoint("demo/record", tree.size, tree.root()).text())
    path.write_bytes(header_line(Header(run=None, size=tree.size, verifier=str(signer.verifier), checkpoint=note)) + b"".join(lines))
    return str(signer.verifier)


def test_the_altered_event_is_the_one_that_is_found(tmp_path: Path) -> None:
    """The export verifies; its altered copy does not, and the verification names the very event."""
    key = exported(tmp_path / "export", "allow", "hold", "deny", "allow")
    assert verify_export(tmp_path / "export", key).events == 4
    assert alter(tmp_path / "export", tmp_path / "copy") == 3
    with pytest.raises(Tampered) as found:
        verify_export(tmp_path / "copy", key)
    assert found.value.sequence == 3


def test_nothing_to_hide_is_said(tmp_path: Path) -> None:
    """An export without a refusal cannot play this part."""
    exported(tmp_path / "export", "allow")
    with pytest.raises(ValueError, match="no action that was refused"):
        alter(tmp_path / "export", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
