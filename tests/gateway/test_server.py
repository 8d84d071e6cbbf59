from pathlib import Path

import pytest
from tests.fakes.neighbourhood import Upstream, neighbourhood

READ_ALL = {"allow": ["read", "write", "delete"], "http": "config.internal"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_an_allowed_read_is_forwarded_and_recorded(tmp_path: Path) -> None:
    """An allowed read reaches the pinned upstream; its intent and its outcome stand in the record, in that order."""
    async with neighbourhood(tmp_path, READ_ALL) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(b"GET /v1/thing?x=1 HTTP/1.1\r\nHost: config.internal\r\nAccept: */*\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        assert upstream.requests == [b"GET /v1/thing?x=1 HTTP/1.1\r\nhost: config.internal\r\naccept: */*\r\n\r\n"]
        await place.finished()
        assert [event.kind for event in place.recorder.events] == ["action.decided", "action.finished"]
        assert place.recorder.events[0].decision == "allow"
        assert place.recorder.events[1].body["status"] == 200


@pytest.mark.anyio
async def test_a_tls_read_is_intercepted_and_verified(tmp_path: Path) -> None:
    """TLS ends at the gateway with a leaf of the sandbox's authority, and begins again towards an upstream that is verified for the same name."""
    async with neighbourhood(tmp_path, READ_ALL) as place:
        upstream = await place.pin("config.internal", tls=True)
        wire = await place.dial_tls("config.internal")
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        answer = await wire.ask(b"GET /2 HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert answer.status == 200
        assert upstream.connections == 1


@pytest.mark.anyio
async def test_nothing_is_allowed_by_default(tmp_path: Path) -> None:
    """What no rule allows is denied with words for the agent, recorded, and reaches nobody."""
    async with neighbourhood(tmp_path, READ_ALL) as place:
        upstream = await place.pin("stranger.example", Upstream())
        wire = await place.dial("stranger.example", 80)
        answer = await wire.ask(b"POST /x HTTP/1.1\r\nHost: stranger.example\r\nContent-Length: 3\r\n\r\nabc")
        assert answer.status == 403
        assert b"do not try to reach the same effect another way" in answer.body
        assert upstream.connections == 0
        assert [event.decision for event in place.recorder.of("action.decided")] == ["deny"]
        again = await wire.ask(b"GET /x HTTP/1.1\r\nHost: stranger.example\r\n\r\n")
        assert again.status == 403


@pytest.mark.anyio
async def test_an_effect_waits_for_its_intent(tmp_path: Path) -> None:
    """Nothing of a write reaches the upstream before its intent is durable."""
    import asyncio

    async with neighbourhood(tmp_path, READ_ALL) as place:
        upstream = await place.pin("config.internal")
        place.recorder.gate = asyncio.Event()
        wire = await place.dial("config.internal", 80)
        wire.send(b"PUT /v1 HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 3\r\n\r\nabc")
        await place.until(lambda: len(place.tasks) == 1)
        assert upstream.connections == 0
        place.recorder.gate.set()
        answer = await wire.answer()
        assert answer.status == 200
        assert upstream.requests == [b"PUT /v1 HTTP/1.1\r\nhost: config.internal\r\ncontent-length: 3\r\n\r\nabc"]
        assert place.recorder.durable[0].kind == "action.decided"
        outcome = (await place.finished())[0]
        assert outcome.body["request_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
