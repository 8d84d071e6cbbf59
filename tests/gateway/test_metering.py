import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Answer, Neighbourhood, Upstream, neighbourhood, read_request

from bailiwick.broker.messages import LeasesUsed, LeaseUse
from bailiwick.critic.enforcement import BudgetLimits, ModelRoute, Usage
from bailiwick.critic.rules import ModelRules
from bailiwick.gateway import metering, pricing
from bailiwick.gateway.models import ModelCall

SECRET = b"s3cr3t-token-value"
ROUTE = ModelRoute(provider="openai", dialect="openai", host="api.openai.test")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


async def models(place: Neighbourhood, upstream: Upstream) -> Upstream:
    place.models = [ROUTE]
    place.model_rules = ModelRules.model_validate({"provider": "openai", "allow": ["gpt-5.2"]})
    return await place.pin("api.openai.test", upstream, tls=True)


def body(**more: Any) -> bytes:
    return json.dumps({"model": "gpt-5.2", "messages": [{"role": "user", "content": "hello"}], **more}).encode()


async def call(place: Neighbourhood, path: str = "/v1/chat/completions", **more: Any) -> Answer:
    wire = await place.dial("198.18.0.2", 80)
    content = body(**more)
    return await wire.ask(f"POST /openai{path} HTTP/1.1\r\nHost: 198.18.0.2\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)


def stream(*pieces: bytes, end: bool = True) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces
    ) + (b"0\r\n\r\n" if end else b"")  # fmt: skip


def delta(**content: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": "gpt-5.2", "choices": [{"index": 0, "delta": content, "finish_reason": None}]}).encode() + b"\n\n"


def completion(prompt: int, written: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    content = json.dumps({"id": "c", "object": "chat.completion", "model": "gpt-5.2", "usage": usage, "choices": [choice]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content) + content


async def test_what_a_model_echoes_of_a_credential_is_in_no_record(tmp_path: Path) -> None:
    """Tool calls are recorded from what the agent was given: scrubbed, even where the secret comes in pieces, or held back to the end."""
    tool = {"index": 0, "id": "t", "type": "function", "function": {"name": "post", "arguments": json.dumps({"key": SECRET.decode(), "at": "x"})}}
    echoed = delta(tool_calls=[tool])
    at = echoed.index(SECRET) + 6
    async with neighbourhood(tmp_path) as place:
        upstream = Upstream(answers=[stream(echoed[:at], echoed[at:], b"data: [DONE]\n\n: " + SECRET[:7])])
        await models(place, upstream)
        encoded = [base64.b64encode(part).decode() for part in (b"Bearer " + SECRET, SECRET)]
        place.broker.lent["api.openai.test"] = LeasesUsed(uses=[LeaseUse("lease-1", "openai-key", "authorization", *encoded)])
        place.leased = ["api.openai.test"]
        place.reopen()
        answer = await call(place, stream=True)
        assert SECRET not in answer.body
        outcome = (await place.finished())[0]
        assert outcome.body["usage"]["tool_calls"][0]["name"] == "post"
        assert all(SECRET.decode() not in str(event) for event in place.recorder.events)
        assert outcome.body["usage"]["complete"] is True


async def test_a_credential_is_taken_out_of_every_part_of_a_head(tmp_path: Path) -> None:
    """The reason phrase and the names of fields are places for an echo as well."""
    async with neighbourhood(tmp_path, {"allow": ["read"], "http": "config.internal"}) as place:
        echo = b"HTTP/1.1 200 got %b\r\nContent-Length: 0\r\nX-%b: 1\r\nX-Other: 2\r\n\r\n" % (SECRET, SECRET)
        await place.pin("config.internal", Upstream(answers=[echo]), tls=True)
        encoded = [base64.b64encode(part).decode() for part in (b"Bearer " + SECRET, SECRET)]
        place.broker.lent["config.internal"] = LeasesUsed(uses=[LeaseUse("lease-1", "token", "authorization", *encoded)])
        place.leased = ["config.internal"]
        place.reopen()
        wire = await place.dial_tls("config.internal")
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert SECRET not in answer.head
        assert (answer.status, answer.fields["x-other"]) == (200, "2")


async def test_an_agent_reads_its_answer_before_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting costs the agent no time: its bytes are written first."""
    order: list[str] = []
    async with neighbourhood(tmp_path) as place:
        await models(place, Upstream(answers=[completion(7, 3)]))
        from bailiwick.gateway.connection import AgentConnection
        from bailiwick.gateway.usage import UsageTap

        write, feed = AgentConnection.write, UsageTap.feed
        monkeypatch.setattr(AgentConnection, "write", lambda self, data: (order.append("write"), write(self, data))[1])
        monkeypatch.setattr(UsageTap, "feed", lambda self, data: (order.append("tap"), feed(self, data))[1])
        assert (await call(place, max_tokens=10)).status == 200
        assert order[:2] == ["write", "tap"]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_call_that_broke_off_is_charged_its_ceiling(tmp_path: Path, begun: bool) -> None:
    """An answer that is cut, or never comes, may have cost all that was set aside; the record says what was told and what was charged."""

    async def break_off(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if begun:
            writer.write(stream(delta(content="hi"), end=False))
            await writer.drain()

    async with neighbourhood(tmp_path, budget=BudgetLimits(tokens=100_000)) as place:
        await models(place, Upstream(handler=break_off))
        wire = await place.dial("198.18.0.2", 80)
        content = body(max_tokens=500, stream=True)
        wire.send(b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 198.18.0.2\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await place.finished()
        ceiling = len(content) + 1_000
        assert place.run.used.tokens == ceiling + 500
        assert place.run.used.microusd == pricing.ceiling_microusd("openai", "gpt-5.2", ceiling, 500)
        usage = (await place.finished())[0].body["usage"]
        assert (usage["complete"], usage["charged_output_tokens"]) == (False, 500)


async def test_a_call_that_the_provider_refuses_is_charged_nothing_but_a_call(tmp_path: Path) -> None:
    """An error answer used no tokens."""
    async with neighbourhood(tmp_path, budget=BudgetLimits(tokens=100_000)) as place:
        await models(place, Upstream(answers=[b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"]))
        assert (await call(place)).status == 429
        await place.finished()
        assert (place.run.used.calls, place.run.used.tokens, place.run.budget.reserved.tokens) == (1, 0, 0)


async def test_a_small_budget_serves_a_call_that_states_no_bound(tmp_path: Path) -> None:
    """What is left is set aside, less than the 128,000 tokens a model writes at most; the call after the last token is refused, unsent."""
    async with neighbourhood(tmp_path, budget=BudgetLimits(tokens=5_000, microusd=50_000)) as place:
        upstream = await models(place, Upstream(answers=[completion(2_000, 1_000), completion(900, 2_000)]))
        assert (await call(place)).status == 200
        await place.finished()
        assert (await call(place)).status == 200
        await place.finished(2)
        assert place.run.used.tokens == 5_900  # passed, by less than one call
        refused = await call(place)
        assert json.loads(refused.body)["error"]["bailiwick"]["rule"] == "budget/tokens"
        assert len(upstream.requests) == 2


async def test_an_observed_call_is_counted(tmp_path: Path) -> None:
    """What is forwarded although the boundary would deny it, or the budget, is on the bill all the same."""
    async with neighbourhood(tmp_path, observe=True, budget=BudgetLimits(tokens=10)) as place:
        await models(place, Upstream(answers=[completion(2_000, 1_000)]))
        assert (await call(place)).status == 200
        outcome = (await place.finished())[0]
        assert (outcome.input_tokens, outcome.output_tokens) == (2_000, 1_000)
        assert (place.run.used.calls, place.run.used.tokens) == (1, 3_000)


def asked(**more: Any) -> ModelCall:
    return ModelCall(**({"model": "gpt-5.2", "stream": False, "input_tokens_ceiling": 1_000, "output_tokens_ceiling": 128_000} | more))


async def test_what_is_set_aside(tmp_path: Path) -> None:
    """The ceiling where it is stated or fits, what is left where it is not; the input must fit with a token to answer; a tier has its price; what the
    provider stores counts as read again."""
    price = pricing.ceiling_microusd
    async with neighbourhood(tmp_path) as place:

        def ceiling(limits: BudgetLimits, call: ModelCall, used: int = 0) -> tuple[int, int] | str:
            place.budget = limits
            from bailiwick.critic.budget import Budget, Reservation

            place.run.budget = Budget(limits, Usage(tokens=used))
            bounded, reserved = metering.reserve(place.run, ROUTE, call, egress_bytes=0)
            if not isinstance(reserved, Reservation):
                return reserved.rules[0]
            assert reserved.ceiling.tokens == bounded.input_tokens_ceiling + bounded.output_tokens_ceiling
            return reserved.ceiling.tokens, reserved.ceiling.microusd

        open_ended = asked(output_stated=False)
        assert ceiling(BudgetLimits(), open_ended) == (129_000, price("openai", "gpt-5.2", 1_000, 128_000))
        assert ceiling(BudgetLimits(tokens=50_000), open_ended) == (50_000, price("openai", "gpt-5.2", 1_000, 49_000))
        assert ceiling(BudgetLimits(tokens=50_000, microusd=20_000), open_ended) == (50_000, 20_000)
        assert ceiling(BudgetLimits(tokens=50_000), open_ended, used=48_999) == (1_001, price("openai", "gpt-5.2", 1_000, 1))
        assert ceiling(BudgetLimits(tokens=50_000), open_ended, used=49_000) == "budget/tokens"
        assert ceiling(BudgetLimits(microusd=price("openai", "gpt-5.2", 1_000, 0)), open_ended) == "budget/microusd"
        assert ceiling(BudgetLimits(tokens=50_000), asked()) == "budget/tokens"  # it may write what it says
        fast = price("openai", "gpt-5.2", 1_000, 128_000, service_tier="priority")
        assert ceiling(BudgetLimits(), asked(service_tier="priority")) == (129_000, fast)
        assert fast > price("openai", "gpt-5.2", 1_000, 128_000)
        assert ceiling(BudgetLimits(), asked(stored_context=True), used=7_000) == (136_000, price("openai", "gpt-5.2", 8_000, 128_000))


async def test_a_body_of_no_stated_length_passes_no_bound_on_what_is_sent(tmp_path: Path) -> None:
    """A chunked upload is measured before a byte of it leaves, where bytes are bounded."""
    async with neighbourhood(tmp_path, {"allow": ["write"], "http": "config.internal"}, budget=BudgetLimits(egress_bytes=1_000)) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        head = b"POST / HTTP/1.1\r\nHost: config.internal\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await wire.ask(head + b"258\r\n" + bytes(600) + b"\r\n0\r\n\r\n")).status == 200
        refused = await wire.ask(head + b"258\r\n" + bytes(600) + b"\r\n0\r\n\r\n")
        assert (refused.status, json.loads(refused.body)["rule"]) == (403, "budget/egress_bytes")
        assert len(upstream.requests) == 1
        assert b"content-length: 600" in upstream.requests[0]
        await place.finished()
        assert place.run.used.egress_bytes == len(upstream.requests[0])


async def test_a_head_is_sent_as_a_body_is(tmp_path: Path) -> None:
    """Bytes leave in a path, a query and fields as well: they are set aside before, counted after, and stand in the record, where a restart reads them."""
    async with neighbourhood(tmp_path, {"allow": ["read"], "http": "config.internal"}, budget=BudgetLimits(egress_bytes=3_000)) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        raw = b"GET /?%b HTTP/1.1\r\nHost: config.internal\r\nX-Said: %b\r\n\r\n" % (b"q" * 600, b"f" * 600)
        assert [(await wire.ask(raw)).status for _ in range(2)] == [200, 200]
        refused = await wire.ask(raw)
        assert (refused.status, json.loads(refused.body)["rule"]) == (403, "budget/egress_bytes")
        outcomes = await place.finished(2)
        sent = [len(request) for request in upstream.requests]
        assert [outcome.body["request_bytes"] for outcome in outcomes] == sent
        assert place.run.used.egress_bytes == sum(sent) > 2_400
