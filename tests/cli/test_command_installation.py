from typing import Any

import pytest

from bailiwick.sandbox import capabilities


def test_status_shows_what_is_up(cli: Any) -> None:
    """Processes, runs, holds, record; for a program as it came."""
    run = cli("run", "deployer", "--detach").strip()
    cli.do(lambda: cli.governance.open_hold(run))
    shown = cli("status")
    for words in ("launcher", "gateway-0", "up", "1 live, 1 waiting", "2 events"):
        assert words in shown
    assert cli.json("status")["runs_live"] == 1


def survey_of(*facts: tuple[str, bool, str, str]) -> Any:
    return lambda: [capabilities.Fact(name, ok, detail, way_out) for name, ok, detail, way_out in facts]


def test_doctor_says_what_is_missing_and_how_to_get_it(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fact with its way out; status 5 when a run could not start."""
    monkeypatch.setattr(
        capabilities, "survey", survey_of(("bubblewrap", False, "is not installed", "apt-get install bubblewrap"), ("seccomp", True, "yes", ""))
    )
    shown = cli("doctor", status=5)
    for words in ("bubblewrap: is not installed", "apt-get install bubblewrap", "seccomp: yes", "python: 3.", "processes: all up"):
        assert words in shown
    assert {fact["name"]: fact["ok"] for fact in cli.json("doctor", status=5)}["bubblewrap"] is False
    monkeypatch.setattr(capabilities, "survey", survey_of(("seccomp", True, "yes", "")))
    cli("doctor")


def test_version(alone: Any) -> None:
    """What it says of itself."""
    import bailiwick

    assert bailiwick.__version__ in alone("version")
    assert alone.json("version")["version"] == bailiwick.__version__
