import json
import time
from typing import Any

from bailiwick.record.event import KINDS


def act(governance: Any, run: str, number: int, decision: str = "allow") -> None:
    fields = {"action": f"a-{number}", "verb": "read", "resource": f"https://config.internal/v1/items/{number}?page=2", "time": at(number)}
    governance.commit("action.decided", run=run, decision=decision, body={"rules": ["deployer.boundary[0]"], "method": "GET"}, **fields)
    if decision == "allow":
        governance.commit("action.finished", run=run, body={"result": "answered", "status": 200, "duration_ms": 7}, **fields)


def at(number: int) -> str:
    return f"2026-11-24T02:{number // 60 % 60:02d}:{number % 60:02d}.000000Z"


def test_ps_lists_what_lives_newest_first(cli: Any) -> None:
    """Ended runs only when asked for; the whole of a row within 80 columns."""
    first, second = cli("run", "deployer", "one", "--detach").strip(), cli("run", "deployer", "x" * 300, "--detach").strip()
    cli.do(lambda: cli.governance.end(first, status=2))
    shown = cli("ps")
    assert second in shown
    assert first not in shown
    assert [line.split()[0] for line in cli("ps", "--all").splitlines()[1:]] == [second, first]
    assert "exited 2" in cli("ps", "--all")
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert [run["run"] for run in cli.json("ps", "--all")] == [second, first]


def test_logs_are_what_the_agent_wrote(cli: Any) -> None:
    """Each stream to its own; unchanged when it is not a terminal that reads."""
    run = cli("run", "deployer", "--detach").strip()
    cli.do(lambda: cli.governance.commit("run.output", run=run, body={"stream": "stdout", "text": "a\x1b[1mb"}))
    cli.do(lambda: cli.governance.commit("run.output", run=run, body={"stream": "stderr", "text": "c\n", "dropped_bytes": 9}))
    assert cli("logs", "last") == "a\x1b[1mb"
    assert "c\n" in cli.err
    assert "9 bytes" in cli.err
    assert json.loads(cli("logs", run, "--json").splitlines()[0])["event"]["body"]["text"] == "a\x1b[1mb"


def test_a_trace_tells_the_story(cli: Any) -> None:
    """Every action with its decision, rules, outcome and time; who signed, and after how long; the totals; in 80 columns."""
    run = cli("run", "deployer", "nightly", "--detach").strip()

    def story() -> None:
        governance = cli.governance
        governance.commit("run.probed", run=run, time=at(1), body={"backend": "bubblewrap", "findings": [{"check": "route", "held": True, "detail": ""}]})
        governance.commit("run.started", run=run, time=at(2), body={"command": ["python", "a.py"]})
        act(governance, run, 3)
        act(governance, run, 4, "deny")
        hold = governance.open_hold(run)
        governance.commit(
            "action.decided",
            run=run,
            time=at(5),
            action="a-9",
            verb="write",
            resource="https://x/",
            decision="hold",
            body={"hold": hold.hold, "approvers": ["oncall"]},
        )
        governance.commit("hold.signed", run=run, time=at(19), body={"hold": hold.hold, "operator": "bo", "outcome": "granted", "why": "checked"})
        governance.commit("action.finished", run=run, time=at(20), action="a-8", verb="call-model", resource="openai/gpt-5.2", model="gpt-5.2",
                          input_tokens=1204, output_tokens=88, cost_microusd=12300, body={"result": "answered", "status": 200, "duration_ms": 812})  # fmt: skip
        governance.commit("attempt.refused", run=run, time=at(21), decision="deny", body={"what": "port", "where": "tcp 1.2.3.4:25", "why": "nobody serves it"})
        governance.end(run, status=0)

    cli.do(story)
    shown = cli("trace", run)
    for words in (
        "nightly", "sealed: 1 checks held", "started python a.py", "read       GET https://config.internal/v1/items/3?page=2", "allowed",
        "by deployer.boundary[0]",
        "200", "7 ms", "denied", "waits for oncall", "granted by bo", '"checked"', "after 19.0 s", "call-model openai/gpt-5.2", "1,204+88 tokens", "$0.0123",
        "tcp 1.2.3.4:25", "nobody serves it", "exit status 0", "+3.000",
    ):  # fmt: skip
        assert words in shown, f"{words}\n{shown}"
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert [json.loads(line)["sequence"] for line in cli("trace", run, "--json").splitlines()] == list(range(len(cli.governance.log)))


def test_every_kind_of_event_is_told(cli: Any) -> None:
    """A kind the trace has no words for is shown by its name, never lost and never a failure."""
    run = cli("run", "deployer", "--detach").strip()
    quiet = {"run.output", "lease.used", "hold.opened", "run.requested", "run.ended", "action.finished", "action.decided", "hold.signed"}
    kinds = [kind for kind in KINDS if kind not in quiet]
    cli.do(lambda: [cli.governance.commit(kind, run=run, body={"odd": [1], "reason": kind}) for kind in kinds])
    assert len(cli("trace", run).splitlines()) >= len(kinds)


def test_a_trace_of_ten_thousand_events(cli: Any) -> None:
    """Read as it arrives, within seconds, every action told."""
    run = cli("run", "deployer", "--detach").strip()
    cli.do(lambda: [act(cli.governance, run, number) for number in range(5_000)])
    began = time.monotonic()
    shown = cli("trace", run)
    assert shown.count("/v1/items/") == 5_000
    assert time.monotonic() - began < 8


def test_an_unknown_run_is_named(cli: Any) -> None:
    """With the way to find the right one; `last` of nothing says so."""
    cli("logs", "last", status=4)
    assert "there is no run yet" in cli.err
    cli("run", "deployer", "--detach")
    for name in ("run-0000000000000000z", "nonsense", "../x", ""):
        cli("trace", name, status=4)
        assert "bailiwick ps --all" in cli.err
