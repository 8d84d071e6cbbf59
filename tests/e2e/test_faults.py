"""What goes wrong on the other side, in the workspace or in the agent itself: the agent gets an answer of its protocol, the record says what happened, and
nothing hangs, grows or gets out."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import gate as gates
from tests.e2e import upstreams
from tests.e2e.gate import Gate
from tests.e2e.installation import Done
from tests.e2e.stage import Stage, decided, program
from tests.e2e.upstreams import Misbehaving, Silent

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.model_server import FAULTS
from bailiwick.cli.demo.web import Server

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

MIB = 1 << 20
HOSTS = ("faults", "stranger", "renamed", "expired", "nobody", "silent", "bulk")
BULK_BYTES = 200 * MIB
GROWTH_BYTES_MAX = 24 * MIB  # of a worker that carries a body without end
MODEL_URL = "http://198.18.0.2/openai/v1/chat/completions"


STUBBORN_TRIES = 400
STUBBORN = f"""
import socket, urllib.request
def bad():
    with socket.create_connection(("203.0.113.1", 80)) as line:
        line.sendall(b"GET / HTTP/1.1\\r\\nno field\\r\\n\\r\\n")
        while line.recv(4096):
            pass
for _ in range({STUBBORN_TRIES}):
    bad()
urllib.request.urlopen("http://{gates.NAME}/tired")
bad()
"""
WORK = """\
for name in *; do [ -e "$name" ] || [ -L "$name" ] && printf '%s\\n' "$name"; done | LC_ALL=C sort > /tmp/seen
cat inner; cat leading-out 2>/dev/null || echo 'nothing there'
echo changed >> "$(printf 'caf\\351.txt')"
echo new > "$(printf 'new-\\377')"
mkfifo pipe; ln -s ../../etc/passwd out; ln -s plain.txt in; chmod 4755 plain.txt
mknod device c 1 3 2>/dev/null || echo 'no device made'
wc -l < /tmp/seen
"""


def name(host: str) -> str:
    return f"{host}.internal"


@dataclass(frozen=True, slots=True)
class World:
    stage: Stage
    misbehaving: Misbehaving
    gate: Gate
    silent: str  # a run that asks the silent host, begun first because it takes as long as a connection may take


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    misbehaving, gate = Misbehaving(), Gate()
    expired, expired_pem = upstreams.expired(name("expired"))

    def pins(stage: Stage) -> dict[str, dict[str, Any]]:
        run = stage.servers.enter_context
        secure = run(Server(misbehaving, tls=stage.authority.server_context(name("faults"), name("stranger"))))
        plain = run(Server(misbehaving))
        stage.servers.callback(misbehaving.over.set)
        return {
            name("faults"): stage.pin(secure.port),
            name("stranger"): stage.pin(secure.port, ca="other.pem"),
            name("renamed"): stage.pin(secure.port),
            name("expired"): stage.pin(run(upstreams.well_behaved(expired)).port, ca="expired.pem"),
            name("nobody"): stage.pin(upstreams.nobody(), tls=False),
            name("silent"): stage.pin(run(Silent()).port),
            name("bulk"): stage.pin(plain.port, tls=False),
            gates.NAME: stage.pin(run(gate.server).port, tls=False),
        }

    caller = {"command": ["python", "caller.py", "{task}"], "workspace": "caller"}
    agents = {
        "caller": caller | {"boundary": [{"allow": ["read", "write"], "http": host} for host in (*map(name, HOSTS), gates.NAME)]},
        "thinker": caller | {"models": {"provider": "openai", "allow": ["scripted-*"], "budget": {"tokens": 10_000_000}}},
        "keeper": {"command": ["sh", "work.sh"], "workspace": "odd"},
        "missing": {"command": ["./no-such-program"], "workspace": "caller"},
        "flood": {"command": ["sh", "-c", "yes | head -c 200000000"], "limits": {"wall": "3s"}},
        "stubborn": {"command": ["python", "-c", STUBBORN], "boundary": [{"allow": ["read"], "http": gates.NAME}]},
    }
    files = {
        "caller/caller.py": program("caller.py"),
        "odd/work.sh": WORK,
        "other.pem": Authority.create("another authority").pem,
        "expired.pem": expired_pem,
    }
    with Stage(agents, pins=pins, files=files) as stage:
        yield World(stage, misbehaving, gate, stage.begin("caller", json.dumps([[get("silent", "/")]])))


def get(host: str, path: str, *, scheme: str = "https", **more: Any) -> dict[str, Any]:
    return {"name": f"{host}{path}", "url": f"{scheme}://{name(host)}{path}", "timeout": 60, **more}


def put(host: str, path: str, **more: Any) -> dict[str, Any]:
    return get(host, path, method="PUT", body={"value": "new"}, **more) | {"name": f"PUT {host}{path}"}


CALLS = (
    get("faults", "/hang", timeout=1),
    put("faults", "/hang", timeout=1),
    get("faults", "/reset"),
    put("faults", "/reset"),
    get("faults", "/garbage"),
    get("faults", "/two-lengths"),
    get("faults", "/half-chunk"),
    get("faults", "/half-length"),
    get("faults", "/half-stream"),
    get("faults", "/redirect"),
    get("stranger", "/"),
    get("renamed", "/"),
    get("expired", "/"),
    get("nobody", "/", scheme="http"),
    get("faults", "/well"),
)


@dataclass(frozen=True, slots=True)
class Told:
    done: Done
    said: dict[str, dict[str, Any]]

    def outcome(self, call: str) -> dict[str, Any]:
        """What the record says became of it."""
        method, _, where = call.rpartition(" ")
        host, _, path = where.partition("/")
        found = [event for event in self.done.of("action.finished") if event["resource"].endswith(f"://{name(host)}/{path}")]
        found = [event for event in found if event["verb"] == ("write" if method else "read")]
        assert len(found) == 1, found
        body: dict[str, Any] = found[0]["body"]
        return body


def tell(done: Done) -> Told:
    assert done.view.status == 0, done.output + done.said
    return Told(done, {line["name"]: line for line in map(json.loads, done.said.splitlines())})


@pytest.fixture(scope="module")
def told(world: World) -> Told:
    """Every call side by side, in one run."""
    return tell(world.stage.run("caller", json.dumps([[call] for call in CALLS])))


@pytest.mark.parametrize(
    ("call", "status", "error"),
    [
        ("faults/reset", 502, "no-answer"),
        ("faults/garbage", 502, "answer-"),
        ("faults/two-lengths", 502, "answer-"),
        ("stranger/", 502, "tls-verification"),
        ("renamed/", 502, "tls-verification"),
        ("expired/", 502, "tls-verification"),
        ("nobody/", 502, "connect-failed"),
    ],
)
def test_an_upstream_that_gives_no_answer(told: Told, call: str, status: int, error: str) -> None:
    """The agent is told that the other side failed, and how, as a problem it can read; the record says the same."""
    check_no_answer(told, call, status, error)


def check_no_answer(told: Told, call: str, status: int, error: str) -> None:
    said = told.said[call]
    assert said["status"] == status, said
    assert said["json"]["type"].endswith(":upstream")
    assert said["json"]["retry"] == "after"
    outcome = told.outcome(call)
    assert outcome["result"] == "failed"
    assert outcome["error"].startswith(error)
    assert "status" not in outcome


@pytest.mark.parametrize("call", ["faults/half-chunk", "faults/half-length", "faults/half-stream"])
def test_half_an_answer_does_not_look_whole(told: Told, call: str) -> None:
    """What had come is handed on, then the connection is cut: the agent's client notices, and the record says that the answer was cut."""
    said = told.said[call]
    assert said["status"] == 200
    assert "IncompleteRead" in said["error"], said
    assert said["text"] in ("a whole piecehalf a piece", "ten bytes.", 'data: {"piece": 1}\n\ndata: {')
    outcome = told.outcome(call)
    assert (outcome["result"], outcome["status"]) == ("answered", 200)
    assert outcome["error"].startswith("answer-cut")


def test_whether_a_write_took_effect_is_not_claimed(told: Told) -> None:
    """A write that was sent and not answered is unknown, to the agent and in the record; a read is only failed."""
    assert told.said["PUT faults/reset"]["status"] == 502
    assert "whether it took effect is not known" in told.said["PUT faults/reset"]["json"]["reason"]
    assert [told.outcome(f"PUT faults/{path}")["result"] for path in ("reset", "hang")] == ["unknown", "unknown"]
    assert [told.outcome(f"faults/{path}")["result"] for path in ("reset", "hang")] == ["failed", "failed"]


def test_an_agent_that_stops_waiting_is_noticed(told: Told) -> None:
    """An upstream that never answers holds the agent for as long as the agent wants; its leaving ends the exchange."""
    assert "timed out" in told.said["faults/hang"]["error"]
    assert told.outcome("faults/hang")["error"] == "agent-gone"
    assert told.outcome("faults/hang")["duration_ms"] < 30_000


def test_a_redirect_to_a_private_address_is_only_handed_on(told: Told) -> None:
    """We follow nothing: the agent gets the 302, and no action towards its target was made."""
    said = told.said["faults/redirect"]
    assert (said["status"], said["fields"]["location"]) == (302, upstreams.PRIVATE)
    assert not any("10.0.0.1" in resource for _, resource, _ in decided(told.done.events))


def test_one_fault_is_not_another_calls(told: Told, world: World) -> None:
    """Beside all of that a good call is answered, nothing was sent twice, and the worker is the one that was there before."""
    assert told.said["faults/well"]["json"] == {"well": "behaved"}
    arrived = [(request.method, request.path) for request in world.misbehaving.asked]
    assert arrived.count(("PUT", "/reset")) == arrived.count(("PUT", "/hang")) == 1
    assert [event for event in world.stage.events() if event["kind"] == "process.ended"] == []


MODEL_TOLD = {  # by fault: the status, and what the client's own error says
    "scripted-half-chunk": (200, "IncompleteRead"),
    "scripted-hang": (None, "timed out"),
    "scripted-hang-midway": (200, "timed out"),
    "scripted-reset": (502, None),
    "scripted-reset-midway": (200, "IncompleteRead"),
    "scripted-garbage": (502, None),
    "scripted-endless": (200, None),
    "scripted-429": (429, None),
    "scripted-500": (500, None),
}


MODEL_RECORDED = {  # by fault: the outcome's error
    "scripted-half-chunk": "answer-cut",
    "scripted-hang": "agent-gone",
    "scripted-hang-midway": "agent-gone",
    "scripted-reset": "no-answer",
    "scripted-reset-midway": "answer-cut",
    "scripted-garbage": "answer-not-http",
    "scripted-endless": "agent-gone",
}


@pytest.fixture(scope="module")
def thought(world: World) -> Told:
    def call(model: str) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 100}
        return {"name": model, "method": "POST", "url": MODEL_URL, "body": body, "timeout": 2, "read": 4 * MIB}

    return tell(world.stage.run("thinker", json.dumps([[call(model)] for model in FAULTS])))


@pytest.mark.parametrize("model", FAULTS)
def test_a_model_server_that_fails(thought: Told, model: str) -> None:
    """The model's client sees its provider's own errors, ours in their shape, a cut where it was cut; the record has an outcome for each, and never calls
    an answer complete that was not."""
    said, (status, error) = thought.said[model], MODEL_TOLD[model]
    assert said.get("status") == status, said
    assert (error in said["error"]) if error else "error" not in said
    if status == 502:
        assert said["json"]["error"]["type"] == "server_error"
        assert said["json"]["error"]["code"] == "bailiwick_upstream"
    if status == 429:
        assert said["fields"]["retry-after"] == "1"
    (finished,) = [event for event in thought.done.of("action.finished") if event["resource"] == f"openai/{model}"]
    assert not finished["body"].get("usage", {}).get("complete")
    assert finished["body"].get("status") == (status if status != 502 else None)
    assert finished["body"]["result"] == ("failed" if status in (None, 502) else "answered")
    assert finished["body"].get("error", "").partition(":")[0] == MODEL_RECORDED.get(model, "")


def rss(stage: Stage, process: str = "gateway-0") -> int:
    """Resident bytes of a process of ours."""
    text = Path(f"/proc/{stage.pids()[process]}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024


def test_a_body_without_end_is_carried_in_bounded_memory(world: World) -> None:
    """200 MB of an endless answer flow through a worker whose memory stays where it was."""
    stage = world.stage
    before, sent = rss(stage), world.misbehaving.sent
    highest = before
    run = stage.begin("caller", json.dumps([[get("bulk", "/endless", scheme="http", read=BULK_BYTES)]]))

    def over() -> bool:
        nonlocal highest
        highest = max(highest, rss(stage))
        return stage.view(run).state == "ended"

    stage.wait(over, "the end of the run", 60)
    done = Done(stage.view(run), 0, "", stage.events(run))
    (said,) = map(json.loads, done.said.splitlines())
    assert said["bytes"] >= BULK_BYTES
    assert world.misbehaving.sent - sent >= BULK_BYTES
    assert highest - before < GROWTH_BYTES_MAX, f"{(highest - before) / MIB:.1f} MiB more"
    (finished,) = done.of("action.finished")
    assert finished["body"]["answer_bytes"] >= BULK_BYTES
    assert (finished["body"]["result"], finished["body"]["error"]) == ("answered", "agent-gone")


def test_an_agent_that_reads_slowly_slows_its_upstream(world: World) -> None:
    """While the agent reads nothing, the upstream can soon send nothing more, and the worker keeps little of it; when it reads on, everything is there."""
    stage, sent = world.stage, world.misbehaving.sent
    before = rss(stage)
    step = get("bulk", "/endless", scheme="http", read=20 * MIB, pause=world.gate.url("slow"))
    run = stage.begin("caller", json.dumps([[step]]))
    world.gate.wait_arrived("slow")
    seen: list[int] = []

    def still() -> bool:
        seen.append(world.misbehaving.sent - sent)
        return len(seen) > 25 and len(set(seen[-25:])) == 1

    stage.wait(still, "an upstream that sends no more")
    assert seen[-1] < 16 * MIB, "of which most lies in the kernel's buffers"
    assert rss(stage) - before < GROWTH_BYTES_MAX
    world.gate.open("slow")
    done = stage.wait_ended(run)
    assert json.loads(done.said)["bytes"] >= 20 * MIB


def test_an_odd_workspace_comes_in_and_goes_back_safely(world: World) -> None:
    """Links stay links, pipes, sockets and devices stay out, names need not be UTF-8; what comes back is applied byte for byte, and what could act or lead
    out is refused by name."""
    stage, odd = world.stage, world.stage.directory / "odd"
    cafe, new = os.fsencode(odd) + b"/caf\xe9.txt", os.fsencode(odd) + b"/new-\xff"
    (odd / "plain.txt").write_text("plain\n")
    Path(os.fsdecode(cafe)).write_text("au lait\n")
    (odd / "inner").symlink_to("plain.txt")
    (odd / "leading-out").symlink_to(stage.directory / "bailiwick.yaml")
    os.mkfifo(odd / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(odd / "socket"))
    if os.getuid() == 0:
        os.mknod(odd / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    done = stage.run("keeper", "work")
    assert done.status == 0, done.output + done.said
    assert done.said == "plain\nnothing there\nno device made\n5\n"  # the two files, the two links, and the script
    (back,) = done.of("run.workspace")
    refused = {reason.partition(":")[0]: reason.partition(": ")[2] for reason in back["body"]["refused"]}
    expected = {"fifo", "socket", "pipe", "out", "plain.txt"} | ({"null"} if os.getuid() == 0 else set())
    assert set(refused) == expected, refused
    assert "lead out" in refused["out"]
    shown = stage.cli("diff", done.view.run, check=True)
    assert "+changed" in shown.stdout
    stage.cli("apply", done.view.run, "--yes", check=True)
    assert Path(os.fsdecode(cafe)).read_text() == "au lait\nchanged\n"
    assert Path(os.fsdecode(new)).read_text() == "new\n"
    assert (odd / "in").readlink() == Path("plain.txt")
    assert not (odd / "out").is_symlink()
    assert not (odd / "plain.txt").stat().st_mode & stat.S_ISUID
    assert stat.S_ISFIFO((odd / "fifo").stat().st_mode), "what was not taken in is still there"


def test_a_program_that_is_nowhere_inside(world: World) -> None:
    """A command that only the sandbox could know, and does not have, is refused with the reason; nothing of it is left."""
    done = world.stage.run("missing", "do")
    assert (done.view.cause, done.view.status, done.status) == ("refused", None, 4)
    assert "'./no-such-program' is not found in the sandbox" in done.view.detail
    assert done.of("run.started") == []
    assert world.stage.left(done.view.run) == []


def test_a_flood_of_output_is_bounded(world: World) -> None:
    """An agent that writes without end waits for the record, which takes a quarter of a megabyte a second; what is recorded is whole, in order, and ends
    with the run."""
    done = world.stage.run("flood", "say yes")
    assert done.view.cause == "wall"
    output = done.said
    assert MIB <= len(output) < 8 * MIB
    assert output.replace("y\n", "") in ("", "y")
    assert world.stage.cli("ps", check=True).returncode == 0
    assert world.stage.left(done.view.run) == []


def test_a_flood_of_bad_requests_is_counted(world: World) -> None:
    """What is refused before it is an action is recorded at a bounded rate; how much was not written is, so that none is forgotten."""
    run = world.stage.begin("stubborn", "try")
    world.gate.wait_arrived("tired")
    tired = time.monotonic()
    world.stage.wait(lambda: time.monotonic() > tired + 0.5, "time enough to have another one written")
    world.gate.open("tired")
    refused = world.stage.wait_ended(run).of("attempt.refused")
    assert {event["body"]["what"] for event in refused} == {refused[0]["body"]["what"]}
    assert 64 <= len(refused) < STUBBORN_TRIES / 2
    assert len(refused) + sum(event["body"].get("suppressed", 0) for event in refused) == STUBBORN_TRIES + 1


def test_an_upstream_that_does_not_even_shake_hands(world: World) -> None:
    """The time to connect is bounded: the agent is told after ten seconds, and nothing else waited for it."""
    told = tell(world.stage.wait_ended(world.silent))
    check_no_answer(told, "silent/", 504, "connect-timeout")
    assert 9_000 < told.outcome("silent/")["duration_ms"] < 15_000
