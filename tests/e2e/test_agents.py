"""Agents that nobody here wrote, as they come from the registry, sealed: they do their work, and the record, the servers and the workspace agree on it."""

import getpass
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.stage import CONFIG, Stage, decided, positions, program
from tests.e2e.world import agents

from bailiwick.broker.inject import PLACEHOLDER
from bailiwick.cli.demo.scripts import Answer, ToolCall, in_order, say
from bailiwick.cli.demo.web import Request, Response, Server

pytest.importorskip("minisweagent", reason="needs mini-swe-agent")
pytest.importorskip("agents", reason="needs openai-agents")
pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

LEVEL = "/v1/staging/level"
EDIT = "sed -i s/low/high/ settings.ini"
CALL = f"""curl -sS -X PUT -H 'content-type: application/json' -d '{{"value": "high"}}' https://{CONFIG}{LEVEL}"""
ORDERS = "orders.internal"


class Orders:
    """An API of orders: what was asked of it, and with which credential."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        if request.method == "POST":
            return Response.json(201, {"refunded": json.loads(request.body)["amount"]})
        return Response.json(200, {"order": request.path.rpartition("/")[2], "state": "paid"})


ORDERS_API = Orders()


def serve_orders(stage: Stage) -> dict[str, dict[str, Any]]:
    server = stage.servers.enter_context(Server(ORDERS_API, tls=stage.authority.server_context(ORDERS)))
    return {ORDERS: stage.pin(server.port)}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    command, environment = agents.mini_swe_agent("{task}", model="openai/gpt-5.2")
    openai = {"provider": "openai", "allow": ["gpt-5.2"], "budget": {"tokens": 1_000_000, "usd": 20}}
    anthropic = {"provider": "anthropic", "allow": ["claude-sonnet-4-5"], "budget": {"tokens": 1_000_000}}
    staging = {"allow": ["read", "write"], "http": CONFIG, "path": "/v1/staging/**"}
    held = {"hold": ["write"], "http": ORDERS, "path": "/v1/orders/*/refunds", "approvers": ["oncall"], "wait": "1m"}
    declared = {
        "engineer": {
            "command": [*command[:-1], "/tmp/trajectory.json"],
            "environment": environment | {"MSWEA_GLOBAL_CONFIG_DIR": "/tmp/mini"},
            "workspace": "project",
            "models": openai,
            "boundary": [staging],
        },
        "clerk": {
            "command": ["python", "clerk.py", "{task}"],
            "workspace": "clerk",
            "models": openai,
            "boundary": [{"allow": ["read"], "http": ORDERS}, held],
        },
        "asker": {
            "command": ["python", "asker.py", "{task}"],
            "workspace": "asker",
            "environment": {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            "models": anthropic,
        },
    }
    files = {"project/settings.ini": "level = low\n", "clerk/clerk.py": program("clerk.py"), "asker/asker.py": program("asker.py")}
    more = {"approvers": {"oncall": {"operators": [getpass.getuser()]}}}
    with Stage(declared, pins=serve_orders, files=files, more=more) as made:
        yield made


def model_calls(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == "action.finished" and event["verb"] == "call-model"]


def tools_called(events: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The model's tool calls as the record has them."""
    calls = [call for event in model_calls(events) for call in event["body"]["usage"].get("tool_calls", [])]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def test_mini_swe_agent_does_its_work(stage: Stage) -> None:
    """It edits a file and calls an API. Each model call stands in the record with its tokens, its cost and its tool calls; the write's intent before its
    outcome; and nothing else was tried."""
    stage.model.follow("gpt-5.2", agents.engineer(EDIT, CALL))
    done = stage.run("engineer", "Raise the level.", seconds_max=100)
    assert done.status == 0, done.output + done.said

    url = f"https://{CONFIG}{LEVEL}"
    actions = decided(done.events)
    assert [(verb, decision) for verb, _, decision in actions] == [("call-model", "allow")] * 2 + [("write", "allow")] + [("call-model", "allow")]
    assert actions[2][1] == url
    assert {resource for verb, resource, _ in actions if verb == "call-model"} == {"openai/gpt-5.2"}
    assert done.of("attempt.refused") == []
    assert done.of("name.asked") == []  # it went by the proxy and by the model's base URL

    intent = positions(done.events, "action.decided", verb="write", resource=url)
    outcome = positions(done.events, "action.finished", verb="write", resource=url, status=201)
    assert len(intent) == len(outcome) == 1
    assert intent < outcome
    assert done.events[outcome[0]]["credential"] == "config-token"

    calls = model_calls(done.events)
    assert [call["model"] for call in calls] == ["gpt-5.2"] * 3
    assert all(call["input_tokens"] > 0 and call["output_tokens"] > 0 and call["cost_microusd"] > 0 for call in calls)
    assert all(call["body"]["usage"]["complete"] for call in calls)
    assert tools_called(done.events) == [("bash", {"command": EDIT}), ("bash", {"command": CALL}), ("bash", {"command": agents.SUBMIT})]
    assert stage.view(done.view.run).tokens == sum(call["input_tokens"] + call["output_tokens"] for call in calls)


def test_the_servers_saw_keys_and_no_placeholder(stage: Stage) -> None:
    """What arrived at the model and at the service carries the injected key; the placeholder the agent held stands nowhere in it."""
    assert {seen.credential for seen in stage.model.seen} == {"right"}
    for request in stage.model.requests:
        assert PLACEHOLDER not in json.dumps(dict(request.fields)) + request.body.decode()
    (arrival,) = stage.arrived("PUT", LEVEL)
    assert (arrival.authorised, arrival.changed) == (True, True)
    assert arrival.token_sha256 == hashlib.sha256(stage.keys.configuration.encode()).hexdigest()
    written = b"".join(path.read_bytes() for path in sorted(stage.layout.root.rglob("*")) if path.is_file())
    assert b"run.requested" in written, "the record is among it"
    assert stage.keys.model.encode() not in written
    assert stage.keys.configuration.encode() not in written


def test_its_changes_come_back_when_the_operator_says_so(stage: Stage) -> None:
    """`diff` shows the one file it changed, the operator's directory is untouched until `apply`, and that stands in the record."""
    settings = stage.directory / "project" / "settings.ini"
    run = next(event["run"] for event in stage.events() if event["kind"] == "run.requested" and event["agent"] == "engineer")
    assert settings.read_text() == "level = low\n"
    shown = stage.cli("diff", run, check=True)
    assert re.findall(r"^[-+]\w.*$", shown.stdout, re.MULTILINE) == ["-level = low", "+level = high"]
    assert shown.stderr.split()[:2] == ["M", "settings.ini"]
    stage.cli("apply", run, "--yes", check=True)
    assert settings.read_text() == "level = high\n"
    assert positions(stage.events(run), "run.applied", directory=str(settings.parent))


def test_openai_agents_uses_its_tools(stage: Stage) -> None:
    """One tool reads; the other's POST waits for a person and arrives once, after the signature. Streamed over the Responses API."""
    script = (
        Answer(calls=(ToolCall("look_up", {"order": "17"}),)),
        Answer("It is paid, so I pay it back.", (ToolCall("refund", {"order": "17", "amount": 40}),)),
        say("Order 17 is paid back."),
    )
    stage.model.follow("gpt-5.2", in_order(*script))
    done = stage.run("clerk", "Pay order 17 back.", approve=True, seconds_max=100)
    assert done.status == 0, done.output + done.said
    assert done.said.endswith("Order 17 is paid back.\n")
    assert int(done.said.split()[0]) > 20, "it was streamed"

    order, refund = f"https://{ORDERS}/v1/orders/17", f"https://{ORDERS}/v1/orders/17/refunds"
    effects = [(verb, resource, decision) for verb, resource, decision in decided(done.events) if verb != "call-model"]
    assert effects == [("read", order, "allow"), ("write", refund, "hold"), ("write", refund, "allow")]
    steps = ("hold.opened", "hold.signed", "hold.redeemed")
    places = [positions(done.events, kind) for kind in steps] + [positions(done.events, "action.finished", resource=refund, status=201)]
    assert [len(found) for found in places] == [1, 1, 1, 1]
    assert places == sorted(places)
    assert [(request.method, request.path) for request in ORDERS_API.asked] == [("GET", "/v1/orders/17"), ("POST", "/v1/orders/17/refunds")]
    assert tools_called(done.events) == [("look_up", {"order": "17"}), ("refund", {"order": "17", "amount": 40})]
    assert all(event["body"]["usage"]["complete"] and event["cost_microusd"] > 0 for event in model_calls(done.events))
    assert [seen.path for seen in stage.model.seen][-3:] == ["/v1/responses"] * 3
    assert done.of("attempt.refused") == []


def test_anthropic_is_spoken_too(stage: Stage) -> None:
    """By ANTHROPIC_BASE_URL, whole and streaming: the key goes into its own field, and usage and tool calls are read from either form."""
    stage.model.follow("claude-sonnet-4-5", in_order(Answer("Let me look.", (ToolCall("look", {"at": "door"}),))))
    done = stage.run("asker", "What is behind the door?", seconds_max=100)
    assert done.status == 0, done.output + done.said
    assert done.said == 'whole: Let me look.\nstreamed: Let me look. | look {"at": "door"}\n'
    calls = model_calls(done.events)
    assert [call["body"]["status"] for call in calls] == [200, 200]
    assert len({(call["input_tokens"] > 0, call["output_tokens"], call["cost_microusd"] > 0) for call in calls}) == 1
    assert tools_called(done.events) == [("look", {"at": "door"})] * 2
    assert {event["body"]["usage"]["stop_reason"] for event in calls} == {"tool_use"}
    arrived = [request for request in stage.model.requests if request.path == "/v1/messages"]
    assert [request.fields["x-api-key"] == stage.keys.model for request in arrived] == [True, True]
    assert all(PLACEHOLDER not in json.dumps(dict(request.fields)) for request in arrived)
    assert {event["resource"] for event in calls} == {"anthropic/claude-sonnet-4-5"}
    assert done.of("attempt.refused") == []
