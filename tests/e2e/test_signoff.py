"""Sign-off from the agent's request to the service and back: what each ending is told as, that a grant is for exactly one action, once, and that it outlives
the client, the wait and every process of ours."""

import getpass
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import gate as gates
from tests.e2e.gate import Gate
from tests.e2e.installation import Done
from tests.e2e.stage import CONFIG, Stage, positions, program

from bailiwick.cli.exits import Exit, Refused
from bailiwick.governor.views import HoldView

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

ME, ANA, BO = getpass.getuser(), "ana", "bo"
UIDS = {ANA: 54_321, BO: 54_322}
only_root = pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to be two operators")
GATE = Gate()


def _agent(**more: Any) -> dict[str, Any]:
    def held(path: str, *approvers: str, wait: str = "1m", **terms: Any) -> dict[str, Any]:
        return {"hold": ["write"], "http": CONFIG, "path": f"/v1/{path}/**", "approvers": list(approvers), "wait": wait, **terms}

    rules = [held("production", "oncall"), held("short", "oncall", wait="1s"), held("brief", "brief"), held("two", "pair")]
    rules += [held("eyes", "oncall", four_eyes=True)]
    allowed = [{"allow": ["read"], "http": CONFIG}, {"allow": ["read"], "http": gates.NAME}]
    return {"command": ["python", "caller.py", "{task}"], "workspace": "caller", "boundary": allowed + rules, **more}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    def pins(stage: Stage) -> dict[str, dict[str, Any]]:
        return {gates.NAME: stage.pin(stage.servers.enter_context(GATE.server).port, tls=False)}

    more = {
        "approvers": {
            "oncall": {"operators": [ME, ANA]},
            "brief": {"operators": [ME], "expires": "1s"},
            "pair": {"operators": [ANA, BO], "quorum": 2},
        },
        "operators": {
            ME: {"uid": os.getuid(), "roles": ["admin"]},
            **{name: {"uid": uid, "roles": ["approver"]} for name, uid in UIDS.items()},
        },
    }
    agents = {"caller": _agent(), "hasty": _agent(limits={"wall": "3s"})}
    with Stage(agents, pins=pins, files={"caller/caller.py": program("caller.py")}, more=more) as made:
        yield made


def put(path: str, value: str = "new", **more: Any) -> dict[str, Any]:
    return {"name": path, "method": "PUT", "url": f"https://{CONFIG}/v1/{path}", "body": {"value": value}, **more}


def gate(name: str) -> dict[str, Any]:
    return {"name": f"gate {name}", "url": GATE.url(name), "again": True}


def begin(stage: Stage, *sequences: list[dict[str, Any]], agent: str = "caller") -> str:
    return stage.begin(agent, json.dumps(sequences))


def said(done: Done, name: str) -> list[dict[str, Any]]:
    """What the agent was told, each time it asked for this."""
    return [line for line in map(json.loads, done.said.splitlines()) if line["name"] == name]


def holds(stage: Stage, run: str, path: str | None = None, state: str | None = None) -> list[HoldView]:
    """Of a run, oldest first."""
    found = [hold for hold in stage.api.get("/v1/holds", list[HoldView], state=state) if hold.run == run]
    return [hold for hold in reversed(found) if path is None or path in json.dumps(hold.shown)]


def wait_pending(stage: Stage, run: str, path: str, but: str = "") -> HoldView:
    found = stage.wait(lambda: [hold for hold in holds(stage, run, path, "pending") if hold.hold != but], f"a hold on {path}")
    assert len(found) == 1
    hold: HoldView = found[0]
    return hold


def approve(stage: Stage, hold: HoldView) -> None:
    stage.cli("approve", hold.hold, "--yes", check=True)


@contextmanager
def acting_as(operator: str) -> Iterator[None]:
    """The kernel tells a unix socket's other end who we are by our effective uid, as it is when we connect."""
    os.seteuid(UIDS[operator])
    try:
        yield
    finally:
        os.seteuid(0)


def sign(stage: Stage, hold: HoldView, operator: str, *, outcome: str = "approve") -> HoldView:
    with acting_as(operator):
        return stage.api.post(f"/v1/holds/{hold.hold}/{outcome}", {"why": "looked at it"}, HoldView)


def writes(stage: Stage, path: str) -> int:
    return sum(arrival.changed for arrival in stage.arrived("PUT", f"/v1/{path}"))


def test_each_ending_is_told_as_what_it_is(stage: Stage) -> None:
    """Denied, expired and not answered in time are three problems to the agent, three states to the operator, and three endings in the record."""
    run = begin(stage, [put("production/denied")], [put("brief/a")], [put("short/a")], [put("production/granted")])
    stage.cli("deny", wait_pending(stage, run, "production/denied").hold, "--why", "not on a Friday", check=True)
    approve(stage, wait_pending(stage, run, "production/granted"))
    done = stage.wait_ended(run)
    told = {name: said(done, name)[0] for name in ("production/denied", "brief/a", "short/a", "production/granted")}
    problems = {name: (line["status"], line["json"]["type"].rpartition(":")[2], line["json"]["retry"]) for name, line in told.items() if line["status"] >= 400}
    assert problems == {
        "production/denied": (403, "sign-off-denied", "never"),
        "brief/a": (403, "sign-off-expired", "after"),
        "short/a": (403, "held", "after-signoff"),
    }
    assert "not on a Friday" in told["production/denied"]["json"]["reason"]
    assert told["production/granted"]["status"] == 201
    by_id = {hold.hold: hold for hold in holds(stage, run)}
    for name, state in (("production/denied", "denied"), ("brief/a", "expired"), ("short/a", "void")):
        problem = told[name]["json"]
        assert by_id[problem["hold"]].state == state, "the id that the agent was told is the operator's"
        assert problem["run"] == run
        assert positions(done.events, "hold.closed", hold=problem["hold"], state=state)
        assert writes(stage, name) == 0
    assert writes(stage, "production/granted") == 1
    closed = {event["body"]["hold"]: event["body"]["reason"] for event in done.of("hold.closed")}
    assert closed[told["short/a"]["json"]["hold"]] == "the run ended"


def test_a_client_that_gave_up_redeems_with_its_next_try_and_only_once(stage: Stage) -> None:
    """The request times out while it is parked; what was approved then, an identical request uses up; the one after that is held anew."""
    asked = "production/retried"
    run = begin(stage, [put(asked, timeout=1), gate("approved"), put(asked), put(asked)])
    first = wait_pending(stage, run, asked)
    GATE.wait_arrived("approved")
    approve(stage, first)
    assert writes(stage, asked) == 0, "nobody waits, so nothing is sent"
    GATE.open("approved")
    second = wait_pending(stage, run, asked, but=first.hold)
    assert second.digest == first.digest
    assert writes(stage, asked) == 1
    stage.cli("deny", second.hold, "--why", "once is enough", check=True)
    done = stage.wait_ended(run)
    assert [line.get("status") for line in said(done, asked)] == [None, 201, 403]
    assert "timed out" in said(done, asked)[0]["error"]
    assert [event["body"]["hold"] for event in done.of("hold.redeemed")] == [first.hold]
    assert writes(stage, asked) == 1
    redeemed, intent, outcome = (
        positions(done.events, "hold.redeemed"),
        positions(done.events, "action.decided", decision="allow", hold=first.hold),
        positions(done.events, "action.finished", status=201),
    )
    assert [len(redeemed), len(intent), len(outcome)] == [1, 1, 1]
    assert redeemed < intent < outcome


def test_what_the_wait_ended_is_redeemed_later(stage: Stage) -> None:
    """Past `wait` the refusal names the hold; signed after that, the same request goes through without waiting."""
    run = begin(stage, [put("short/later"), gate("signed"), put("short/later")])
    GATE.wait_arrived("signed")
    hold = wait_pending(stage, run, "short/later")
    approve(stage, hold)
    GATE.open("signed")
    done = stage.wait_ended(run)
    first, second = said(done, "short/later")
    assert (first["json"]["hold"], first["json"]["retry"]) == (hold.hold, "after-signoff")
    assert second["status"] == 201
    assert writes(stage, "short/later") == 1


def test_a_grant_is_for_exactly_the_bytes_that_were_shown(stage: Stage) -> None:
    """Another body is another hold: granting the one lets the other wait."""
    path = "production/body"
    run = begin(stage, [put(path, "seven", name="seven")], [put(path, "eight", name="eight")])
    both = stage.wait(lambda: len(found := holds(stage, run, path, "pending")) == 2 and found, "two holds")
    assert len({hold.digest for hold in both}) == 2
    seven, eight = sorted(both, key=lambda hold: "eight" in hold.body_text)
    assert '"seven"' in seven.body_text
    approve(stage, seven)
    stage.wait(lambda: stage.config.values.get(path) == "seven", "the write of seven")
    assert stage.api.get(f"/v1/holds/{eight.hold}", HoldView).state == "pending"
    stage.cli("deny", eight.hold, "--why", "no", check=True)
    done = stage.wait_ended(run)
    assert (said(done, "seven")[0]["status"], said(done, "eight")[0]["status"]) == (201, 403)
    assert writes(stage, path) == 1


def test_a_grant_is_for_one_run(stage: Stage) -> None:
    """The same request of another run does not use it up: it is held for itself."""
    path = "production/borrowed"
    run = begin(stage, [put(path, timeout=1), gate("borrowed"), put(path)])
    hold = wait_pending(stage, run, path)
    GATE.wait_arrived("borrowed")
    approve(stage, hold)
    other = begin(stage, [put(path)])
    theirs = wait_pending(stage, other, path)
    assert theirs.hold != hold.hold
    stage.cli("deny", theirs.hold, "--why", "not yours", check=True)
    assert said(stage.wait_ended(other), path)[0]["status"] == 403
    assert writes(stage, path) == 0
    GATE.open("borrowed")
    assert said(stage.wait_ended(run), path)[1]["status"] == 201
    assert writes(stage, path) == 1


def test_a_grant_may_be_taken_back_until_it_is_used(stage: Stage) -> None:
    """An approver who thinks again denies what was granted; the agent's next tries are told so, as a denial is final, and nothing was written."""
    path = "production/again"
    run = begin(stage, [put(path, timeout=1), gate("again"), put(path), put(path)])
    hold = wait_pending(stage, run, path)
    GATE.wait_arrived("again")
    approve(stage, hold)
    stage.cli("deny", hold.hold, "--why", "on second thoughts", check=True)
    GATE.open("again")
    done = stage.wait_ended(run)
    told = [(line["json"]["type"].rpartition(":")[2], line["json"]["hold"]) for line in said(done, path)[1:]]
    assert told == [("sign-off-denied", hold.hold)] * 2
    assert "on second thoughts" in said(done, path)[1]["json"]["reason"]
    assert [other.state for other in holds(stage, run)] == ["denied"]
    assert done.of("hold.redeemed") == []
    assert writes(stage, path) == 0


def test_of_two_that_wait_for_one_grant_one_goes(stage: Stage) -> None:
    """The same request twice at once is one hold, and one write."""
    path = "production/twins"
    run = begin(stage, [put(path)], [put(path)])
    hold = wait_pending(stage, run, path)
    stage.wait(lambda: len(positions(stage.events(run), "action.decided", hold=hold.hold)) == 2, "both parked")
    approve(stage, hold)
    stage.wait(lambda: writes(stage, path) == 1, "the write")
    done = stage.wait_ended(run)
    told = sorted(said(done, path), key=lambda line: line["status"])
    assert [line["status"] for line in told] == [201, 403]
    assert told[1]["json"]["type"].endswith("sign-off-void")
    assert writes(stage, path) == 1
    assert len(done.of("hold.redeemed")) == 1


@pytest.mark.parametrize("processes", ["gateway-0", "governor", "recorder", "broker", "gateway-0 governor recorder broker"])
def test_it_outlives_each_process(stage: Stage, processes: str) -> None:
    """kill -9 while a request is parked, of one process or of all but the sandboxes' parent: the hold is still there, can be approved, and the agent's next
    try, or the one that waited, is written once."""
    path = f"production/killed-{processes.replace(' ', '-')}"
    run = begin(stage, [put(path, again=True)])
    hold = wait_pending(stage, run, path)
    killed = {process: stage.kill(process) for process in processes.split()}
    stage.wait(lambda: all(stage.pids().get(process, pid) != pid for process, pid in killed.items()), "processes in their place")
    stage.wait_whole()
    stage.wait(lambda: stage.api.get(f"/v1/holds/{hold.hold}", HoldView).state == "pending", "the hold, after the kill")
    stage.wait(lambda: stage.cli("approve", hold.hold, "--yes").returncode == 0, "the approval")
    done = stage.wait_ended(run, 60)
    (told,) = said(done, path)
    assert told["status"] == 201, done.said
    assert told["tries"] > 1 or "gateway-0" not in killed, "its connection died with the worker"
    assert writes(stage, path) == 1
    assert [event["body"]["hold"] for event in done.of("hold.redeemed")] == [hold.hold]
    assert [other.hold for other in holds(stage, run)] == [hold.hold], "no second hold was opened for the same request"
    stage.wait(lambda: set(killed) <= {event["body"].get("process") for event in stage.events()}, "the kills on the record")
    assert stage.left(run) == []


def test_the_wall_clock_stands_still_while_a_person_is_asked(stage: Stage) -> None:
    """A run with a wall limit of three seconds waits for four and ends by itself."""
    run = begin(stage, [put("production/slowly")], agent="hasty")
    hold = wait_pending(stage, run, "production/slowly")
    parked = time.monotonic()
    stage.wait(lambda: time.monotonic() > parked + 4, "four seconds")
    approve(stage, hold)
    done = stage.wait_ended(run)
    assert (done.view.cause, done.view.status) == ("exited", 0)
    assert said(done, "production/slowly")[0]["status"] == 201


def test_an_end_of_the_run_voids_what_it_left_waiting(stage: Stage) -> None:
    """Nobody can approve for a run that is over, and the record says why."""
    run = begin(stage, [put("production/void")])
    hold = wait_pending(stage, run, "production/void")
    stage.cli("kill", run, check=True)
    done = stage.wait_ended(run)
    (closed,) = done.of("hold.closed")
    assert (closed["body"]["state"], closed["body"]["reason"]) == ("void", "the run ended")
    refused = stage.cli("approve", hold.hold, "--yes")
    assert refused.returncode == Exit.REFUSED
    assert "void" in refused.stderr
    assert writes(stage, "production/void") == 0


@only_root
@pytest.mark.root
def test_four_eyes_bar_the_one_who_sent_the_agent(stage: Stage) -> None:
    """Who dispatched the run may not sign, whatever their role; somebody else of the group may."""
    run = begin(stage, [put("eyes/a")])
    hold = wait_pending(stage, run, "eyes/a")
    own = stage.cli("approve", hold.hold, "--yes")
    assert own.returncode == Exit.REFUSED
    assert "four eyes" in own.stderr
    with pytest.raises(Refused, match="none of the groups"):
        sign(stage, hold, BO)
    assert writes(stage, "eyes/a") == 0
    assert sign(stage, hold, ANA).state == "granted"
    done = stage.wait_ended(run)
    assert said(done, "eyes/a")[0]["status"] == 201
    assert [event["body"]["operator"] for event in done.of("hold.signed")] == [ANA]


@only_root
@pytest.mark.root
def test_a_quorum_is_two_people(stage: Stage) -> None:
    """One signature is not enough, the same person's second is refused, an admin outside the group does not count, the second person completes it."""
    run = begin(stage, [put("two/a")])
    hold = wait_pending(stage, run, "two/a")
    assert sign(stage, hold, ANA).state == "pending"
    with pytest.raises(Refused, match="another approver must sign"):
        sign(stage, hold, ANA)
    assert stage.cli("approve", hold.hold, "--yes").returncode == Exit.REFUSED
    assert writes(stage, "two/a") == 0
    assert sign(stage, hold, BO).state == "granted"
    done = stage.wait_ended(run)
    assert said(done, "two/a")[0]["status"] == 201
    assert [event["body"]["operator"] for event in done.of("hold.signed")] == [ANA, BO]
    assert writes(stage, "two/a") == 1


def test_an_agent_cannot_approve(stage: Stage) -> None:
    """No socket of ours is in its sandbox, and there is no name or address at which the API answers it."""
    socket_path = stage.layout.socket("api")
    seen = stage.cli(
        "run", "--no-workspace", "--", "sh", "-c", f"find / -xdev -type s 2>/dev/null; ls {socket_path}; curl -sS --unix-socket {socket_path} http://x/v1/holds"
    )
    assert seen.returncode == Exit.AGENT_FAILED
    places = (
        "https://api.bailiwick.internal",
        "http://proxy.bailiwick.internal",
        "http://models.bailiwick.internal",
        "http://127.0.0.1",
        "http://198.18.0.1:3128",
    )
    run = begin(stage, [put("production/self", timeout=2), gate("asked")])
    hold = wait_pending(stage, run, "production/self")
    GATE.wait_arrived("asked")
    tries = [
        [{"name": place, "method": "POST", "url": f"{place}/v1/holds/{hold.hold}/approve", "body": {"why": "I am sure"}, "timeout": 20}] for place in places
    ]
    other = stage.wait_ended(begin(stage, *tries))
    told = {name: said(other, name)[0] for name in places}
    assert all(line.get("status", 400) >= 400 for line in told.values()), told
    assert stage.api.get(f"/v1/holds/{hold.hold}", HoldView).state == "pending"
    stage.cli("deny", hold.hold, "--why", "it may not", check=True)
    GATE.open("asked")
    stage.wait_ended(run)
    assert writes(stage, "production/self") == 0
    output = stage.events(next(event["run"] for event in reversed(stage.events()) if event["kind"] == "run.requested" and event["agent"] == "command"))
    text = "".join(event["body"].get("text", "") for event in output if event["kind"] == "run.output")
    assert "No such file" in text
    assert not any(line.startswith("/") and line.endswith(".sock") for line in text.splitlines())


def test_the_record_is_whole_after_all_of_that(stage: Stage, tmp_path: Path) -> None:
    """Kills and all, it verifies offline with the public key; every effect that was allowed has one outcome, after its intent."""
    export = tmp_path / "all.bailiwick"
    stage.cli("record", "export", "--output", str(export), check=True)
    key = stage.cli("record", "key", check=True).stdout.strip()
    verified = stage.cli("record", "verify", str(export), "--key", key)
    assert verified.returncode == Exit.OK, verified.stdout + verified.stderr
    events = stage.events()
    intents = {event["action"]: index for index, event in enumerate(events) if event["kind"] == "action.decided" and event["decision"] == "allow"}
    outcomes = [(event["action"], index) for index, event in enumerate(events) if event["kind"] == "action.finished"]
    assert len(outcomes) == len({action for action, _ in outcomes})
    assert all(intents[action] < index for action, index in outcomes)
    effects = {action for action, index in intents.items() if events[index]["verb"] == "write"}
    assert effects <= {action for action, _ in outcomes}
