import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bailiwick.cli import events, terminal
from bailiwick.record.event import KINDS

TIME = "2026-11-24T02:00:00.000000Z"

HOSTILE = st.text(alphabet=st.sampled_from("a\\ \x1b\x07\r\n\u202e\u200b\u2028\u0301界[31m"), max_size=300)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), HOSTILE)
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(HOSTILE, inner, max_size=3)), max_leaves=6)
NAMES = (
    "operator",
    "why",
    "reason",
    "rules",
    "findings",
    "command",
    "used",
    "changes",
    "hold",
    "status",
    "result",
    "error",
    "duration_ms",
    "approvers",
    "where",
    "task",
    "text",
    "detail",
    "cause",
    "changed",
)
BODIES = st.dictionaries(st.one_of(st.sampled_from(NAMES), HOSTILE), VALUES, max_size=6)


@st.composite
def recorded(draw: Any) -> dict[str, Any]:
    event: dict[str, Any] = {"id": "e.1", "kind": draw(st.sampled_from([*KINDS, "later.kind"])), "time": TIME, "body": draw(BODIES)}
    for name, values in (
        ("verb", HOSTILE), ("resource", HOSTILE), ("action", st.sampled_from(["a-1", "a-2"])), ("decision", st.sampled_from(["allow", "deny", "hold"])),
        ("credential", HOSTILE), ("model", HOSTILE), ("input_tokens", st.integers(0, 10**9)), ("cost_microusd", st.integers(0, 10**12)),
    ):  # fmt: skip
        if draw(st.booleans()):
            event[name] = draw(values)
    return {"sequence": 1, "received": TIME, "writer": "gateway-0", "event": event}


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=st.lists(recorded(), max_size=5), columns=st.sampled_from([40, 80, 160]))
def test_whatever_an_event_holds_it_is_told_and_obeys_nothing(story: list[dict[str, Any]], columns: int) -> None:
    """No value a compromised writer could put into an event breaks the trace, moves the cursor or hides what follows."""
    for since, line in events.lines(story, output=True):
        for shown in terminal.plain(events.rendered(since, line, columns)).split("\n"):
            assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp")], shown
            assert len(shown) <= columns


def decided(decision: str, action: str = "a-1", **body: Any) -> dict[str, Any]:
    event = {"kind": "action.decided", "time": TIME, "verb": "read", "resource": "https://x/", "action": action, "decision": decision, "body": body}
    return {"sequence": 1, "event": event}


def finished(action: str = "a-1", **body: Any) -> dict[str, Any]:
    event = {"kind": "action.finished", "time": TIME, "verb": "read", "resource": "https://x/", "action": action, "body": body}
    return {"sequence": 2, "event": event}


def told(*story: dict[str, Any]) -> list[str]:
    return [terminal.plain(events.rendered(since, line, 160)) for since, line in events.lines(story)]


def test_an_allowed_action_is_one_line() -> None:
    """Told once, when its end is known; of one whose end is not recorded that is said."""
    assert len(told(decided("allow"), finished(result="answered", status=200, duration_ms=3))) == 1
    (line,) = told(decided("allow"))
    assert "no end is recorded" in line


@pytest.mark.parametrize(
    ("body", "words"),
    [({"result": "unknown"}, "unknown"), ({"result": "failed", "error": "reset by peer"}, "reset by peer"), ({"scrubbed": 1}, "secret scrubbed")],
)
def test_how_it_ended_is_said(body: dict[str, Any], words: str) -> None:
    """An effect nobody can answer for, an upstream that broke, a secret that came back."""
    (line,) = told(decided("allow"), finished(**body))
    assert words in line


def test_what_was_only_observed_is_not_called_done() -> None:
    """In observe mode the decision is what would have been."""
    (line, _) = told(decided("deny", observed=True, reason="no rule"), finished(result="answered"))
    assert "would be denied" in line
