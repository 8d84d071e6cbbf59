import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, neighbourhood, read_request

from bailiwick.gateway import upstream as upstream_module
from bailiwick.gateway.upstream import Destination, TlsContexts, UpstreamFailed, Upstreams
from bailiwick.kernel import limits

CONFIG = {"allow": ["read", "write", "delete"], "http": "config.internal"}
PUBLIC = {"allow": ["read"], "http": "public.example"}
GET = b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n"
GET_PUBLIC = b"GET / HTTP/1.1\r\nHost: public.example\r\n\r\n"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


async def ask(place: Neighbourhood, raw: bytes, name: str) -> tuple[int, str]:
    wire = await place.dial(name, 80)
    answer = await wire.ask(raw)
    return answer.status, "" if answer.status == 200 else json.loads(answer.body).get("rule", "")


@pytest.mark.parametrize("found", [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["93.184.216.34", "192.168.0.1"]])
async def test_a_name_at_a_special_address_is_refused(tmp_path: Path, found: list[str]) -> None:
    """A name that resolves into the house, even beside honest addresses, is not connected to (DNS rebinding)."""

    async def resolve(name: str, port: int) -> list[str]:
        return found

    async with neighbourhood(tmp_path, PUBLIC, resolver=resolve) as place:
        assert await ask(place, GET_PUBLIC, "public.example") == (403, "bailiwick.network/address")
        outcome = (await place.finished())[0]
        assert (outcome.body["result"], "address" in outcome.body) == ("failed", False)


async def test_nothing_is_resolved_before_it_is_allowed(tmp_path: Path) -> None:
    """A denied action asks no resolver: DNS carries nothing out."""
    asked: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["10.0.0.1"]

    async with neighbourhood(tmp_path, CONFIG, resolver=resolve) as place:
        assert (await ask(place, GET_PUBLIC, "public.example"))[0] == 403
        assert asked == []


async def test_a_loopback_literal_is_refused_by_the_network_in_observe_mode_too(tmp_path: Path) -> None:
    """Observing relaxes policy, never the network's own rules."""
    async with neighbourhood(tmp_path, observe=True) as place:
        server = await place.pin("unused.example")
        wire = await place.dial("127.0.0.1", server.port)
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (answer.status, json.loads(answer.body)["rule"]) == (403, "bailiwick.network/address")
        assert server.connections == 0


async def test_an_upstream_certified_for_another_name_is_not_spoken_to(tmp_path: Path) -> None:
    """TLS is verified for the authorised name; nothing of the request is sent before."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", tls=True, certified="other.example")
        wire = await place.dial_tls("config.internal")
        answer = await wire.ask(b"PUT / HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 0\r\n\r\n")
        assert (answer.status, json.loads(answer.body)["rule"]) == (502, "bailiwick.upstream/tls-verification")
        assert upstream.requests == []
        outcome = (await place.finished())[0]
        assert outcome.body["result"] == "failed"  # not unknown: it was never sent


async def test_an_authority_nobody_trusts_is_not_trusted(tmp_path: Path) -> None:
    """Without a pinned authority the system's roots decide."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", tls=True)
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address=pin.address, port=pin.port, ca=None, tls=True)
        place.reopen()
        wire = await place.dial_tls("config.internal")
        answer = await wire.ask(GET)
        assert json.loads(answer.body)["rule"] == "bailiwick.upstream/tls-verification"
        assert upstream.requests == []


async def test_a_refused_connection_and_an_unknown_name_are_told_apart(tmp_path: Path) -> None:
    """The agent and the record read which it was."""

    async def resolve(name: str, port: int) -> list[str]:
        raise UpstreamFailed("name-unknown", f"{name} cannot be resolved")

    async with neighbourhood(tmp_path, CONFIG, PUBLIC, resolver=resolve) as place:
        await place.pin("config.internal")
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address="127.0.0.1", port=1)
        place.reopen()
        assert await ask(place, GET, "config.internal") == (502, "bailiwick.upstream/connect-failed")
        assert await ask(place, GET_PUBLIC, "public.example") == (502, "bailiwick.upstream/name-unknown")


async def test_a_connection_that_does_not_come_up_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never finishes its handshake is given up."""
    monkeypatch.setattr(limits, "UPSTREAM_CONNECT_SECONDS_MAX", 0.1)

    async def mute(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(handler=mute))
        pin = place.hosts["config.internal"]
        place.hosts["config.internal"] = type(pin)(address=pin.address, port=pin.port, tls=True)
        place.reopen()
        assert await ask(place, GET, "config.internal") == (504, "bailiwick.upstream/connect-timeout")


async def test_connections_are_of_one_run(tmp_path: Path) -> None:
    """What one run kept open is never another's."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        assert (await ask(place, GET, "config.internal"))[0] == 200
        other = place._run()
        assert other.upstreams.kept(other.upstreams.destination("config.internal", 80, "http")) is None
        assert place.run.upstreams.kept(place.run.upstreams.destination("config.internal", 80, "http")) is not None
        assert upstream.connections == 1


async def test_idle_connections_are_closed_in_time(tmp_path: Path) -> None:
    """What nobody uses does not stay open."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        assert (await ask(place, GET, "config.internal"))[0] == 200
        upstreams = place.run.upstreams
        upstreams.sweep(asyncio.get_running_loop().time() + upstream_module.IDLE_SECONDS_MAX + 1)
        assert upstreams.kept(upstreams.destination("config.internal", 80, "http")) is None


async def test_an_upstream_that_speaks_out_of_turn_is_not_used_again(tmp_path: Path) -> None:
    """Bytes nobody asked for mean that the connection is out of step: the next request gets another."""

    async def chatty(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await reader.read(-1)

    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", Upstream(handler=chatty))
        wire = await place.dial("config.internal", 80)
        assert (await wire.ask(GET)).body == b"ok"
        await place.until(lambda: not place.run.upstreams._all)
        assert (await wire.ask(GET)).body == b"ok"
        assert upstream.connections == 2


async def test_a_pin_that_is_no_certificate_fails_that_host_only() -> None:
    """A broken authority in the configuration is named."""
    with pytest.raises(UpstreamFailed, match="not a PEM certificate"):
        TlsContexts().context("nonsense")
    upstreams = Upstreams(asyncio.get_running_loop(), TlsContexts())
    assert upstreams.destination("a.example", 443, "https") == Destination("a.example", 443, True)
