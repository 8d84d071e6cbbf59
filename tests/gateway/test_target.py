"""What is decided is what is done, whichever door a request comes through."""

import asyncio
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.neighbourhood import Neighbourhood, Upstream, Wire, neighbourhood, read_request

from bailiwick.critic.enforcement import ModelRoute
from bailiwick.critic.rules import ModelRules, Rule
from bailiwick.gateway.actions import normalise_path

PLAIN, SEALED, MODELS = "plain.internal", "sealed.internal", "api.openai.test"
HOSTS = (PLAIN, SEALED, MODELS)
RULES = [{"allow": ["read", "write", "delete"], "http": host} for host in HOSTS]
DOORS = ("plain", "tls", "absolute", "tunnel", "models-host", "models-base", "models-by-proxy", "models-by-tunnel")
CALL = json.dumps({"model": "gpt-5.2", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}).encode()

anyio_only = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


class Watched(Upstream):
    """Notes with each request by which name TLS asked for it; None in the clear."""

    seen: list[tuple[str | None, str, str, str]]

    def __init__(self) -> None:
        super().__init__(handler=self._note)
        self.seen = []
        self.server_name: str | None = None

    def named(self, _connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.server_name = name

    async def _note(self, _upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self.server_name if writer.get_extra_info("ssl_object") is not None else None
        while True:
            head = (await read_request(reader)).split(b"\r\n\r\n")[0].decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            (host,) = [line.partition(": ")[2] for line in head[1:] if line.lower().startswith("host:")]
            self.seen.append((name, method, target, host))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" if method != "HEAD" else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await writer.drain()


async def stand(place: Neighbourhood) -> dict[str, Watched]:
    upstreams = {name: Watched() for name in HOSTS}
    for name, upstream in upstreams.items():
        await place.pin(name, upstream, tls=name != PLAIN, watch=upstream.named)
    place.models = [ModelRoute(provider="openai", dialect="openai", host=MODELS)]
    place.model_rules = ModelRules.model_validate({"provider": "openai", "allow": ["gpt-5.2"]})
    place.reopen()
    return upstreams


async def go(place: Neighbourhood, door: str) -> tuple[Wire, str, str]:
    """A connection through that door, what stands before a path on it, and the Host to name."""
    if door == "plain":
        return await place.dial(PLAIN, 80), "", PLAIN
    if door in ("tls", "models-host"):
        name = SEALED if door == "tls" else MODELS
        return await place.dial_tls(name), "", name
    if door == "models-base":
        return await place.dial("198.18.0.2", 80), "/openai", "198.18.0.2"
    proxy = await place.dial("198.18.0.1", 3128)
    if door == "absolute":
        return proxy, f"http://{PLAIN}", PLAIN
    if door == "models-by-proxy":
        return proxy, "http://models.bailiwick.internal/openai", "models.bailiwick.internal"
    name, port = (SEALED, 443) if door == "tunnel" else ("198.18.0.2", 80)
    await proxy.reader_after(f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode())
    if door == "tunnel":
        await proxy.start_tls(place.agent_context(), name)
        return proxy, "", name
    return proxy, "/openai", name


segments = st.text(st.sampled_from("ab1.-_~!$&'()*+,=:@%;/"), max_size=6).map(lambda text: text.replace("%", "%41"))
paths = st.one_of(
    st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["/v1/files", "/openai/v1/files", "/v1/chat/completions", "/v1//chat/completions", "//" + MODELS + "/x", "/http://" + SEALED + "/x"]),
)
queries = st.sampled_from(["", "?", "?a=1&b=%2F", "?x=http://other.example/"])
requests = st.lists(st.tuples(st.sampled_from(DOORS), st.sampled_from(["GET", "HEAD", "DELETE", "POST"]), paths, queries), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(requests)
def test_what_is_decided_is_what_is_sent_where_it_is_sent(asked: list[tuple[str, str, str, str]]) -> None:
    """Through every door: the resource that was decided is the request line, the Host, the place connected to and the name that TLS verified."""
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(_hold(Path(directory), asked))


async def _hold(directory: Path, asked: list[tuple[str, str, str, str]]) -> None:
    async with neighbourhood(directory, *RULES) as place:
        upstreams = await stand(place)
        for door, method, path, query in asked:
            before = {name: len(upstream.seen) for name, upstream in upstreams.items()}
            told = len(place.recorder.of("action.decided"))
            wire, lead, host = await go(place, door)
            body = CALL if method == "POST" else b""
            head = f"{method} {lead}{path}{query} HTTP/1.1\r\nHost: {host}\r\n" + (f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n")
            answer = await wire.ask(head.encode() + body)
            sent = {name: upstream.seen[before[name] :] for name, upstream in upstreams.items()}
            if answer.status != 200:
                assert not any(sent.values())
                continue
            ((name, [seen]),) = [(name, seen) for name, seen in sent.items() if seen]
            (event,) = place.recorder.of("action.decided")[told:]
            server_name, as_method, target, as_host = seen
            assert (as_method, as_host, server_name) == (method, name, None if name == PLAIN else name)
            if event.verb == "call-model":
                assert (name, event.resource) == (MODELS, "openai/gpt-5.2")
                continue
            where, _, question = target.partition("?")
            scheme = "http" if name == PLAIN else "https"
            assert event.resource == f"{scheme}://{as_host}{normalise_path(where)[0]}{'?' + question if question else ''}"
            assert event.body["method"] == method


@anyio_only
async def test_behind_a_base_url_the_path_that_is_sent_is_decided(tmp_path: Path) -> None:
    """The provider's part of a base URL belongs to us: a rule speaks of the path that the provider sees."""
    async with neighbourhood(tmp_path, {"allow": ["read"], "http": MODELS, "path": "/v1/files"}) as place:
        upstreams = await stand(place)
        wire = await place.dial("198.18.0.2", 80)
        assert (await wire.ask(b"GET /openai/v1/files HTTP/1.1\r\nHost: 198.18.0.2\r\n\r\n")).status == 200
        assert (await wire.ask(b"GET /openai/openai/v1/files HTTP/1.1\r\nHost: 198.18.0.2\r\n\r\n")).status == 403
        assert [event.resource for event in place.recorder.of("action.decided")] == [f"https://{MODELS}/v1/files", f"https://{MODELS}/openai/v1/files"]
        assert [seen[2] for seen in upstreams[MODELS].seen] == ["/v1/files"]


@anyio_only
@pytest.mark.parametrize("name", ["198.18.0.2", "198.18.0.2:80", "models.bailiwick.internal"])
async def test_a_client_that_ignores_no_proxy_reaches_its_models(tmp_path: Path, name: str) -> None:
    """The base URL through the forward proxy, in absolute form, leads where the base URL leads."""
    async with neighbourhood(tmp_path) as place:
        upstreams = await stand(place)
        wire = await place.dial("198.18.0.1", 3128)
        answer = await wire.ask(
            f"POST http://{name}/openai/v1/chat/completions HTTP/1.1\r\nHost: {name}\r\nContent-Length: {len(CALL)}\r\n\r\n".encode() + CALL
        )
        assert answer.status == 200
        assert upstreams[MODELS].seen == [(MODELS, "POST", "/v1/chat/completions", MODELS)]
        assert place.recorder.of("action.decided")[0].resource == "openai/gpt-5.2"


@anyio_only
@pytest.mark.parametrize("where", ["http://api.openai.test", "http://api.openai.test:8080", "https://api.openai.test:444"])
async def test_a_model_is_not_called_elsewhere_than_where_it_is(tmp_path: Path, where: str) -> None:
    """A model's resource names no scheme and no port, so there is one: in the clear, or at another port, nothing is sent."""

    async def nowhere(_name: str, _port: int) -> list[str]:
        raise AssertionError("the name was resolved")

    async with neighbourhood(tmp_path, resolver=nowhere) as place:
        place.models = [ModelRoute(provider="openai", dialect="openai", host=MODELS)]
        place.model_rules = ModelRules.model_validate({"provider": "openai", "allow": ["gpt-5.2"]})
        place.reopen()
        wire = await place.dial("198.18.0.1", 3128)
        host = where.partition("://")[2]
        raw = f"POST {where}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(CALL)}\r\n\r\n"
        answer = await wire.ask(raw.encode() + CALL)
        assert (answer.status, json.loads(answer.body)["rule"]) == (403, "bailiwick.http/model-destination")


@anyio_only
@pytest.mark.parametrize("door", ["direct", "proxy", "tunnel"])
async def test_a_pinned_name_has_one_port_beside_the_schemes_own(tmp_path: Path, door: str) -> None:
    """What is decided and recorded is where it goes: a port that the pin would throw away is refused by name, the pin's own and the default are not."""
    async with neighbourhood(tmp_path) as place:
        upstream = await place.pin("config.internal")
        place.rules = [Rule.model_validate({"allow": ["read"], "http": f"config.internal:{port}"}) for port in (80, 8080, upstream.port)]
        place.reopen()

        async def ask(port: int) -> tuple[int, bytes]:
            host = f"config.internal:{port}"
            lead = f"http://{host}" if door == "proxy" else ""
            wire = await place.dial("config.internal", port) if door == "direct" else await place.dial("198.18.0.1", 3128)
            if door == "tunnel":
                await wire.reader_after(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = await wire.ask(f"GET {lead}/a HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return answer.status, answer.body

        assert (await ask(80))[0] == 200
        assert (await ask(upstream.port))[0] == 200
        status, body = await ask(8080)
        assert (status, json.loads(body)["rule"]) == (403, "bailiwick.http/pinned-port")
        assert len(upstream.requests) == 2
        assert [event.resource for event in place.recorder.of("action.decided")] == [
            "http://config.internal/a",
            f"http://config.internal:{upstream.port}/a",
        ]
        assert place.recorder.of("attempt.refused")[0].body["what"] == "pinned-port"
