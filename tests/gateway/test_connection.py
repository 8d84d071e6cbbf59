import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.neighbourhood import Neighbourhood, Upstream, neighbourhood

from bailiwick.gateway import runs
from bailiwick.gateway.runs import REFUSALS_BURST
from bailiwick.kernel import limits

CONFIG = {"allow": ["read", "write", "delete"], "http": "config.internal"}
GET = b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


def attempts(place: Neighbourhood) -> list[str]:
    return [event.body["what"] for event in place.recorder.of("attempt.refused")]


async def test_pipelined_requests_are_answered_one_by_one_in_order(tmp_path: Path) -> None:
    """What an agent pipelines is decided and sent only when the exchange before is over."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        upstream.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(5)]
        wire = await place.dial("config.internal", 80)
        wire.send(GET * 5)
        assert [(await wire.answer()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert upstream.connections == 1


async def test_ten_thousand_pipelined_refusals_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is pipelined, nothing recurses; an agent that does not read its answers is not read either."""
    monkeypatch.setattr(runs, "DENIALS_BURST", 10_000)
    async with neighbourhood(tmp_path) as place:
        wire = await place.dial("stranger.example", 80)
        wire.send(b"GET / HTTP/1.1\r\nHost: stranger.example\r\n\r\n" * 10_000)
        for _ in range(10_000):
            assert (await wire.answer()).status == 403


@pytest.mark.parametrize(
    ("raw", "status", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 400, "host-mismatch"),
        (b"GET / HTTP/1.1\r\nHost: config.internal:81\r\n\r\n", 400, "host-mismatch"),
        (b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n", 400, "host-mismatch"),
        (b"GET https://config.internal/ HTTP/1.1\r\nHost: config.internal\r\n\r\n", 400, "host-mismatch"),
        (b"GET / HTTP/1.1\r\nHost: config.internal\r\nHost: config.internal\r\n\r\n", 400, "duplicate-host"),
        (b"POST / HTTP/1.1\r\nHost: config.internal\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "length-and-coding"),
        (b"GET / HTTP/1.1\r\nHost: config.internal\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 501, "upgrade"),
        (b"CONNECT config.internal:443 HTTP/1.1\r\nHost: config.internal:443\r\n\r\n", 403, "connect-refused"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version"),
        (b"GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", 400, "invalid-host"),
        (b"\x00\x01\x02\x03", 400, "invalid-method"),
    ],
)
async def test_what_is_no_request_for_this_host_is_refused_and_recorded(tmp_path: Path, raw: bytes, status: int, what: str) -> None:
    """A Host that is not the connection's, a smuggled body, an upgrade: a protocol answer, a line in the record, nothing forwarded, the connection ends."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(raw)
        assert answer.status == status
        assert json.loads(answer.body)["rule"] == f"bailiwick.http/{what}"
        assert attempts(place) == [what]
        assert await wire.rest() == b""
        assert upstream.connections == 0


@pytest.mark.parametrize(("path", "what"), [(b"/a/../b", "dot-segment"), (b"/%2e%2e/b", "dot-segment"), (b"/a%00", "path")])
async def test_an_unclear_request_is_refused_whatever_the_boundary_allows(tmp_path: Path, path: bytes, what: str) -> None:
    """What two servers would read differently is no action."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(b"GET %b HTTP/1.1\r\nHost: config.internal\r\n\r\n" % path)
        assert (answer.status, json.loads(answer.body)["type"]) == (403, "urn:bailiwick:problem:unclear")
        assert attempts(place) == [what]
        assert (await wire.ask(GET)).status == 200


async def test_a_flood_of_broken_requests_does_not_fill_the_record(tmp_path: Path) -> None:
    """Refused attempts are written at a bounded rate; those that were not are counted."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        for number in range(REFUSALS_BURST + 50):
            place.run.refuse_attempt("test", str(number), "flood")
        written = place.recorder.of("attempt.refused")
        assert REFUSALS_BURST <= len(written) < REFUSALS_BURST + 10
        place.run._refusals.tokens = 1.0
        place.run.refuse_attempt("test", "last", "flood")
        assert place.recorder.of("attempt.refused")[-1].body["suppressed"] >= 40


async def test_a_broken_body_ends_an_effect_under_way_as_broken(tmp_path: Path) -> None:
    """A body that breaks its coding is never completed towards the upstream."""
    ended: list[bytes] = []

    async def listen(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ended.append(await reader.read(-1))
        except ConnectionError:
            ended.append(b"reset")

    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", Upstream(handler=listen))
        wire = await place.dial("config.internal", 80)
        wire.send(b"POST / HTTP/1.1\r\nHost: config.internal\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await place.until(lambda: bool(place.run.unfinished) and not place.tasks)
        wire.send(b"zz\r\n")
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (400, "bailiwick.http/bad-chunk-size")
        outcome = (await place.finished())[0]
        assert (outcome.body["result"], outcome.body["error"]) == ("unknown", "bad-chunk-size")
        await place.until(lambda: bool(ended))
        assert not ended[0].endswith(b"0\r\n\r\n")


# -- doors


async def test_the_forward_proxy_serves_absolute_targets_and_tunnels(tmp_path: Path) -> None:
    """Absolute form in the clear, CONNECT for TLS: both are decided like every other request, by the name in the authority."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        proxy = await place.dial("198.18.0.1", 3128)
        assert (await proxy.ask(b"GET http://config.internal/x HTTP/1.1\r\nHost: config.internal\r\n\r\n")).status == 200
        assert (await proxy.ask(b"GET http://other.example/x HTTP/1.1\r\nHost: other.example\r\n\r\n")).status == 403
        answer = await proxy.ask(b"GET /x HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert json.loads(answer.body)["rule"] == "bailiwick.http/not-absolute"
        tunnel = await place.dial("198.18.0.1", 3128)
        opened = await tunnel.reader_after(b"CONNECT config.internal:443 HTTP/1.1\r\nHost: config.internal:443\r\n\r\n")
        assert opened.startswith(b"HTTP/1.1 200 ")
        await tunnel.start_tls(place.agent_context(), "config.internal")
        assert (await tunnel.ask(GET)).status == 200
        assert [event.body["via"] for event in place.recorder.of("action.decided")] == ["proxy", "proxy", "connect"]


async def test_a_tunnel_may_carry_plain_requests_but_not_on_the_port_of_https(tmp_path: Path) -> None:
    """CONNECT host:80 followed by plain HTTP is a request to that host; on 443 it is refused."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        tunnel = await place.dial("198.18.0.1", 3128)
        await tunnel.reader_after(b"CONNECT config.internal:80 HTTP/1.1\r\nHost: config.internal:80\r\n\r\n")
        assert (await tunnel.ask(GET)).status == 200
        tunnel = await place.dial("198.18.0.1", 3128)
        await tunnel.reader_after(b"CONNECT config.internal:443 HTTP/1.1\r\nHost: config.internal:443\r\n\r\n")
        assert json.loads((await tunnel.ask(GET)).body)["rule"] == "bailiwick.http/plain-on-tls-port"
        nested = await place.dial("198.18.0.1", 3128)
        await nested.reader_after(b"CONNECT config.internal:80 HTTP/1.1\r\nHost: config.internal:80\r\n\r\n")
        answer = await nested.ask(b"CONNECT config.internal:80 HTTP/1.1\r\nHost: config.internal:80\r\n\r\n")
        assert answer.status == 403


@pytest.mark.parametrize(("sni", "dialled"), [("other.example", "config.internal"), ("config.internal", "other.example")])
async def test_another_server_name_than_the_connections_gets_an_alert(tmp_path: Path, sni: str, dialled: str) -> None:
    """SNI must be the authorised name: a front for another host ends in the handshake, and stands in the record."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        wire = await place.dial(dialled, 443)
        with pytest.raises(ssl.SSLError):
            await wire.start_tls(place.agent_context(), sni)
        assert attempts(place) == ["sni-mismatch"]


async def test_a_dialled_address_without_a_name_takes_the_clients_and_is_held_to_it(tmp_path: Path) -> None:
    """Whoever dials an address directly is governed by the name in its hello: policy, pin and verification all use that name."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal", tls=True)
        wire = await place.dial("93.184.216.34", 443)
        await wire.start_tls(place.agent_context(), "config.internal")
        assert (await wire.ask(GET)).status == 200
        assert upstream.connections == 1
        other = await place.dial("93.184.216.34", 443)
        await other.start_tls(place.agent_context(), "other.example")
        assert (await other.ask(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")).status == 403


async def test_without_a_server_name_the_known_name_or_the_address_is_certified(tmp_path: Path) -> None:
    """A client that sends no SNI is served with the certificate of what it dialled."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal", tls=True)
        context = place.agent_context()
        context.check_hostname = False
        wire = await place.dial("config.internal", 443)
        await wire.start_tls(context, None)
        certificate = wire.writer.get_extra_info("ssl_object").getpeercert()
        assert certificate["subjectAltName"] == (("DNS", "config.internal"),)
        assert (await wire.ask(GET)).status == 200
        wire = await place.dial("93.184.216.34", 443)
        await wire.start_tls(context, None)
        assert wire.writer.get_extra_info("ssl_object").getpeercert()["subjectAltName"] == (("IP Address", "93.184.216.34"),)
        assert (await wire.ask(b"GET / HTTP/1.1\r\nHost: 93.184.216.34\r\n\r\n")).status == 403


@pytest.mark.parametrize("garbage", [b"\x16", b"\x16\x03\x01\xff\xff" + b"x" * 400, b"\x16\x03\x01\x00\x05hello", b"\x16" * 3000])
async def test_a_garbage_hello_ends_in_the_record_and_nowhere_else(tmp_path: Path, garbage: bytes) -> None:
    """No handshake of any kind raises past the connection."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        wire = await place.dial("config.internal", 443)
        wire.send(garbage)
        if len(garbage) > 1:
            await place.until(lambda: bool(attempts(place)) or not place.run.connections or len(garbage) == 405)
        wire.close()
        await place.until(lambda: not place.run.connections)


async def test_the_name_behind_a_synthetic_address_is_the_authority(tmp_path: Path) -> None:
    """IPv4 or the same mapped into IPv6: the address stands for its name; Host may be the address or the name."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        address = place.run.names.address_of("config.internal")
        for dialled in (address, f"::ffff:{address}"):
            wire = await place.dial(dialled, 80)
            assert (await wire.ask(GET)).status == 200
            assert (await wire.ask(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % address.encode())).status == 200
        assert {event.resource for event in place.recorder.of("action.decided")} == {"http://config.internal/"}


# -- limits


async def test_a_head_that_does_not_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow head has a deadline that no further byte moves."""
    monkeypatch.setattr(limits, "HEAD_SECONDS_MAX", 0.2)
    async with neighbourhood(tmp_path, CONFIG) as place:
        wire = await place.dial("config.internal", 80)
        loop = asyncio.get_running_loop()

        def drip() -> bool:
            wire.send(b"X")
            place.run.sweep(loop.time())
            return bool(attempts(place)) and not place.run.connections

        wire.send(b"GET / HTTP/1.1\r\n")
        await place.until(drip)
        assert attempts(place) == ["head-timeout"]


async def test_connections_of_a_run_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than a run may have is closed, and recorded; those before are served."""
    monkeypatch.setattr(limits, "CONNECTIONS_PER_RUN_MAX", 2)
    async with neighbourhood(tmp_path, CONFIG) as place:
        await place.pin("config.internal")
        first = await place.dial("config.internal", 80)
        await place.dial("config.internal", 80)
        third = await place.dial("config.internal", 80)
        assert await third.rest() == b""
        assert attempts(place) == ["connection"]
        assert (await first.ask(GET)).status == 200


async def test_http_1_0_gets_what_it_understands(tmp_path: Path) -> None:
    """A client of 1.0 gets a body until the end, and no chunks."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        upstream.answers = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(b"GET / HTTP/1.0\r\nHost: config.internal\r\n\r\n")
        assert "transfer-encoding" not in answer.fields
        assert answer.body == b"ok"


async def test_a_head_request_and_an_empty_answer_keep_the_connection(tmp_path: Path) -> None:
    """HEAD keeps its length and has no body; 204 and 304 have none either."""
    async with neighbourhood(tmp_path, CONFIG) as place:
        upstream = await place.pin("config.internal")
        upstream.answers = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\nContent-Length: 0\r\n\r\n",
        ]
        wire = await place.dial("config.internal", 80)
        head = await wire.ask(GET.replace(b"GET", b"HEAD"))
        assert head.fields["content-length"] == "5"
        assert [(await wire.ask(GET)).status for _ in range(3)] == [204, 304, 302]
        assert upstream.connections == 1


async def test_an_unknown_provider_is_named_with_those_there_are(tmp_path: Path) -> None:
    """A wrong base URL says what a right one would be."""
    async with neighbourhood(tmp_path) as place:
        wire = await place.dial("198.18.0.2", 80)
        answer = await wire.ask(b"POST /openai/v1/x HTTP/1.1\r\nHost: models.bailiwick.internal\r\nContent-Length: 0\r\n\r\n")
        assert answer.status == 404
        assert "must begin with a provider" in json.loads(answer.body)["reason"]
