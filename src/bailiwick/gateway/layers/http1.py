"""HTTP/1.1 (RFC 9112) without I/O: bytes to heads, body data and ends, and heads back to bytes. One grammar, stricter than the RFC asks.

A message two parsers could read differently is refused by name (`ProtocolViolation.code`), never repaired. Heads are one regular expression over
the whole head, and what it does not cover byte for byte is refused; `httptools` is the tests' oracle, not a second opinion at run time. The answer
does not depend on how the bytes were split.

`RequestReader` and `ResponseReader` stop behind each message: what a peer pipelines stays in the buffer until `next()`.
"""

import re
from typing import Literal

from bailiwick.gateway.layers.chunked import ChunkReader, ProtocolViolation
from bailiwick.gateway.layers.grammar import FIELD, FIELDS, REQUEST_LINE, STATUS_LINE, refuse_head
from bailiwick.gateway.layers.heads import Fields, Framing, RequestHead, ResponseHead
from bailiwick.kernel import limits

__all__ = [
    "END", "End", "ProtocolViolation", "RequestReader", "ResponseReader", "end_to_end", "request_bytes", "response_bytes",
]  # fmt: skip


class End:
    """The message is whole."""

    __slots__ = ()


END = End()

_AUTHORITY = re.compile(rb"([0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)([/?][^#]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_MESSAGE = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))

HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"proxy-authentication-info", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings", b"content-length", b"expect",
    )
)  # fmt: skip
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}

RequestEvent = RequestHead | bytes | End
ResponseEvent = ResponseHead | bytes | End


class _Reader:
    """What both directions share: a buffer, the framing of the body at hand, the stop behind each message."""

    def __init__(self) -> None:
        self._buffer = b""
        self._state: Literal["head", "length", "chunked", "until-close", "done", "failed"] = "head"
        self._left = 0
        self._chunks = ChunkReader()
        self.alone: bytes | None = None  # the last head as it came, if it came at once and nothing with it
        self._scanned = 0  # of an unfinished head: looked at already, so that a head in single bytes costs no more than its size
        self.minor_version = 1

    @property
    def pending(self) -> int:
        """Bytes that arrived and wait for `next()`."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Between messages: nothing of the next one has arrived."""
        return self._state == "head" and not self._buffer

    def pass_over(self) -> None:
        """While idle: a whole message came and was known by its bytes. The reader stands behind it as if it had read it."""
        self._state = "done"

    def _body(self) -> "list[bytes | End]":
        data = self._buffer
        match self._state:
            case "length":
                if len(data) < self._left:
                    self._left -= len(data)
                    self._buffer = b""
                    return [data] if data else []
                piece = data[: self._left]
                self._buffer, self._state = data[self._left :], "done"
                return [piece, END] if piece else [END]
            case "chunked":
                try:
                    pieces, self._buffer = self._chunks.feed(data)
                except ProtocolViolation:
                    self._state = "failed"
                    raise
                if not self._chunks.finished:
                    return [*pieces]
                self._state = "done"
                return [*pieces, END]
            case "until-close":
                self._buffer = b""
                return [data] if data else []
            case _:
                return []

    def _begin_body(self, framing: Framing, length: int | None) -> None:
        match framing:
            case "none":
                self._state, self._left = "length", 0
            case "length":
                self._state, self._left = "length", length or 0
            case "chunked":
                self._state, self._chunks = "chunked", ChunkReader()
            case "until-close":
                self._state = "until-close"

    def _whole_head(self, line: re.Pattern[bytes]) -> tuple[re.Match[bytes], list[tuple[bytes, bytes]]] | None:
        """The head at the start of the buffer, once it is all there. Whatever the two expressions do not cover is refused with its name."""
        data = self._buffer
        scanned, self._scanned = self._scanned, 0
        end = data.find(b"\r\n\r\n", max(0, scanned - 3), limits.HEAD_BYTES_MAX)
        if end >= 0 and (start := line.match(data)) is not None:
            at = start.end()
            pairs = FIELD.findall(data, at, end + 2)
            if (at > end or FIELDS.fullmatch(data, at, end + 2)) and len(pairs) <= limits.HEADER_FIELDS_MAX:
                self._buffer = data[end + 4 :]
                return start, pairs
        try:
            refuse_head(data, end, line, scanned)
        except ProtocolViolation:
            self._state = "failed"
            raise
        self._scanned = len(data)
        return None


class RequestReader(_Reader):
    """An agent's requests. Raises ProtocolViolation and is then of no further use."""

    def feed(self, data: bytes) -> list[RequestEvent]:
        """What became known: a head, pieces of body, the end. Nothing of a message behind the one at hand."""
        if self._state == "failed":
            raise ProtocolViolation("broken", "the connection is out of step after an earlier violation")
        known_before = bool(self._buffer)
        self._buffer = self._buffer + data if known_before else data
        if self._state == "done":
            return []
        events: list[RequestEvent] = []
        if self._state == "head":
            if not self._buffer:
                return events
            whole = self._whole_head(REQUEST_LINE)
            if whole is None:
                return events
            self.alone = None if known_before or self._buffer else data
            try:
                head = self._head(*whole)
            except ProtocolViolation:
                self._state = "failed"
                raise
            events.append(head)
            self._begin_body(head.framing, head.length)
        events += self._body()
        return events

    def next(self) -> list[RequestEvent]:
        """The message at hand is answered: what of the following one is known already."""
        if self._state == "done":
            self._state = "head"
        return self.feed(b"") if self._buffer else []

    def take_rest(self) -> bytes:
        """Behind a CONNECT: bytes that are no longer HTTP of this reader."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _head(self, line: re.Match[bytes], pairs: list[tuple[bytes, bytes]]) -> RequestHead:
        method, target, minor = line.groups()
        fields = tuple([(name.lower(), value.strip(b" \t")) for name, value in pairs])
        special = _special(fields)
        self.minor_version = 1 if minor == b"1" else 0
        framing, length = _request_framing(special, self.minor_version)
        form, authority = _target(method, target, special.get(b"host"))
        if form == "authority" and framing != "none" and length != 0:
            raise ProtocolViolation("connect-with-body", "CONNECT carries a body; must carry none")
        connection = special.get(b"connection", b"").lower()
        expect = special.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise ProtocolViolation("unknown-expectation", "Expect is not known; must be 100-continue", status=417)
        upgrade = special.get(b"upgrade")
        return RequestHead(
            method.decode(),
            target.decode(),
            form,
            authority,
            fields,
            framing,
            length,
            _keeps_alive(connection, self.minor_version),
            upgrade is not None and upgrade.lower() != b"h2c",  # a client offering h2c speaks HTTP/1.1 when the offer is passed over (RFC 9110 7.8)
            expect is not None and self.minor_version == 1,
        )


class ResponseReader(_Reader):
    """An upstream's answers. `expect` says what was asked before its answer is fed."""

    def __init__(self) -> None:
        super().__init__()
        self._method = ""

    def expect(self, method: str) -> None:
        self._method = method
        self._state = "head"

    @property
    def asked(self) -> bool:
        """Nothing of the answer has come yet, and it may have a body."""
        return self._state == "head" and not self._buffer and self._method != "HEAD"

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """A head, pieces of body, the end. Interim answers (1xx) are dropped: the gateway speaks for itself. Bytes behind the end are a violation."""
        if self._state == "failed":
            raise ProtocolViolation("broken", "the connection is out of step after an earlier violation")
        self._buffer = self._buffer + data if self._buffer else data
        events: list[ResponseEvent] = []
        while self._state == "head" and self._buffer:
            whole = self._whole_head(STATUS_LINE)
            if whole is None:
                return events
            try:
                head = self._head(*whole)
            except ProtocolViolation:
                self._state = "failed"
                raise
            if head.status >= 200:
                events.append(head)
                self._begin_body(head.framing, head.length)
        events += self._body()
        if self._state == "done" and self._buffer:
            self._state = "failed"
            raise ProtocolViolation("answer-unasked", "bytes follow an answer that nobody asked for")
        return events

    def close(self) -> list[ResponseEvent]:
        """The upstream closed: the end of an until-close body; ProtocolViolation when the message was not whole."""
        if self._state == "until-close":
            self._state = "done"
            return [END]
        if self._state not in ("done", "failed"):
            raise ProtocolViolation("answer-cut", "the answer ended before it was whole")
        return []

    def _head(self, line: re.Match[bytes], pairs: list[tuple[bytes, bytes]]) -> ResponseHead:
        minor, code, reason = line.groups()
        status = int(code)
        fields = tuple([(name.lower(), value.strip(b" \t")) for name, value in pairs])
        special = _special(fields)
        self.minor_version = 1 if minor == b"1" else 0
        if status == 101:
            raise ProtocolViolation("answer-switches-protocols", "the answer switches protocols; nobody asked for it")
        framing, length = _response_framing(special, status, self._method, self.minor_version)
        keep_alive = framing != "until-close" and _keeps_alive(special.get(b"connection", b"").lower(), self.minor_version)
        return ResponseHead(status, reason or b"", fields, framing, length, keep_alive)


def end_to_end(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The fields without those that speak of one connection only, by RFC 9110 7.6.1 or because Connection names them, and without framing."""
    drop = HOP_BY_HOP
    for name, value in fields:
        if name == b"connection":
            drop = drop.union(token.strip(b" \t").lower() for token in value.split(b","))
    return [field for field in fields if field[0] not in drop]


def request_bytes(method: str, target: str, fields: list[tuple[bytes, bytes]] | Fields) -> bytes:
    """A head from parts that were parsed: the only way a request leaves the gateway."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target.encode("ascii"), b"".join(lines))


def response_bytes(status: int, reason: bytes, fields: list[tuple[bytes, bytes]] | Fields) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, b"".join(lines))


def _special(fields: Fields) -> dict[bytes, bytes]:
    """The fields that say how the message is read. A second Host, Content-Length or Transfer-Encoding is a violation, even an equal one."""
    special: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _MESSAGE:
            if name not in special:
                special[name] = value
            elif name in (b"connection", b"upgrade"):
                special[name] += b"," + value
            else:
                raise ProtocolViolation(f"duplicate-{name.decode()}", f"{name.decode()} is given more than once")
    return special


def _declared(special: dict[bytes, bytes], minor_version: int) -> tuple[Framing, int | None]:
    length, coding = special.get(b"content-length"), special.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise ProtocolViolation("length-and-coding", "both Content-Length and Transfer-Encoding are given")
        if coding.lower() != b"chunked":
            raise ProtocolViolation("unknown-transfer-encoding", "Transfer-Encoding is not known; must be chunked", status=501)
        if minor_version == 0:
            raise ProtocolViolation("unknown-transfer-encoding", "HTTP/1.0 knows no Transfer-Encoding")
        return "chunked", None
    if length is not None:
        if not _LENGTH.fullmatch(length):
            raise ProtocolViolation("invalid-content-length", "Content-Length is not a number of at most 18 digits")
        return "length", int(length)
    return "none", None


def _request_framing(special: dict[bytes, bytes], minor_version: int) -> tuple[Framing, int | None]:
    return _declared(special, minor_version)


def _response_framing(special: dict[bytes, bytes], status: int, method: str, minor_version: int) -> tuple[Framing, int | None]:
    framing, length = _declared(special, minor_version)
    if method == "HEAD" or status < 200 or status in (204, 304):
        return "none", length
    return ("until-close", None) if framing == "none" else (framing, length)


def _keeps_alive(connection: bytes, minor_version: int) -> bool:
    if not connection:
        return minor_version == 1
    tokens = [token.strip(b" \t") for token in connection.split(b",")]
    return b"close" not in tokens and (minor_version == 1 or b"keep-alive" in tokens)


def _target(method: bytes, target: bytes, host: bytes | None) -> tuple[Literal["origin", "absolute", "authority", "asterisk"], str]:
    if method == b"CONNECT":
        return "authority", _tunnel(target, host)
    if host is None:
        raise ProtocolViolation("missing-host", "Host is missing")
    named = _AUTHORITY.fullmatch(host)
    if named is None:
        raise ProtocolViolation("invalid-host", "Host is not a name or address with an optional port")
    if b"#" in target:
        raise ProtocolViolation("invalid-target", "the target has a fragment")
    if target[0] == 0x2F:
        return "origin", host.decode().lower()
    if target == b"*" and method == b"OPTIONS":
        return "asterisk", host.decode().lower()
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or (authority := _AUTHORITY.fullmatch(absolute[2])) is None:
        raise ProtocolViolation("invalid-target", "the target is neither a path nor an http or https URL")
    default = _DEFAULT_PORTS[absolute[1].lower()]
    if (authority[1].lower(), authority[2] or default) != (named[1].lower(), named[2] or default):
        raise ProtocolViolation("host-mismatch", "Host is not the host of the absolute target")
    return "absolute", absolute[2].decode().lower()


def _tunnel(target: bytes, host: bytes | None) -> str:
    """The authority a tunnel is asked to. Its target says all (RFC 9112, 3.2.3), and Python's own client sends no Host with it before 3.12."""
    authority = _AUTHORITY.fullmatch(target)
    if authority is None or authority[2] is None:
        raise ProtocolViolation("invalid-target", "the target of CONNECT is not host:port")
    if host is not None and host.lower() not in (target.lower(), authority[1].lower()):
        raise ProtocolViolation("host-mismatch", "Host is not the target of CONNECT")
    return target.decode().lower()
