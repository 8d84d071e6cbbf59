"""What was asked before goes the short way, and nothing of what holds for the long way is lost on it."""

import asyncio
import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, Wire, neighbourhood
from tests.gateway.test_server import lent

from bailiwick.critic.enforcement import BudgetLimits
from bailiwick.gateway import answers as answers_module
from bailiwick.gateway import repeated, repeats
from bailiwick.gateway.asked import SIGHTINGS_MAX, Sightings
from bailiwick.gateway.repeats import Repeat
from bailiwick.record.event import Event

CONFIG = {"allow": ["read"], "http": "config.internal"}
GET = b"GET /v1/thing?x=1 HTTP/1.1\r\nHost: config.internal\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 2\r\n\r\nok"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes is remembered when it first comes, but where that is what is tested."""
    monkeypatch.setattr(Sightings, "again", lambda _self, _raw: True)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each known request went the short way."""
    ways: list[bool] = []
    begun = repeated.begun

    def watched(*arguments: Any) -> Any:
        exchange = begun(*arguments)
        ways.append(exchange is not None)
        return exchange

    monkeypatch.setattr("bailiwick.gateway.connection.begun", watched)
    return ways


def known(place: Neighbourhood) -> list[Repeat]:
    return place.run.asked.everything()


def without_identity(event: Event) -> dict[str, Any]:
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    body = {**values["body"], "duration_ms": 0} if "duration_ms" in values["body"] else values["body"]
    return {**values, "id": "", "time": "", "action": "", "body": body}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("leased", [False, True])
async def test_the_short_way_is_the_long_way(tmp_path: Path, short: list[bool], tls: bool, leased: bool) -> None:
    """The same bytes reach the upstream, the same answer the agent, the same events the record, each with its own identity, in the order of invariant 3."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", tls=tls)
        if leased:
            place.leased = ["config.internal"]
            place.broker.lent["config.internal"] = lent()
            place.reopen()
        wire = await (place.dial_tls("config.internal") if tls else place.dial("config.internal", 80))
        answers = [await wire.ask(GET) for _ in range(4)]
        assert short == [True] * 3
        assert upstream.connections == 1
        assert len(set(upstream.requests)) == 1
        assert {(answer.status, answer.body) for answer in answers} == {(200, b"ok")}
        await place.finished(4)
        kinds = [event.kind for event in place.recorder.events]
        assert kinds == ["action.decided", "action.finished"] * 4
        assert len({event.id for event in place.recorder.events}) == 8
        assert len({event.action for event in place.recorder.events}) == 4
        first, *others = [
            [without_identity(event) for event in place.recorder.events[at : at + 2]] for at in range(0, 8, 2)
        ]  # fmt: skip
        assert others == [first] * 3
        assert (place.run.used.calls, place.run.used.egress_bytes) == (4, sum(map(len, upstream.requests)))
        assert not place.run.unfinished


CHANGES: dict[str, tuple[Callable[[Neighbourhood], None], int]] = {
    "the governor is silent": (lambda place: setattr(place.governor, "fresh", False), 503),
    "the recorder is down": (lambda place: setattr(place.recorder, "healthy", False), 503),
    "the critic is dead": (lambda place: setattr(place.run, "critic", None), 503),
    "the boundary is another": (lambda place: (place.rules.clear(), place.reopen())[1], 403),  # type: ignore[func-returns-value]
    "the run is closed": (lambda place: setattr(place.run, "closed", "it was killed"), 403),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_allowed_before_is_not_therefore_allowed_now(tmp_path: Path, change: str) -> None:
    """Whatever would refuse a request that was never seen refuses one that was."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        for _ in range(2):
            assert (await wire.ask(GET)).status == 200
        make, status = CHANGES[change]
        make(place)
        assert (await wire.ask(GET)).status == status
        assert len(upstream.requests) == 2


async def test_a_lease_that_is_another_is_used_at_once(tmp_path: Path, short: list[bool]) -> None:
    """A head holds the values of one lease, and leaves with no other's."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        for _ in range(2):
            await wire.ask(GET)
        place.run.leases.clear()  # expired
        place.broker.lent["config.internal"] = lent(b"Bearer another-secret", b"another-secret")
        for _ in range(2):
            await wire.ask(GET)
        assert short == [True, False, True]
        assert [re.findall(rb"authorization: (.*?)\r\n", request) for request in upstream.requests] == [
            [b"Bearer s3cr3t-token-value"], [b"Bearer s3cr3t-token-value"], [b"Bearer another-secret"], [b"Bearer another-secret"],
        ]  # fmt: skip
        place.broker.alive = False
        place.run.leases.clear()
        assert (await wire.ask(GET)).status == 503


async def test_an_echoed_secret_is_taken_out_on_the_short_way_too(tmp_path: Path, short: list[bool]) -> None:
    """In the body and in a field, after answers without one."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        echo = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 21\r\n\r\n<s3cr3t-token-value>."
        head = b"HTTP/1.1 200 OK\r\nX-Echo: s3cr3t-token-value\r\nContent-Length: 2\r\n\r\nok"
        upstream = Upstream(answers=[ANSWER, ANSWER, echo, echo, head, head, ANSWER])
        await place.pin("config.internal", upstream)
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        answers = [await wire.ask(GET) for _ in range(8)]
        assert short == [True] * 7
        assert all(b"s3cr3t" not in answer.head + answer.body for answer in answers)
        assert [answer.body for answer in answers[2:4]] == [b"<[redacted by bailiwick]>."] * 2
        assert [answer.body for answer in answers[4:]] == [b"ok"] * 4
        finished = await place.finished(8)
        assert [event.body.get("scrubbed", 0) for event in finished] == [0, 0, 1, 1, 1, 1, 0, 0]
        assert {event.credential for event in finished} == {finished[0].credential}


async def test_what_the_run_is_held_to_is_what_counts(tmp_path: Path, short: list[bool]) -> None:
    """Under the same critic too: a credential lent from now on is injected, and a pin that leads elsewhere is followed."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        first = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        for _ in range(2):
            await wire.ask(GET)
        pin = place.hosts["config.internal"]
        second = await place.pin("elsewhere.internal")
        place.hosts["config.internal"] = place.hosts["elsewhere.internal"]
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.run.hold_to(place.order(), place.run.critic, place.run.policy)
        assert (await wire.ask(GET)).status == 200
        assert short == [True]
        assert pin.port != place.hosts["config.internal"].port
        assert len(first.requests) == 2
        assert b"authorization: Bearer s3cr3t-token-value" in second.requests[0]


async def test_a_secret_in_a_fields_name_is_taken_out_in_any_case(tmp_path: Path) -> None:
    """Names reach the agent in lower case: what base64 writes in mixed case is found all the same, however often its head came."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        name = base64.b64encode(b"s3cr3t-token-value").rstrip(b"=")
        await place.pin("config.internal", Upstream(answers=[b"HTTP/1.1 200 OK\r\nX-%b: 1\r\nContent-Length: 2\r\n\r\nok" % name]))
        place.leased = ["config.internal"]
        place.broker.lent["config.internal"] = lent()
        place.reopen()
        wire = await place.dial("config.internal", 80)
        for _ in range(4):
            assert name.lower() not in (await wire.ask(GET)).head.lower()


@pytest.mark.parametrize(
    ("raw", "rules"),
    [
        (b"PUT /v1 HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 3\r\n\r\nabc", {"allow": ["write"], "http": "config.internal"}),
        (b"DELETE /v1 HTTP/1.1\r\nHost: config.internal\r\n\r\n", {"allow": ["delete"], "http": "config.internal"}),
        (b"HEAD /v1 HTTP/1.1\r\nHost: config.internal\r\n\r\n", CONFIG),
        (b"GET /denied HTTP/1.1\r\nHost: config.internal\r\n\r\n", {"allow": ["read"], "http": "config.internal", "path": "/v1/**"}),
        (b"GET /v1 HTTP/1.0\r\nHost: config.internal\r\nConnection: keep-alive\r\n\r\n", CONFIG),
        (b"GET /v1 HTTP/1.1\r\nHost: config.internal\r\nX-Long: " + b"x" * repeats.HEAD_BYTES_MAX + b"\r\n\r\n", CONFIG),
    ],
)
async def test_nothing_but_a_plain_allowed_read_is_remembered(tmp_path: Path, raw: bytes, rules: dict[str, Any]) -> None:
    """Effects, refusals, other versions and heads beyond the bound are walked each time."""
    async with neighbourhood(tmp_path, rules) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        for _ in range(2):
            await wire.ask(raw)
        assert known(place) == []


async def test_what_is_bound_observed_or_pipelined_is_not_remembered(tmp_path: Path) -> None:
    """A budget is asked each time, a request that came with another has no bytes of its own, and an observed run allows nothing."""
    for options in ({"budget": BudgetLimits(calls=2)}, {"observe": True}):
        async with neighbourhood(tmp_path, CONFIG if "budget" in options else {"allow": ["write"], "http": "config.internal"}, **options) as place:  # type: ignore[arg-type]
            await place.pin("config.internal")
            wire = await place.dial("config.internal", 80)
            answers = [(await wire.ask(GET)).status for _ in range(3)]
            assert answers == ([200, 200, 403] if "budget" in options else [200] * 3)
            assert known(place) == []
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(GET + GET)
        assert [(await wire.answer()).status for _ in range(2)] == [200, 200]
        assert len(known(place)) <= 1  # the second stood alone once the first was answered, or came with it


async def test_a_name_that_may_come_to_mean_another_is_not_remembered(tmp_path: Path) -> None:
    """A synthetic address as Host stands for whatever name it was given last."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        address = place.run.names.address_of("config.internal")
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(GET.replace(b"config.internal", address.encode()))).status == 200
        assert known(place) == []


async def test_no_head_is_found_by_a_part_of_it_or_at_another_door(tmp_path: Path, short: list[bool]) -> None:
    """Split anywhere, spelled otherwise or asked elsewhere, it is read from the beginning."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        await wire.ask(GET)
        for at in (1, 20, len(GET) - 1):
            wire.send(GET[:at])
            await asyncio.sleep(0)
            await place.until(lambda: any(not connection._reader.idle for connection in place.run.connections))  # type: ignore[attr-defined]
            assert (await wire.ask(GET[at:])).status == 200
        other = await place.dial("config.internal", 8080)
        assert (await other.ask(GET)).status == 403  # decided for the port that was dialled
        assert short == []
        assert len(upstream.requests) == 4


async def test_pipelined_behind_a_known_request_all_are_answered_in_order(tmp_path: Path, short: list[bool]) -> None:
    """What arrives while a known request is under way waits for its answer."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = Upstream(answers=[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(6)])
        await place.pin("config.internal", upstream)
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(GET)).body == b"0"
        wire.send(GET)
        await place.until(lambda: len(upstream.requests) == 2 or bool(short))
        wire.send(GET + GET.replace(b"x=1", b"x=2"))
        assert [(await wire.answer()).body for _ in range(3)] == [b"1", b"2", b"3"]


async def test_a_kept_connection_that_closes_upon_a_known_read_is_tried_once_more(tmp_path: Path, short: list[bool]) -> None:
    """As on the long way: once, on a new connection, and the outcome is one."""

    async def serve(server: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            server.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if len(server.requests) % 2 == 0:
                return
            writer.write(ANSWER)

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=serve))
        wire = await place.dial("config.internal", 80)
        assert [(await wire.ask(GET)).status for _ in range(2)] == [200, 200]
        assert short == [True]
        assert len(upstream.requests) == 3
        finished = await place.finished(2)
        assert [event.body["result"] for event in finished] == ["answered"] * 2
        assert not place.run.unfinished


async def leaves(place: Neighbourhood, wire: Wire) -> str:
    wire.close()
    return "agent-gone"


async def is_closed(place: Neighbourhood, wire: Wire) -> str:
    place.run.close("it was killed")
    return "it was killed"


@pytest.mark.parametrize("end", [leaves, is_closed])
async def test_an_agent_that_leaves_in_the_middle_has_an_outcome(tmp_path: Path, end: Any, short: list[bool]) -> None:
    """Every intent has its outcome, whoever ends it; the upstream's connection is given up with it."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        hang = asyncio.Event()

        async def serve(server: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            server.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await hang.wait()

        upstream = await place.pin("config.internal", Upstream(handler=serve))
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(GET)).status == 200
        wire.send(GET)
        await place.until(lambda: bool(upstream.requests))
        error = await end(place, wire)
        finished = await place.finished(2)
        assert short == [True]
        assert (finished[1].body["result"], finished[1].body["error"]) == ("failed", error)
        assert not place.run.unfinished
        hang.set()


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 404, b"no"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    ],
)
async def test_an_answer_head_seen_before_means_what_it_meant(tmp_path: Path, raw: bytes, status: int, body: bytes) -> None:
    """Every kind of answer, again and again on one connection, and then one that has the same head and half its body."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(answers=[raw]))
        wire = await place.dial("config.internal", 80)
        answers = [await wire.ask(GET) for _ in range(4)]
        assert [(answer.status, answer.body) for answer in answers] == [(status, body)] * 4
        assert all("x-hop" not in answer.fields for answer in answers)
        assert len({tuple(sorted(answer.fields.items())) for answer in answers}) == 1
        assert [event.body["answer_bytes"] for event in await place.finished(4)] == [len(body)] * 4


async def test_what_comes_once_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is worth remembering when it comes for the second time, and not before."""
    monkeypatch.undo()
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        for number in range(3):
            assert (await wire.ask(GET)).status == 200
            await place.finished(number + 1)
            assert len(known(place)) == min(number, 1)
    sightings = Sightings()
    assert [sightings.again(b"%d" % number) for number in range(SIGHTINGS_MAX)] == [False] * SIGHTINGS_MAX
    assert sightings.again(b"0")
    assert not sightings.again(b"one too many")
    assert not sightings.again(b"0")


async def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that never come again take each other's place, on both sides."""
    monkeypatch.setattr(repeats, "HEADS_MAX", 4)
    monkeypatch.setattr(answers_module, "HEADS_MAX", 4)
    async with neighbourhood(tmp_path, CONFIG) as place:
        answers = [b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\nok" % number for number in range(12)]
        await place.pin("config.internal", Upstream(answers=answers))
        wire = await place.dial("config.internal", 80)
        for number in range(11):
            assert (await wire.ask(GET.replace(b"x=1", b"x=%d" % number))).status == 200
        assert len(known(place)) == 4
        assert len(place.run.upstreams._known) <= 4


async def test_a_run_that_asks_faster_than_its_record_is_written_is_slowed_not_refused(tmp_path: Path) -> None:
    """While the recorder is behind, the next request of a connection waits, known or not."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        await wire.ask(GET)
        place.recorder.behind = True
        await wire.ask(GET)
        await place.until(lambda: len(place.recorder.held_back) == 1)
        wire.send(GET)
        other = await place.dial("config.internal", 80)
        assert (await other.ask(GET)).status == 200  # one for each connection passes
        assert len(upstream.requests) == 3
        place.recorder.behind = False
        for go_on in place.recorder.held_back:
            go_on()
        assert (await wire.answer()).status == 200
