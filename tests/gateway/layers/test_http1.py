import contextlib
from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bailiwick.gateway.layers.heads import RequestHead, ResponseHead
from bailiwick.gateway.layers.http1 import END, End, ProtocolViolation, RequestReader, ResponseReader, end_to_end, request_bytes, response_bytes
from bailiwick.kernel import limits

HOST = b"Host: a.example\r\n"


def requests(raw: bytes, cuts: list[int] | None = None) -> tuple[list[object], str | None]:
    """Every event of every message, and the code it ended with. Adjacent data is one piece."""
    reader = RequestReader()
    events: list[object] = []
    points = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts or [])})
    try:
        for start, end in pairwise(points):
            add(events, reader.feed(raw[start:end]))
            while events and events[-1] is END:
                more = reader.next()
                if not more:
                    break
                add(events, more)
    except ProtocolViolation as violation:
        return events, violation.code
    return events, None


def answers(method: str, raw: bytes, cuts: list[int] | None = None) -> tuple[list[object], str | None]:
    reader = ResponseReader()
    reader.expect(method)
    events: list[object] = []
    points = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts or [])})
    try:
        for start, end in pairwise(points):
            add(events, reader.feed(raw[start:end]))
        add(events, reader.close())
    except ProtocolViolation as violation:
        return events, violation.code
    return events, None


def add(events: list[object], more: list[RequestHead | bytes | End] | list[ResponseHead | bytes | End]) -> None:
    for event in more:
        if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
            events[-1] += event
        else:
            events.append(event)


def head_of(raw: bytes) -> RequestHead:
    events, code = requests(raw)
    assert code is None
    assert isinstance(events[0], RequestHead)
    return events[0]


def test_a_request_is_its_head_its_body_and_its_end() -> None:
    """A whole request in one piece is a head, its data and an end; what follows waits."""
    reader = RequestReader()
    events = reader.feed(b"POST /p?q HTTP/1.1\r\nHost: A.Example:8080\r\nContent-Length: 3\r\nX:  y \r\n\r\nabcGET /")
    head = events[0]
    assert isinstance(head, RequestHead)
    assert (head.method, head.target, head.form, head.authority) == ("POST", "/p?q", "origin", "a.example:8080")
    assert head.fields == ((b"host", b"A.Example:8080"), (b"content-length", b"3"), (b"x", b"y"))
    assert (head.framing, head.length, head.keep_alive) == ("length", 3, True)
    assert events[1:] == [b"abc", END]
    assert reader.pending == 5
    assert reader.feed(b"2 HTTP/1.1\r\n") == []
    assert reader.next() == []


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "length-and-coding"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n", "duplicate-content-length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\n", "invalid-content-length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\n", "invalid-content-length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x3\r\n\r\n", "invalid-content-length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n", "invalid-content-length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "unknown-transfer-encoding"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", "unknown-transfer-encoding"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", "duplicate-transfer-encoding"),
        (b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", "unknown-transfer-encoding"),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", "duplicate-host"),
        (b"GET / HTTP/1.1\r\n\r\n", "missing-host"),
        (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", "invalid-host"),
        (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "invalid-host"),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "invalid-host"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", "obs-fold"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n", "bare-lf"),
        (b"GET / HTTP/1.1\n" + HOST + b"\r\n", "bare-lf"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rC: d\r\n\r\n", "bare-cr"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n", "nul"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x1bc\r\n\r\n", "control-character"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length : 3\r\n\r\n", "space-before-colon"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A(: b\r\n\r\n", "invalid-field-name"),
        (b"GET / HTTP/1.1\r\n" + HOST + b": b\r\n\r\n", "invalid-field-name"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n", "malformed-field"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * limits.HEAD_BYTES_MAX + b"\r\n\r\n", "head-too-large"),
        (b"GET /" + b"x" * limits.HEAD_BYTES_MAX, "head-too-large"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * limits.HEADER_FIELDS_MAX + b"\r\n", "too-many-fields"),
        (b"GET /\r\n", "http-version"),
        (b"GET / HTTP/2.0\r\n\r\n", "http-version"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http-version"),
        (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", "http-version"),
        (b"GET / http/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-method"),
        (b"\x16\x03\x01\x02\x00", "invalid-method"),
        (b"\r\nGET / HTTP/1.1\r\n", "empty-line"),
        (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n", "control-character"),
        (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET ftp://a.example/ HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"GET http://b.example/ HTTP/1.1\r\n" + HOST + b"\r\n", "host-mismatch"),
        (b"GET http://a.example:81/ HTTP/1.1\r\n" + HOST + b"\r\n", "host-mismatch"),
        (b"GET http://u@a.example/ HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"CONNECT a.example HTTP/1.1\r\n" + HOST + b"\r\n", "invalid-target"),
        (b"CONNECT b.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", "host-mismatch"),
        (b"CONNECT a.example:443 HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n", "connect-with-body"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\n\r\n", "unknown-expectation"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\n", "bad-chunk-size"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", "bad-chunk-size"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n", "bad-chunk-size"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 300, "bad-chunk-size"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n", "bare-lf"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd", "bad-chunk"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\nC: d\r\n\r\n", "bare-lf"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n fold\r\n\r\n", "malformed-field"),
    ],
)
def test_what_two_parsers_could_read_differently_is_refused_by_name(raw: bytes, code: str) -> None:
    """Each way of smuggling, and each malformed head, is refused with its own code, in whatever pieces it arrives."""
    assert requests(raw)[1] == code
    if len(raw) < 4096:
        assert requests(raw, list(range(len(raw))))[1] == code


def test_chunks_are_joined_and_extensions_and_trailers_dropped() -> None:
    """A chunked body is its data."""
    raw = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\nA \t; c\r\n0123456789\r\n0\r\nT: x\r\n\r\nGET"
    events, code = requests(raw)
    assert code is None
    assert events[1:] == [b"abc0123456789", END]


def test_hop_by_hop_fields_and_those_connection_names_are_not_forwarded() -> None:
    """Connection speaks of one hop: what it names ends here."""
    head = head_of(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close, X-One\r\nX-One: 1\r\nTE: trailers\r\nX-Two: 2\r\nProxy-Authorization: b\r\n\r\n")
    assert end_to_end(head.fields) == [(b"host", b"a.example"), (b"x-two", b"2")]
    assert not head.keep_alive


def test_an_offer_of_h2c_is_passed_over_and_a_websocket_is_named() -> None:
    """Java's client offers h2c with every request and goes on without; a WebSocket handshake means it."""
    assert not head_of(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n").upgrade
    assert head_of(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n").upgrade


@pytest.mark.parametrize(
    ("method", "raw", "body", "code"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", None),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok", None),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"", None),
        ("GET", b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n", b"", None),
        ("GET", b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"", None),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end", None),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: x\r\n\r\n", b"ok", None),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", b"ok", "answer-cut"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok", b"ok", "answer-cut"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200", b"", "answer-unasked"),
        ("GET", b"HTTP/1.1 101 Switching\r\n\r\n", b"", "answer-switches-protocols"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"", "duplicate-content-length"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"", "length-and-coding"),
        ("GET", b"ICY 200 OK\r\n\r\n", b"", "not-http"),
        ("GET", b"HTTP/2 200 OK\r\n\r\n", b"", "not-http"),
        ("GET", b"HTTP/1.1 200 OK\nA: b\n\n", b"", "bare-lf"),
        ("GET", b"", b"", "answer-cut"),
    ],
)
def test_answers_are_read_as_strictly(method: str, raw: bytes, body: bytes, code: str | None) -> None:
    """Framing of an answer follows RFC 9112 6.3; what breaks it is refused by name."""
    events, ended = answers(method, raw)
    assert ended == code
    assert b"".join(event for event in events if isinstance(event, bytes)) == body
    assert (answers(method, raw, list(range(len(raw) + 1)))[1]) == code


# -- properties

pieces = st.sampled_from(
    [
        b"GET ", b"POST ", b"/", b"/a?b", b" ", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\0", HOST, b"Host: b\r\n", b"A: b\r\n", b"A : b\r\n",
        b" c\r\n",
        b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"3;x\r\n",
        b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"CONNECT a.example:443 HTTP/1.1\r\n", b"GET http://a.example/x HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", b"\xff", b":", b"\t", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 C\r\n\r\n",
    ]
)  # fmt: skip
wires = st.one_of(st.lists(pieces, max_size=14).map(b"".join), st.binary(max_size=80))


@settings(max_examples=400, deadline=None)
@given(wires, st.lists(st.integers(0, 400), max_size=8))
@example(b"GET / HTTP/1.1\r\nA : b\r\nC: d\nE: f\r\n\r\n", [30])
@example(b"\r\nGET / HTTP/1.1\r\n", [1])
def test_how_bytes_were_split_changes_nothing(raw: bytes, cuts: list[int]) -> None:
    """The events, and the code of a violation, are those of the bytes in one piece; nothing but ProtocolViolation is ever raised."""
    assert requests(raw, cuts) == requests(raw)
    whole, code = answers("GET", raw)
    cut, cut_code = answers("GET", raw, cuts)
    assert cut_code == code
    if code is None:
        assert cut == whole


tokens = st.text("abcXYZ09-_!", min_size=1, max_size=8).map(str.encode)
values = st.text("".join(map(chr, [*range(0x21, 0x7F), 0xE9])), max_size=12).map(lambda text: text.encode("latin-1"))
names = tokens.filter(lambda name: name.lower() not in (b"host", b"te", b"trailer", b"upgrade", b"expect", b"connection"))


@settings(max_examples=200, deadline=None)
@given(tokens, st.text("abc/%20?&=.;,|{}", max_size=20), st.lists(st.tuples(names, values), max_size=6))
def test_what_is_written_reads_back_equal(method: bytes, path: str, fields: list[tuple[bytes, bytes]]) -> None:
    """serialise(parse(x)) parses to the same head."""
    raw = b"%b /%b HTTP/1.1\r\nHost: a.example\r\n%b\r\n" % (method, path.encode(), b"".join(b"%b:%b\r\n" % field for field in fields))
    head = head_of(raw)
    assert head_of(request_bytes(head.method, head.target, head.fields)) == head
    answer = response_bytes(200, b"Fine", [*((name.lower(), value) for name, value in fields), (b"content-length", b"0")])
    events, code = answers("GET", answer)
    assert code is None
    assert isinstance(events[0], ResponseHead)
    assert response_bytes(200, events[0].reason, events[0].fields) == answer


class Oracle:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


@settings(max_examples=400, deadline=None)
@given(wires)
@example(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
def test_llhttp_reads_the_same_in_what_is_taken(raw: bytes) -> None:
    """Whatever one whole request is here, is the same request to the parser half the world uses."""
    reader = RequestReader()
    try:
        events = reader.feed(raw)
    except ProtocolViolation:
        return
    if END not in events or events[0].method == "CONNECT":  # type: ignore[union-attr]
        return
    head = events[0]
    assert isinstance(head, RequestHead)
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    with contextlib.suppress(httptools.HttpParserUpgrade, httptools.HttpParserInvalidMethodError):  # it knows no methods but those registered
        parser.feed_data(raw[: len(raw) - reader.pending])
    if not oracle.done and head.method not in ("GET", "POST"):
        return
    assert oracle.done
    assert tuple(oracle.headers) == head.fields
    assert oracle.body == b"".join(event for event in events if isinstance(event, bytes))
