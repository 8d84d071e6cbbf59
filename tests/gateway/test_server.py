import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, neighbourhood, read_request

from bailiwick.broker.messages import LeasesUsed, LeaseUse
from bailiwick.critic.enforcement import BudgetLimits, HoldSettled, ModelRoute
from bailiwick.critic.rules import ModelRules
from bailiwick.gateway import exchange as exchange_module
from bailiwick.gateway import runs
from bailiwick.kernel import limits

CONFIG = {"allow": ["read", "write", "delete"], "http": "config.internal"}
HELD = {"hold": ["write"], "http": "config.internal", "approvers": ["oncall"], "wait": "10m"}
GET = b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n"
PUT = b"PUT /v1 HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 3\r\n\r\nabc"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as the worker runs


async def test_an_allowed_read_is_forwarded_and_recorded(tmp_path: Path) -> None:
    """An allowed read reaches the pinned upstream; its intent and its outcome stand in the record, in that order."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(b"GET /v1/thing?x=1 HTTP/1.1\r\nHost: config.internal\r\nAccept: */*\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        assert upstream.requests == [b"GET /v1/thing?x=1 HTTP/1.1\r\nhost: config.internal\r\naccept: */*\r\n\r\n"]
        await place.finished()
        assert [event.kind for event in place.recorder.events] == ["action.decided", "action.finished"]
        assert place.recorder.events[0].decision == "allow"
        assert place.recorder.events[1].body["status"] == 200
        assert place.recorder.events[1].body["result"] == "answered"


async def test_a_tls_read_is_intercepted_and_verified(tmp_path: Path) -> None:
    """TLS ends at the gateway with a leaf of the sandbox's authority, and begins again towards an upstream that is verified for the same name."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", tls=True)
        wire = await place.dial_tls("config.internal")
        answer = await wire.ask(GET)
        assert (answer.status, answer.body) == (200, b"ok")
        assert (await wire.ask(GET)).status == 200
        assert upstream.connections == 1


async def test_nothing_is_allowed_by_default(tmp_path: Path) -> None:
    """What no rule allows is denied with words for the agent, recorded, and reaches nobody; the connection stays in step."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("stranger.example")
        wire = await place.dial("stranger.example", 80)
        answer = await wire.ask(b"POST /x HTTP/1.1\r\nHost: stranger.example\r\nContent-Length: 3\r\n\r\nabc")
        assert answer.status == 403
        assert b"do not try to reach the same effect another way" in answer.body
        assert upstream.connections == 0
        assert [event.decision for event in place.recorder.of("action.decided")] == ["deny"]
        assert (await wire.ask(b"GET /x HTTP/1.1\r\nHost: stranger.example\r\n\r\n")).status == 403
        assert place.recorder.of("action.finished") == []


async def test_an_effect_waits_for_its_intent(tmp_path: Path) -> None:
    """Nothing of a write reaches the upstream before its intent is durable."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.recorder.gate = asyncio.Event()
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: len(place.tasks) == 1)
        assert upstream.connections == 0
        place.recorder.gate.set()
        assert (await wire.answer()).status == 200
        assert upstream.requests == [b"PUT /v1 HTTP/1.1\r\nhost: config.internal\r\ncontent-length: 3\r\n\r\nabc"]
        assert place.recorder.durable[0].kind == "action.decided"
        outcome = (await place.finished())[0]
        assert outcome.body["request_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


async def test_an_agent_that_left_before_the_intent_was_durable_sends_nothing(tmp_path: Path) -> None:
    """Whoever no longer waits has no effect; the outcome says that it failed, for the intent is on file."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.recorder.gate = asyncio.Event()
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: len(place.tasks) == 1)
        wire.close()
        await place.until(lambda: not place.run.connections)
        assert len(await place.finished()) == 1  # whether or not the commit comes
        place.recorder.gate.set()
        outcome = (await place.finished())[0]
        assert (outcome.body["result"], outcome.body["error"]) == ("failed", "agent-gone")
        assert upstream.connections == 0


@pytest.mark.parametrize(
    ("part", "kill"),
    [
        ("recorder", lambda place: setattr(place.recorder, "healthy", False)),
        ("governor", lambda place: setattr(place.governor, "fresh", False)),
        ("critic", lambda place: setattr(place.run, "critic", None)),
    ],
)
async def test_a_dead_part_denies_and_is_named(tmp_path: Path, part: str, kill: Callable[[Neighbourhood], None]) -> None:
    """Fail closed: the answer names the dead part, and nothing is forwarded."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        kill(place)
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(GET)
        assert answer.status == 503
        assert json.loads(answer.body)["rule"] == f"bailiwick.{part}"
        assert upstream.connections == 0


async def test_a_recorder_that_dies_between_decision_and_intent_denies(tmp_path: Path) -> None:
    """No durable intent, no effect."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.recorder.gate = asyncio.Event()
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: len(place.tasks) == 1)
        place.recorder.healthy = False
        place.recorder.gate.set()
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "bailiwick.recorder")
        assert upstream.connections == 0


# -- sign-off


async def test_a_held_write_waits_and_goes_once_granted(tmp_path: Path) -> None:
    """A Hold shows the body whole, parks the request, and forwards exactly those bytes after a grant, which is used up before."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        assert place.governor.opened[0].body_text == "abc"
        assert place.governor.opened[0].shown["body"]["size"] == 3
        assert upstream.connections == 0
        place.governor.states[hold] = "granted"
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert (await wire.answer()).status == 200
        assert place.run.parked == 0
        assert upstream.requests == [b"PUT /v1 HTTP/1.1\r\nhost: config.internal\r\ncontent-length: 3\r\n\r\nabc"]
        assert [event.decision for event in place.recorder.of("action.decided")] == ["hold", "allow"]
        assert place.recorder.durable[0].body["hold"] == hold
        assert place.governor.states[hold] == "used"


async def test_an_identical_retry_redeems_a_grant_once(tmp_path: Path) -> None:
    """A client that timed out finds its grant with the same bytes, once; other bytes open another hold."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        wire.close()
        await place.until(lambda: place.run.parked == 0)
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert upstream.connections == 0
        wire = await place.dial("config.internal", 80)
        wire.send(PUT.replace(b"abc", b"abd"))
        await place.until(lambda: place.run.parked == 1)
        assert len(place.governor.states) == 2
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(PUT)).status == 200
        answer = await wire.ask(PUT)
        assert (answer.status, json.loads(answer.body)["type"]) == (403, "urn:bailiwick:problem:sign-off-void")
        assert len(upstream.requests) == 1


async def test_a_lost_answer_does_not_lose_the_grant(tmp_path: Path) -> None:
    """The governor used the grant up and nobody heard: asked again for the same action it says so, and the write goes, once."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        place.governor.answers_lost = 2
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert (await wire.answer()).status == 200
        assert (len(upstream.requests), len(place.governor.redeemed), place.governor.answers_lost) == (1, 1, 0)
        assert place.governor.redeemed[0].action == place.recorder.durable[0].action


async def test_a_dead_recorder_uses_no_grant_up(tmp_path: Path) -> None:
    """Everything the action needs is alive when its grant is used; else it stays for the retry."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        place.recorder.healthy = False
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert (await wire.answer()).status == 503
        assert (place.governor.redeemed, upstream.requests) == ([], [])
        place.recorder.healthy = True
        assert (await wire.ask(PUT)).status == 200


@pytest.mark.parametrize(
    ("shown", "sent"),
    [
        (b"X-Amz-Target: DynamoDB.DescribeTable", b"X-Amz-Target: DynamoDB.DeleteTable"),
        (b"Content-Type: multipart/form-data; boundary=AB", b"Content-Type: multipart/form-data; boundary=ab"),
        (b"X-Mine: 1", b"X-Mine: 1\r\nSudo: root"),
        (b"If-Match: 1", b"X-Other: 1"),
        (b"X-Mine: \xff", b"X-Mine: \\xff"),
        (b"X-Mine: a\r\nX-Mine: b", b"X-Mine: b\r\nX-Mine: a"),
        (b"X-Mine: 1", b"X-Mine: 1\r\nConnection: X-Mine"),
        (b"Authorization: Bearer one", b"Authorization: Bearer two"),
    ],
)
async def test_a_grant_is_for_the_fields_that_were_shown(tmp_path: Path, shown: bytes, sent: bytes) -> None:
    """A field decides what many an API does: a retry with another one, under the same body, is another action and waits for its own sign-off."""

    def put(field: bytes) -> bytes:
        return PUT.replace(b"Content-Length", b"%b\r\nUser-Agent: %d\r\nContent-Length" % (field, len(place.governor.opened)))

    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        first = await place.dial("config.internal", 80)
        first.send(put(shown))
        await place.until(lambda: place.run.parked == 1)
        first.close()
        await place.until(lambda: place.run.parked == 0)
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        other = await place.dial("config.internal", 80)
        other.send(put(sent))
        await place.until(lambda: place.run.parked == 1)
        assert (len(place.governor.states), upstream.requests) == (2, [])
        again = await place.dial("config.internal", 80)
        assert (await again.ask(put(shown))).status == 200
        assert all(line.lower() in upstream.requests[0].lower() for line in shown.split(b"\r\n"))
        assert b"Bearer" not in str(place.governor.opened[0].shown).encode()


async def test_a_credential_of_the_agent_s_own_is_not_signed_where_it_is_not_sent(tmp_path: Path) -> None:
    """Where the broker lends, what the agent brought is stripped: it is neither shown nor part of the digest, so that a rotated placeholder redeems."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        for number in range(2):
            wire = await place.dial("config.internal", 80)
            wire.send(PUT.replace(b"Content-Length", b"X-API-Key: placeholder-%d\r\nContent-Length" % number))
            await place.until(lambda number=number: len(place.governor.opened) == number + 1)
            for hold in place.governor.states:
                place.governor.states[hold] = "granted"
                place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
            if number:
                answer = await wire.answer()
                assert json.loads(answer.body)["type"] == "urn:bailiwick:problem:sign-off-void"
            else:
                assert (await wire.answer()).status == 200
        assert len(place.governor.states) == 1
        assert b"placeholder" not in upstream.requests[0]


@pytest.mark.parametrize("name", [b"content-type", b"Host", b"Authorization", b"content-length", b"cookie", b"content-encoding", b"X-API-Key"])
async def test_connection_may_not_name_what_is_for_everybody(tmp_path: Path, name: bytes) -> None:
    """Whoever has the next hop drop a field that was decided by would send another request than was decided: refused, whatever the boundary allows."""
    async with neighbourhood(tmp_path, CONFIG, observe=True) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(PUT.replace(b"Content-Length", b"Content-Type: text/plain\r\nConnection: keep-alive,%b\r\nContent-Length" % name))
        assert (answer.status, json.loads(answer.body)["rule"]) == (403, "bailiwick.unclear/connection-option")
        assert upstream.connections == 0
        assert place.recorder.of("attempt.refused")[0].body["what"] == "connection-option"


@pytest.mark.parametrize(("state", "kind"), [("denied", "sign-off-denied"), ("expired", "sign-off-expired"), ("void", "sign-off-void")])
async def test_a_hold_that_is_not_granted_says_how_it_ended(tmp_path: Path, state: str, kind: str) -> None:
    """Denied, expired and void are told apart, and nothing is forwarded."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        place.desk.settle(HoldSettled(hold=hold, state=state, reason="not at night"))
        answer = await wire.answer()
        problem = json.loads(answer.body)
        assert (answer.status, problem["type"], problem["reason"], problem["hold"]) == (403, f"urn:bailiwick:problem:{kind}", "not at night", hold)
        assert upstream.connections == 0


async def test_past_its_wait_a_held_request_is_told_to_come_back(tmp_path: Path) -> None:
    """The connection is not durable, the hold is: `retry: after-signoff` with its id."""
    async with neighbourhood(tmp_path, HELD | {"wait": "50ms"}) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(PUT)
        problem = json.loads(answer.body)
        assert (answer.status, problem["retry"]) == (403, "after-signoff")
        assert problem["hold"] in place.governor.states


async def test_a_grant_does_not_outlive_the_boundary_it_was_given_under(tmp_path: Path) -> None:
    """Policy is evaluated again at release: a boundary that denies by then denies, and the grant stays unused."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        place.rules = [type(place.rules[0]).model_validate({"deny": ["write"], "http": "config.internal"})]
        place.reopen()
        place.governor.states[hold] = "granted"
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert (await wire.answer()).status == 403
        assert place.governor.redeemed == []
        assert upstream.connections == 0


async def test_observe_mode_forwards_what_only_policy_refuses(tmp_path: Path) -> None:
    """What would have been decided is recorded as observed, durably before an effect, and the request goes."""
    async with neighbourhood(tmp_path, HELD, observe=True) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(PUT)).status == 200
        assert (await wire.ask(GET)).status == 200
        decided = place.recorder.of("action.decided")
        assert [(event.decision, event.body["observed"]) for event in decided] == [("hold", True), ("deny", True)]
        assert [event.decision for event in place.recorder.durable] == ["hold"]
        assert len(upstream.requests) == 2


async def test_observe_mode_does_not_loosen_what_the_network_refuses(tmp_path: Path) -> None:
    """A private address is refused whatever is only observed, and the intent says what the boundary would have said."""

    async def private(_name: str, _port: int) -> list[str]:
        return ["10.0.0.1"]

    async with neighbourhood(tmp_path, observe=True, resolver=private) as place:
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(GET)
        assert (answer.status, json.loads(answer.body)["rule"]) == (403, "bailiwick.network/address")
        (decided,) = place.recorder.of("action.decided")
        assert (decided.decision, decided.body["observed"]) == ("deny", True)


# -- credentials


def lent(value: bytes = b"Bearer s3cr3t-token-value", secret: bytes = b"s3cr3t-token-value") -> LeasesUsed:
    encoded = [base64.b64encode(part).decode() for part in (value, secret)]
    return LeasesUsed(uses=[LeaseUse("lease-1", "config-token", "authorization", *encoded)])


async def test_a_lease_is_injected_last_and_scrubbed_from_the_answer(tmp_path: Path) -> None:
    """The agent's own authorisation goes, the lent one comes, and what the server echoes of it, in any field or split anywhere, never reaches the agent."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        body = b"you sent Bearer s3cr3t-token-value and " + base64.b64encode(b"s3cr3t-token-value")
        upstream.answers = [b"HTTP/1.1 200 OK\r\nX-Echo: s3cr3t-token-value\r\nContent-Length: %d\r\n\r\n" % len(body) + body]
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        raw = b"GET / HTTP/1.1\r\nHost: config.internal\r\nAuthorization: mine\r\nConnection: X-Mine\r\nAccept-Encoding: br\r\n\r\n"
        for _ in range(2):
            answer = await wire.ask(raw)
            assert answer.status == 200
            assert b"s3cr3t" not in answer.head + answer.body
            assert base64.b64encode(b"s3cr3t-token-value")[:12] not in answer.body
        sent = upstream.requests[0]
        assert b"authorization: Bearer s3cr3t-token-value\r\n" in sent
        assert b"mine" not in sent
        assert b"accept-encoding: identity" in sent
        assert len(place.broker.asked) == 1
        finished = await place.finished(2)
        assert finished[0].credential == "config-token"
        assert finished[0].body["scrubbed"] >= 1
        assert all("s3cr3t" not in str(event) for event in place.recorder.events)


@pytest.mark.parametrize("pinned", [None, False])
async def test_a_credential_is_never_sent_in_the_clear(tmp_path: Path, pinned: bool | None) -> None:
    """Without TLS nothing of a request for a leased host is sent, and the broker is not asked; a pin that says `tls: false` of that host is a person's word."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address=pin.address, port=pin.port, tls=pinned)
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        proxy = await place.dial("198.18.0.1", 3128)
        answer = await proxy.ask(b"GET http://config.internal:80/ HTTP/1.1\r\nHost: config.internal:80\r\n\r\n")
        if pinned is False:
            assert answer.status == 200
            return
        problem = json.loads(answer.body)
        assert (answer.status, problem["rule"]) == (403, "bailiwick.credential/in-clear")
        assert "lent for config.internal, and http would" in problem["reason"]
        assert (upstream.connections, place.broker.asked) == (0, [])
        assert place.recorder.of("attempt.refused")[0].body["what"] == "credential-in-clear"


async def test_a_pin_that_changes_while_an_action_waits_does_not_uncover_its_credential(tmp_path: Path) -> None:
    """What was to go in the clear by an earlier pin is refused under a later one."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address=pin.address, port=pin.port, tls=True)
        place.reopen()
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        assert json.loads((await wire.answer()).body)["rule"] == "bailiwick.credential/in-clear"
        assert (upstream.connections, place.broker.asked) == (0, [])


async def test_a_leased_host_is_asked_for_whole_answers(tmp_path: Path) -> None:
    """A secret that comes in parts of two ranges would be in none of them: no range is asked for where a credential is injected."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        raw = GET.replace(b"\r\n\r\n", b"\r\nRange: bytes=0-5\r\nIf-Range: x\r\n\r\n")
        await wire.ask(raw)
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        await wire.ask(raw)
        assert [request.count(b"range: ") for request in upstream.requests] == [2, 0]


async def test_a_credential_in_a_reason_or_a_field_name_goes_no_further(tmp_path: Path) -> None:
    """A server may echo what it was sent anywhere in a head; names reach the agent in lower case, so they are looked at in every case."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        secret = b"S3cr3T-token-value"
        head = b"HTTP/1.1 299 no %b here\r\nX-%b: 1\r\nX-%b: 1\r\nX-Fine: 1\r\nX-Echo: %b\r\nContent-Length: 0\r\n\r\n"
        upstream.answers = [head % (secret, secret, base64.b64encode(secret).rstrip(b"="), secret)]
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent(b"Bearer " + secret, secret)
        place.reopen()
        wire = await place.dial("config.internal", 80)
        for _ in range(2):
            answer = await wire.ask(GET)
            assert answer.status == 299
            assert secret.lower() not in answer.head.lower()
            assert base64.b64encode(secret)[:12].lower() not in answer.head.lower()
            assert set(answer.fields) == {"x-fine", "x-echo", "transfer-encoding"}
        assert (await place.finished(2))[1].body["scrubbed"] == 1
        upstream.answers = [b"HTTP/1.1 404 %b\r\nContent-Length: 0\r\n\r\n" % secret]
        assert (await wire.ask(GET)).head.startswith(b"HTTP/1.1 404 Not Found\r\n")


async def test_a_dead_broker_denies_for_leased_hosts_and_is_named(tmp_path: Path) -> None:
    """Without its credential a request is not sent as somebody else's."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.broker.alive = False
        place.reopen()
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(GET)
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "bailiwick.broker")
        assert upstream.connections == 0


async def test_an_answer_that_cannot_be_scrubbed_is_not_given(tmp_path: Path) -> None:
    """A server that compresses although it must not could hide what was injected."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        upstream.answers = [b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nxx"]
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(GET)
        assert (answer.status, json.loads(answer.body)["rule"]) == (502, "bailiwick.upstream/answer-encoded")


# -- budgets and models


async def test_a_budget_denies_the_call_beyond_it(tmp_path: Path) -> None:
    """Writes are counted before they go."""
    async with neighbourhood(tmp_path, CONFIG, budget=BudgetLimits(writes=1)) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(PUT)).status == 200
        answer = await wire.ask(PUT)
        assert (answer.status, json.loads(answer.body)["rule"]) == (403, "budget/writes")
        assert (await wire.ask(GET)).status == 200
        assert len(upstream.requests) == 2
        await place.finished(2)
        assert (place.run.used.writes, place.run.used.calls) == (1, 2)


def with_models(place: Neighbourhood) -> None:
    place.models = [ModelRoute(provider="openai", dialect="openai", host="api.openai.test")]
    place.model_rules = ModelRules.model_validate({"provider": "openai", "allow": ["gpt-5.2"]})
    place.reopen()


def chat(model: str, host: bytes, path: bytes = b"/v1/chat/completions", *, stream: bool = False) -> bytes:
    body = json.dumps({"model": model, "max_tokens": 10, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}).encode()
    return b"POST %b HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer x\r\nContent-Length: %d\r\n\r\n%b" % (path, host, len(body), body)


COMPLETION = json.dumps(
    {
        "id": "c", "object": "chat.completion", "model": "gpt-5.2", "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    }
).encode()  # fmt: skip


@pytest.mark.parametrize("door", ["host", "base"])
async def test_a_model_call_is_decided_by_its_model_and_its_usage_recorded(tmp_path: Path, door: str) -> None:
    """By its host or by the base URL, the model in the body is what is decided; tokens stand in the record and in the budget."""
    async with neighbourhood(tmp_path, budget=BudgetLimits(tokens=100_000)) as place:
        with_models(place)
        upstream = await place.pin("api.openai.test", tls=True)
        upstream.answers = [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION]
        if door == "host":
            wire, host, path = await place.dial_tls("api.openai.test"), b"api.openai.test", b"/v1/chat/completions"
        else:
            wire, host, path = await place.dial("198.18.0.2", 80), b"198.18.0.2", b"/openai/v1/chat/completions"
        answer = await wire.ask(chat("gpt-5.2", host, path))
        assert (answer.status, answer.body) == (200, COMPLETION)
        assert upstream.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: api.openai.test\r\n")
        outcome = (await place.finished())[0]
        assert (outcome.verb, outcome.resource, outcome.model) == ("call-model", "openai/gpt-5.2", "gpt-5.2")
        assert (outcome.input_tokens, outcome.output_tokens) == (7, 3)
        assert place.run.budget.used.tokens == 10
        assert place.run.budget.reserved.tokens == 0
        refused = await wire.ask(chat("gpt-4", host, path))
        assert refused.status == 403
        assert json.loads(refused.body)["error"]["type"] == "permission_error"
        assert len(upstream.requests) == 1


async def test_a_model_stream_passes_event_by_event(tmp_path: Path) -> None:
    """Server-sent events are handed on as they come, and counted on the way."""
    release = asyncio.Event()
    first = b'data: {"id":"c","model":"gpt-5.2","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
    last = b'data: {"id":"c","model":"gpt-5.2","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\ndata: [DONE]\n\n'

    async def stream(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.requests.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(first), first))
        await release.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        await writer.drain()

    async with neighbourhood(tmp_path) as place:
        with_models(place)
        await place.pin("api.openai.test", Upstream(handler=stream))
        wire = await place.dial("198.18.0.2", 80)
        wire.send(chat("gpt-5.2", b"198.18.0.2", b"/openai/v1/chat/completions", stream=True))
        async with asyncio.timeout(10):
            await wire.reader.readuntil(b"\n\n\r\n")
        release.set()
        await wire.reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
        outcome = (await place.finished())[0]
        assert (outcome.input_tokens, outcome.output_tokens) == (7, 3)


# -- upstreams that misbehave


async def misbehave(place: Neighbourhood, raw: bytes, then: str = "close") -> Upstream:
    async def act(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.requests.append(await read_request(reader))
        writer.write(raw)
        await writer.drain()
        if then == "reset":
            writer.transport.abort()

    return await place.pin("config.internal", Upstream(handler=act))


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "no-answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "answer-cut"),
        (b"\x15\x03\x01", "answer-not-http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", "answer-duplicate-content-length"),
        (b"HTTP/1.1 200 OK\nContent-Length: 3\n\n", "answer-bare-lf"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "answer-answer-switches-protocols"),
    ],
)
async def test_an_effect_without_an_answer_is_unknown(tmp_path: Path, raw: bytes, error: str) -> None:
    """The agent gets an answer that names the trouble; the record says `unknown`; the write was sent once."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await misbehave(place, raw)
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(PUT)
        assert answer.status == 502
        assert "not known" in json.loads(answer.body)["reason"]
        outcome = (await place.finished())[0]
        assert outcome.body["result"] == "unknown"
        assert outcome.body["error"].startswith(error)
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf"])
async def test_half_an_answer_never_looks_whole(tmp_path: Path, raw: bytes) -> None:
    """When an upstream dies in the middle the agent's connection is cut, not ended in order."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await misbehave(place, raw)
        wire = await place.dial("config.internal", 80)
        wire.send(GET)
        rest = await wire.rest()
        assert not rest.endswith(b"0\r\n\r\n")
        outcome = (await place.finished())[0]
        assert (outcome.body["result"], outcome.body["status"]) == ("answered", 200)
        assert outcome.body["error"].startswith("answer-cut")


async def test_a_kept_connection_that_closed_is_tried_once_more_for_a_read_and_never_for_a_write(tmp_path: Path) -> None:
    """A stale connection is no reason to fail a read; a write that may have arrived is not sent again."""
    asked: list[bytes] = []

    async def once(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the first request of a connection, and closes upon the second unanswered."""
        asked.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        asked.append(await read_request(reader))

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=once))
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(GET)).status == 200
        assert (await wire.ask(GET)).status == 200  # the second connection
        assert upstream.connections == 2
        assert (await wire.ask(PUT)).status == 502
        assert upstream.connections == 2
        assert sum(request.startswith(b"PUT") for request in asked) == 1
        assert (await place.finished(3))[2].body["result"] == "unknown"


async def test_a_silent_upstream_ends_in_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hangs past its deadline."""

    async def silent(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(limits, "UPSTREAM_ANSWER_SECONDS_MAX", 0.05)
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(handler=silent))
        wire = await place.dial("config.internal", 80)
        wire.send(GET)
        answering = asyncio.ensure_future(wire.answer())  # noqa: TID251 - a test may wait for two things

        def swept() -> bool:
            place.run.sweep(asyncio.get_running_loop().time())
            return answering.done()

        await place.until(swept)
        answer = answering.result()
        assert (answer.status, json.loads(answer.body)["rule"]) == (504, "bailiwick.upstream/answer-timeout")


async def test_a_huge_answer_passes_in_flat_memory_at_the_agents_pace(tmp_path: Path) -> None:
    """Back-pressure: an agent that does not read stops the upstream, and nothing piles up between them."""
    sent = 0

    async def flood(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * limits.MIB))
        for _ in range(64 * 16):
            writer.write(bytes(64 * limits.KIB))
            await writer.drain()
            sent += 64 * limits.KIB

    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(handler=flood))
        wire = await place.dial("config.internal", 80)
        wire.reader._limit = 1  # type: ignore[attr-defined]  # the agent reads nothing
        wire.send(GET)
        before = -1
        while before != sent or not sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 24 * limits.MIB  # kernel buffers on four sockets, and two high-water marks
        wire.reader._limit = 1 << 20  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            await wire.reader.readuntil(b"\r\n\r\n")
            total = 0
            while total < 64 * limits.MIB:
                total += len(await wire.reader.read(1 << 20))
        assert total == 64 * limits.MIB


async def test_a_long_upload_is_streamed_with_its_digest(tmp_path: Path) -> None:
    """A chunked body of several megabytes goes on as it comes and is hashed on the way."""
    import hashlib

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(b"POST /u HTTP/1.1\r\nHost: config.internal\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        interim = await wire.answer()
        assert interim.status == 100
        body = b"0123456789abcdef" * 65536
        for _ in range(4):
            wire.send(b"%x\r\n%b\r\n" % (len(body), body))
        wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200
        assert upstream.requests[0].endswith(body)
        outcome = (await place.finished())[0]
        assert 0 < outcome.body["request_bytes"] - 4 * len(body) < 200  # the head
        assert outcome.body["request_sha256"] == hashlib.sha256(body * 4).hexdigest()


async def test_a_refused_upload_hears_why(tmp_path: Path) -> None:
    """The answer comes before the body was read; a body of any length is drained or the connection ends, and nothing of it is forwarded."""
    async with neighbourhood(tmp_path) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(b"POST /u HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 9000000\r\n\r\n" + bytes(100_000))
        answer = await wire.answer()
        assert answer.status == 403
        assert answer.fields["connection"] == "close"
        wire.send(bytes(exchange_module.DRAINED_BYTES_MAX))
        await wire.rest()


@pytest.mark.parametrize("bound", ["BUFFERED_BYTES_PER_RUN_MAX", "BUFFERED_BYTES_MAX"])
async def test_bodies_that_wait_for_a_decision_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Many held requests do not take the memory of the other runs' worker; what one of them held is free again when it is over."""
    monkeypatch.setattr(runs, bound, 250_000)
    raw = b"PUT /%d HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    async with neighbourhood(tmp_path, HELD) as place:
        await place.pin("config.internal")
        wires = []
        for number in range(2):
            wires.append(await place.dial("config.internal", 80))
            wires[-1].send(raw % number)
            await place.until(lambda n=number: place.run.parked == n + 1)  # type: ignore[misc]
        late = await place.dial("config.internal", 80)
        answer = await late.ask(raw % 2)
        assert (answer.status, json.loads(answer.body)["type"]) == (413, "urn:bailiwick:problem:too-large")
        wires[0].close()
        await place.until(lambda: place.run.parked == 1)
        assert place.run.buffered == place.house.buffered == 100_000
        late = await place.dial("config.internal", 80)
        late.send(raw % 3)
        await place.until(lambda: place.run.parked == 2)


async def test_no_body_is_read_where_none_could_be_allowed(tmp_path: Path) -> None:
    """A model endpoint of a run that may call no model at all is denied by its head, with nothing of the body waited for or held."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        place.models = [ModelRoute(provider="openai", dialect="openai", host="api.openai.test")]
        upstream = await place.pin("api.openai.test", tls=True)
        wire = await place.dial_tls("api.openai.test")
        wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.test\r\nContent-Length: 9000000\r\n\r\n{")
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["error"]["type"]) == (403, "permission_error")
        (event,) = place.recorder.of("action.decided")
        assert (event.decision, event.verb, event.resource) == ("deny", "call-model", "openai/(unread)")
        assert (place.run.buffered, upstream.connections) == (0, 0)


async def test_closing_a_run_cuts_everything_and_records_unknown(tmp_path: Path) -> None:
    """Containment: an effect in flight is aborted and its outcome is unknown; nothing is served any more."""

    async def silent(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.requests.append(await read_request(reader))
        await reader.read()

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=silent))
        wire = await place.dial("config.internal", 80)
        idle = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: len(upstream.requests) == 1 and len(place.run.connections) == 2)
        connections, unknown = place.run.close("an operator said so")
        assert connections == 2
        assert len(unknown) == 1
        outcome = place.recorder.of("action.finished")[0]
        assert (outcome.body["result"], outcome.action) == ("unknown", unknown[0])
        assert await wire.rest() == b""
        assert await idle.rest() == b""
        late = await place.dial("config.internal", 80)
        late.send(GET)
        assert await late.rest() == b""


async def test_closing_a_run_ends_what_is_still_connecting(tmp_path: Path) -> None:
    """An action that never left is recorded as failed at once, and its connection, should it come up, is closed unused."""

    async def mute(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=mute))
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address=pin.address, port=pin.port, tls=True)
        place.reopen()
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: upstream.connections == 1)
        assert place.run.close("an operator said so") == (1, [])
        outcome = place.recorder.of("action.finished")[0]
        assert (outcome.body["result"], outcome.body["error"]) == ("failed", "an operator said so")


async def test_a_run_opened_again_has_used_what_it_used(tmp_path: Path) -> None:
    """Bounds that come later speak of what was only counted before."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        for _ in range(3):
            assert (await wire.ask(GET)).status == 200
        assert place.run.used.calls == 3
        place.budget = BudgetLimits(calls=4)
        place.reopen()
        assert place.run.used.calls == 3
        assert (await wire.ask(GET)).status == 200
        assert json.loads((await wire.ask(GET)).body)["rule"] == "budget/calls"


async def test_a_refused_client_that_waits_to_continue_hears_no(tmp_path: Path) -> None:
    """A body that was announced and not sent is never asked for when it is refused."""
    async with neighbourhood(tmp_path) as place:
        wire = await place.dial("config.internal", 80)
        wire.send(b"PUT / HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert (await wire.answer()).status == 403
        assert await wire.rest() == b""


async def test_a_lease_that_cannot_be_injected_denies(tmp_path: Path) -> None:
    """A value that would break the head is no header; the broker is named and nothing is sent."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent(b"Bearer a\r\nX: y", b"a\r\nX: y secret")
        place.reopen()
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(GET)
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "bailiwick.broker")
        assert b"X: y" not in answer.body
        assert upstream.requests == []
