"""The layout: one directory, each process its own part."""

from pathlib import Path

import pytest

from bailiwick.kernel import layout
from bailiwick.kernel.layout import Layout


def test_the_state_directory_is_chosen_root_s_or_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BAILIWICK_STATE first; /var/lib for root; XDG for anybody else, with its default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAILIWICK_STATE", "here")
    assert Layout.default().root == tmp_path / "here"
    monkeypatch.setenv("BAILIWICK_STATE", "")
    monkeypatch.setattr(layout.os, "getuid", lambda: 0)
    assert Layout.default().root == Path("/var/lib/bailiwick")
    monkeypatch.setattr(layout.os, "getuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert Layout.default().root == Path("/state/bailiwick")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ana")
    assert Layout.default().root == Path("/home/ana/.local/state/bailiwick")


def test_a_relative_xdg_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG base directory specification says: another working directory must not be another installation."""
    monkeypatch.delenv("BAILIWICK_STATE", raising=False)
    monkeypatch.setattr(layout.os, "getuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert Layout.default().root == Path("/home/ana/.local/state/bailiwick")


def test_no_two_parts_are_one() -> None:
    """What one process writes, no other does."""
    place = Layout(Path("/s"))
    parts = [place.sockets, place.record, place.broker, place.governor, place.sandboxes, place.logs]
    assert len(set(parts)) == len(parts)
    assert all(part.parent == place.root for part in parts)
    assert place.socket("gateway-0.adopt") == "/s/run/gateway-0.adopt.sock"
