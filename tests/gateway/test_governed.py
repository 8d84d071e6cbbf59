"""What happens to what is under way when nobody governs it any more, and to a run that does nothing but be refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, neighbourhood, read_request

from bailiwick.broker.messages import LeasesUsed, UseLease
from bailiwick.critic.enforcement import HoldSettled
from bailiwick.gateway import runs
from bailiwick.kernel import limits

CONFIG = {"allow": ["read", "write"], "http": "config.internal"}
HELD = {"hold": ["write"], "http": "config.internal", "approvers": ["oncall"], "wait": "10m"}
GET = b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n"
PUT = b"PUT /v1 HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 3\r\n\r\nabc"
DENIED = b"GET /%d HTTP/1.1\r\nHost: stranger.example\r\n\r\n"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


def sweep(place: Neighbourhood) -> None:
    place.run.sweep(asyncio.get_running_loop().time())


async def test_a_parked_action_is_not_released_under_a_stale_governor(tmp_path: Path) -> None:
    """A grant that comes when the heartbeat does not is not used up, and nothing is sent; the retry under a governor that is back redeems it."""
    async with neighbourhood(tmp_path, HELD) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        wire.send(PUT)
        await place.until(lambda: place.run.parked == 1)
        (hold,) = place.governor.states
        place.governor.states[hold] = "granted"
        place.governor.fresh = False
        place.desk.settle(HoldSettled(hold=hold, state="granted", reason=""))
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "bailiwick.governor")
        assert (upstream.connections, place.governor.redeemed) == (0, [])
        place.governor.fresh = True
        assert (await wire.ask(PUT)).status == 200


@pytest.mark.parametrize("raw", [GET, PUT])
async def test_nothing_is_sent_when_the_governor_dies_while_a_connection_is_made(tmp_path: Path, raw: bytes) -> None:
    """A name may take ten seconds to answer, a heartbeat is stale after three: the last look is right before the first byte."""
    asked, answer_now = asyncio.Event(), asyncio.Event()

    async def slow(_name: str, _port: int) -> list[str]:
        asked.set()
        await answer_now.wait()
        return ["127.0.0.1"]

    async with neighbourhood(tmp_path, CONFIG, resolver=slow) as place:
        upstream = await place.pin("config.internal")
        await place.dial("config.internal", 80)
        from bailiwick.gateway.upstream import Upstreams

        addresses = Upstreams._addresses

        async def addresses_later(self: Upstreams, destination: Any) -> Any:
            await slow("", 0)
            return await addresses(self, destination)

        place.run.upstreams._addresses = addresses_later.__get__(place.run.upstreams)  # type: ignore[method-assign]
        wire = await place.dial("config.internal", 80)
        wire.send(raw)
        await asked.wait()
        place.governor.fresh = False
        answer_now.set()
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "bailiwick.governor")
        assert upstream.requests == []
        assert (await place.finished())[0].body["result"] == "failed"


@pytest.mark.parametrize(("part", "kill"), [("governor", "fresh"), ("recorder", "healthy")])
async def test_nothing_is_sent_when_a_part_dies_while_a_credential_is_borrowed(tmp_path: Path, part: str, kill: str) -> None:
    """The intent is on file and the lease is at hand, and still the request stays here, with its credential, and failed."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        place.leased = ["config.internal"]
        place.reopen()
        wire = await place.dial("config.internal", 80)
        lend = place.broker.use

        async def lend_late(request: UseLease) -> LeasesUsed:
            setattr(getattr(place, part), kill, False)
            return await lend(request)

        place.broker.use = lend_late  # type: ignore[method-assign]
        answer = await wire.ask(PUT)
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, f"bailiwick.{part}")
        assert (len(place.recorder.durable), len(place.broker.asked), upstream.requests) == (1, 1, [])


async def test_a_stream_of_a_closed_run_is_cut_at_once(tmp_path: Path) -> None:
    """Not a byte more of an answer, nor of a request, once its run is closed."""

    async def endless(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        upstream.requests.append(await reader.read())

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=endless))
        wire = await place.dial("config.internal", 80)
        wire.send(GET)
        await wire.reader.readuntil(b"first\r\n")
        assert place.run.close("contained") == (1, [])
        assert await wire.rest() == b""
        await place.until(lambda: upstream.requests == [b""] or not place.run.connections)
        outcome = place.recorder.of("action.finished")[0]
        assert (outcome.body["result"], outcome.body["error"], outcome.body["status"]) == ("answered", "contained", 200)


async def test_what_is_under_way_stands_still_while_nobody_governs(tmp_path: Path) -> None:
    """A stale heartbeat pauses streams both ways, without an effect becoming unknown; a fresh one lets them go on; a new action is refused meanwhile."""
    received = bytearray()
    answer = asyncio.Event()

    async def listen(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        while not received.endswith(b"0\r\n\r\n"):
            received.extend(await reader.read(1 << 16))
        await answer.wait()
        writer.write(b"12345")
        await writer.drain()

    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(handler=listen))
        wire = await place.dial("config.internal", 80)
        wire.send(b"PUT /v1 HTTP/1.1\r\nHost: config.internal\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await wire.reader.readuntil(b"first")
        await place.until(lambda: received.endswith(b"abc\r\n"))
        place.governor.fresh = False
        sweep(place)
        wire.send(b"3\r\ndef\r\n0\r\n\r\n")
        other = await place.dial("config.internal", 80)
        assert (await other.ask(GET)).status == 503
        assert (await other.ask(GET)).status == 503  # two turns of the loop and of the kernel later
        assert received.endswith(b"abc\r\n")
        place.governor.fresh = True
        sweep(place)
        await place.until(lambda: received.endswith(b"def\r\n0\r\n\r\n"))
        place.governor.fresh = False
        sweep(place)
        answer.set()
        assert (await other.ask(GET)).status == 503
        assert place.recorder.of("action.finished") == []
        place.governor.fresh = True
        sweep(place)
        async with asyncio.timeout(10):
            assert await wire.reader.readexactly(5) == b"12345"
        assert (await place.finished())[0].body["result"] == "answered"


# -- a run that does nothing but be refused


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DENIALS_BURST", 5)
    monkeypatch.setattr(runs, "DENIALS_PER_SECOND", 20.0)


@pytest.mark.usefixtures("narrow")
async def test_refusals_beyond_a_rate_come_late_and_none_is_lost(tmp_path: Path) -> None:
    """A flood of denied actions slows its own run, whether it waits for the answers or hangs up; each stands in the record."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(15):
            wire = await place.dial("stranger.example", 80)
            wire.send(DENIED % number)
            await place.until(lambda n=number: place.run.denials.waiting + len(place.recorder.events) == n + 1)  # type: ignore[misc]
            wire.close()
        assert len(place.recorder.events) <= 6 + 20 * (loop.time() - began)
        good = await place.dial("config.internal", 80)
        assert (await good.ask(GET)).status == 200  # what is allowed is not slowed
        await place.until(lambda: len(place.recorder.of("action.decided")) == 16)
        assert loop.time() - began >= 9 / 20
        denied = [event.resource for event in place.recorder.of("action.decided") if event.decision == "deny"]
        assert denied == [f"http://stranger.example/{number}" for number in range(15)]


@pytest.mark.usefixtures("narrow")
async def test_a_run_that_is_closed_records_what_waited(tmp_path: Path) -> None:
    """Containment does not wait for anybody's turn."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        for number in range(8):
            wire = await place.dial("stranger.example", 80)
            wire.send(DENIED % number)
        await place.until(lambda: place.run.denials.waiting == 3)
        place.run.close("contained")
        assert (place.run.denials.waiting, len(place.recorder.of("action.decided"))) == (0, 8)


@pytest.mark.usefixtures("narrow")
async def test_hanging_up_on_refusals_leaves_no_room_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many may wait is bounded by the connections a run may have, so how late a refusal may come is too."""
    monkeypatch.setattr(limits, "CONNECTIONS_PER_RUN_MAX", 3)
    monkeypatch.setattr(runs, "DENIALS_PER_SECOND", 0.5)
    async with neighbourhood(tmp_path, CONFIG) as place:
        for number in range(5 + 3):
            wire = await place.dial("stranger.example", 80)
            wire.send(DENIED % number)
            await place.until(lambda n=number: place.run.denials.waiting + len(place.recorder.events) == n + 1)  # type: ignore[misc]
            wire.close()
            await place.until(lambda: not place.run.connections)
        late = await place.dial("stranger.example", 80)
        assert await late.rest() == b""
        assert place.recorder.of("attempt.refused")[0].body["what"] == "connection"
