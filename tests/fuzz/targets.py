"""What is fuzzed, with what seeds, and what must hold of it whatever the bytes."""

import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import msgspec

from bailiwick.gateway import actions, models
from bailiwick.gateway.layers import dns, tap
from bailiwick.gateway.layers.heads import RequestHead
from bailiwick.gateway.layers.http1 import End, ProtocolViolation, RequestReader, ResponseReader, end_to_end, request_bytes
from bailiwick.gateway.layers.sse import EventStream
from bailiwick.gateway.layers.tls import TlsFailure, TlsPump, front_context
from bailiwick.gateway.names import NamesExhausted, NameTable
from bailiwick.gateway.usage import UsageTap
from bailiwick.kernel.channel import Framer
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.document import Invalid, parse, validate
from bailiwick.kernel.errors import CallerError, PeerError
from bailiwick.kernel.ids import RunId
from bailiwick.record.event import decode
from bailiwick.record.leaf import disassemble
from bailiwick.record.messages import RECORDER
from bailiwick.trust.interception import InterceptionAuthority


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    run: Callable[[bytes, random.Random], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = (b"\r\n", b"\0", b" ", b"-1", b"18446744073709551616", b"\xff\xff\xff\xff")


def _pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _requests(pieces: list[bytes]) -> tuple[list[object], str | None]:
    reader, seen = RequestReader(), []
    try:
        for piece in pieces:
            events = list(reader.feed(piece))
            while events:
                seen += events
                events = list(reader.next()) if any(isinstance(event, End) for event in events) else []
    except ProtocolViolation as violation:
        return seen, violation.code
    return seen, None


def _merged(events: list[object]) -> list[object]:
    merged: list[object] = []
    for event in events:
        if isinstance(event, bytes) and merged and isinstance(merged[-1], bytes):
            merged[-1] += event
        else:
            merged.append(event)
    return merged


def http1_request(data: bytes, chance: random.Random) -> None:
    """However it is cut the same requests come out; and what is forwarded is read as one request, the same one, by the same strict reader."""
    whole, fault = _requests([data])
    cut, fault_cut = _requests(_pieces(data, chance))
    assert fault == fault_cut
    if fault is None:
        assert _merged(whole) == _merged(cut)
    for event in whole:
        if isinstance(event, RequestHead) and event.form == "origin":
            fields = [(b"host", event.authority.encode()), *((name, value) for name, value in end_to_end(event.fields) if name != b"host")]
            again, wrong = _requests([request_bytes(event.method, event.target, fields)])
            assert wrong is None
            head = again[0]
            assert isinstance(head, RequestHead)
            assert (head.method, head.target, head.authority) == (event.method, event.target, event.authority)
            with contextlib.suppress(actions.Unclear):
                actions.normalise(event, scheme="https", host="a.example", port=443, run=RunId("r"), agent="a")


def http1_response(data: bytes, chance: random.Random) -> None:
    reader = ResponseReader()
    reader.expect(chance.choice(["GET", "HEAD", "PUT"]))
    try:
        for piece in _pieces(data, chance):
            reader.feed(piece)
        reader.close()
    except ProtocolViolation:
        pass


def dns_query(data: bytes, _: random.Random) -> None:
    """Never raises, and a reply is a reply to this question: its id, and never longer than the question and what we add."""
    try:
        answer = dns.answer(data, NameTable())
    except NamesExhausted:
        return
    if answer.reply is not None:
        assert answer.reply[:2] == data[:2]
        assert answer.reply[2] & 0x80
        assert len(answer.reply) <= 4096


def tap_packet(data: bytes, _: random.Random) -> None:
    tap.read_attempt(data)


def sse(data: bytes, chance: random.Random) -> None:
    """However it is cut the same events come out."""
    whole, cut = EventStream(), EventStream()
    seen: list[object] = []
    for piece in _pieces(data, chance):
        seen += cut.feed(piece)
    assert whole.feed(data) == seen


@cache
def _front() -> ssl.SSLContext:
    return front_context(InterceptionAuthority.create(SystemClock()).context_for)


def tls_hello(data: bytes, chance: random.Random) -> None:
    pump = TlsPump.server(_front(), "a.example")
    try:
        for piece in _pieces(data, chance):
            pump.feed(piece)
    except TlsFailure:
        pass
    pump.outgoing()


def _hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def configuration(data: bytes, _: random.Random) -> None:
    """Every finding names the file, a line and a column within it."""
    from bailiwick.app.configuration import Configuration

    try:
        validate(parse(data, file="bailiwick.yaml"), Configuration)
    except Invalid as invalid:
        lines = data.count(b"\n") + data.count(b"\r") + 3
        for finding in invalid.findings:
            assert finding.file == "bailiwick.yaml"
            assert 1 <= finding.line <= lines
            assert finding.column >= 1


def frames(data: bytes, chance: random.Random) -> None:
    framer = Framer(RECORDER)
    try:
        for piece in _pieces(data, chance):
            framer.receive(piece)
    except PeerError:
        pass


def _frame_seeds() -> tuple[bytes, ...]:
    from bailiwick.record.messages import AppendEvents, SubscribeEvents, TakeCheckpoint

    framer = Framer(RECORDER)
    hello = framer.hello()
    bodies = [AppendEvents(events=['{"id":"a","kind":"run.output","time":"t","v":1}']), SubscribeEvents(sequence=3), TakeCheckpoint()]
    return tuple(hello + framer.send("call", body, id=1) for body in bodies)


def event(data: bytes, _: random.Random) -> None:
    """An event or a leaf that is taken is written again byte for byte."""
    for read in (decode, disassemble):
        with contextlib.suppress(CallerError):
            read(data)


def model_call(data: bytes, _: random.Random) -> None:
    for endpoint in ("chat-completions", "responses", "messages", "embeddings"):
        try:
            call = models.read_call(endpoint, data)
        except CallerError:
            continue
        assert call.input_tokens_ceiling >= 0
        assert call.output_tokens_ceiling >= 0
        msgspec.json.encode(call.arguments)


def model_answer(data: bytes, chance: random.Random) -> None:
    for endpoint in ("chat-completions", "responses", "messages"):
        for stream in (True, False):
            usage = UsageTap(endpoint, stream=stream, content_encoding=None)
            for piece in _pieces(data, chance):
                usage.feed(piece)
            usage.finish()


_YAML = b"""trust_domain: example.org
hosts: {config.internal: "10.20.0.7:443"}
approvers: {oncall: {operators: [ana, bo], quorum: 1, expires: 2h}}
agents:
  deployer:
    command: [python, deployer.py]
    models: {provider: openai, allow: [gpt-5.2], budget: {tokens: 200_000, usd: 5}}
    limits: {cpu: 1, memory: 512MiB, pids: 128, disk: 1GiB, wall: 30m, writes: 50}
    boundary:
      - {allow: [read], http: config.internal}
      - {hold: [write], http: config.internal, path: /v1/production/**, approvers: [oncall], wait: 10m, four_eyes: false}
    credentials: [{use: t, for: config.internal, as: "Authorization: Bearer {value}"}]
credentials:
  t: {source: environment, variable: T, ttl: 15m}
"""
_CHAT = b'{"model":"gpt-5.2","stream":true,"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}],"max_tokens":10}'
_CHUNKS = (
    b'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}\n\n'
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
)
_MESSAGES = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"c","usage":{"input_tokens":3}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}\n\n'
)
_HTTP_WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: b\r\n", b"Connection: x\r\n", b" HTTP/1.1\r\n",
    b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"; ext", b"\t", b" :", b"http://a.example/", b"%2e%2e/", b"%00", b"..", b"//", b"\xc3\xa9", b"HTTP/1.0",
)  # fmt: skip

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "http1-request",
            http1_request,
            (
                b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n",
                b"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
                b"PUT /x HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n",
                b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
                b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close, x\r\n\r\n",
            ),
            _HTTP_WORDS,
        ),
        Target(
            "http1-response",
            http1_response,
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 No\r\n\r\nbody",
            ),
            _HTTP_WORDS,
        ),
        Target(
            "dns",
            dns_query,
            (
                b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01",
                b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x1c\x00\x01\x00\x00)\x10\x00\x00\x00\x00\x00\x00\x00",
                b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x010\x011\x0218\x03198\x07in-addr\x04arpa\x00\x00\x0c\x00\x01",
            ),
            (b"\xc0\x0c", b"\x3f", b"\x00", b"\x07example", b"\xff"),
        ),
        Target(
            "tap",
            tap_packet,
            (
                bytes.fromhex("4500003c1c4640004006b1e6c0a80068c0a80001") + bytes.fromhex("a0b401bb00000000000000005002000000000000"),
                bytes.fromhex("6000000000140640" + "20010db8000000000000000000000001" * 2) + bytes.fromhex("a0b401bb00000000000000005002000000000000"),
                bytes.fromhex("6000000000101140" + "20010db8000000000000000000000001" * 2) + bytes.fromhex("a0b4270f00100000") + b"12345678",
            ),
        ),
        Target("sse", sse, (_CHUNKS, _MESSAGES, b"\xef\xbb\xbf: c\rdata:a\r\ndata: b\nid: 1\nretry: 5\n\n"), (b"\r", b"\n", b"data:", b"event: ", b"\0")),
        Target("tls-hello", tls_hello, (_hello(), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n"), (b"\x00\x00", b"\x16\x03\x03")),
        Target("configuration", configuration, (_YAML,), (b"\n", b": ", b"&a ", b"*a", b"- ", b"{", b"}", b"!!x ", b"<<: ", b"\t", b"1e999", b"'")),
        Target("frames", frames, _frame_seeds(), (b"\x00\x00\x00\x02", b'{"kind":"call","body":{}}', b'"type":', b"[[[[", b"\xff\xff\xff\xff")),
        Target(
            "event",
            event,
            (
                b'{"id":"a","kind":"run.output","time":"t","v":1}',
                b'{"event":{"id":"a","kind":"run.output","time":"t","v":1},"previous":0,"received":"t","seq":1,"writer":"gateway-0"}',
            ),
            (b'"body":{"a":1.5}', b'"\\u0041"', b"[" * 50, b'"v":1,'),
        ),
        Target(
            "model-call", model_call, (_CHAT, b'{"model":"c","max_tokens":5,"messages":[]}', b'{"model":"m","input":"x"}'), (b'"model":"x",', b"1e5", b"null")
        ),
        Target("model-answer", model_answer, (_CHUNKS, _MESSAGES, b'{"model":"m","usage":{"prompt_tokens":1}}'), (b"null", b'"usage":', b"\n\n", b"-1")),
    )
}
