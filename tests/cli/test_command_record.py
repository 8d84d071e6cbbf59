from pathlib import Path
from typing import Any

import pytest

from bailiwick.record import verify as record_verify


def test_an_export_is_written_whole_or_not(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the file named, or one named after the run; nothing is overwritten unasked; nothing half-written is left."""
    monkeypatch.chdir(tmp_path)
    run = cli("run", "deployer", "--detach").strip()
    cli("record", "export", "last")
    assert (tmp_path / f"{run}.bailiwick").read_bytes() == b"export\n" * 1000
    cli("record", "export", "last", status=4)
    assert "--force" in cli.err
    cli("record", "export", "last", "--force")
    cli("record", "export", "-o", "none/x", status=4)
    cli("record", "export", "run-0000000000000000z", status=4)
    assert {path.name for path in tmp_path.iterdir() if path.name != "state"} == {f"{run}.bailiwick"}
    process = cli.start("record", "export", "last", "-o", "-")
    out, _ = process.communicate(timeout=10)
    assert out == "export\n" * 1000


def test_the_key(cli: Any) -> None:
    """On its own, for a file of its own."""
    assert cli("record", "key").strip() == cli.governance.record_key()


def test_a_changed_record_is_named_with_its_own_status(alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 7, the first wrong event; what is no export at all is not called verified either."""
    export, key = tmp_path / "x.bailiwick", tmp_path / "key"
    export.write_text("nonsense\n")
    key.write_text("example.org/record+00000000+AAAA\n")
    seen: list[Any] = []

    def tampered(path: Path, verifier: str | None, *, kept: str | None = None) -> None:
        seen.append((path, verifier, kept))
        raise record_verify.Tampered("its hash is another", 17)

    monkeypatch.setattr(record_verify, "verify_export", tampered)
    alone("record", "verify", str(export), "--key", str(key), status=7)
    assert "event 17" in alone.err
    assert seen == [(export, "example.org/record+00000000+AAAA", None)]
    assert alone.json("record", "verify", str(export), status=7) == {"verified": False, "what": "its hash is another", "sequence": 17}
    monkeypatch.undo()
    alone("record", "verify", str(export), status=7)
    alone("record", "verify", str(tmp_path / "none"), status=4)
    alone("record", "verify", str(export), "--key", str(tmp_path / "none"), status=4)
