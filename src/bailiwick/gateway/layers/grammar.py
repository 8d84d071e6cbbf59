"""The grammar of a message's head (RFC 9112, sections 2 to 5), and the names of the ways in which one can miss it."""

import re

from bailiwick.gateway.layers.chunked import ProtocolViolation
from bailiwick.kernel import limits

REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)\r\n")
FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_TOKEN_BYTE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")


def refuse_head(data: bytes, end: int, line: re.Pattern[bytes], scanned: int) -> None:
    """Why this head cannot be taken, in an order that does not depend on how it arrived: first line, bare LF, size, fields. Returns if it may still grow."""
    limit = limits.HEAD_BYTES_MAX
    if end >= 0 or scanned == 0 or len(data) > limit or data.find(b"\n", scanned) >= 0:
        _refuse_first_line(data, data.find(b"\n", 0, limit), line)
    if _BARE_LF.search(data, scanned, end + 4 if end >= 0 else limit):
        raise ProtocolViolation("bare-lf", "a line of the head ends in a bare LF; must end in CR LF")
    if end < 0:
        if len(data) > limit:
            raise ProtocolViolation("head-too-large", f"the head is larger than {limit} bytes", status=431)
        return
    lines = data[data.find(b"\n") + 1 : end + 2].split(b"\r\n")[:-1]
    if len(lines) > limits.HEADER_FIELDS_MAX:
        raise ProtocolViolation("too-many-fields", f"the head has {len(lines)} fields; must be at most {limits.HEADER_FIELDS_MAX}", status=431)
    for text in lines:
        _refuse_field(text)
    raise ProtocolViolation("malformed-head", "the head is not a list of fields")


def _refuse_first_line(data: bytes, first: int, line: re.Pattern[bytes]) -> None:
    request = line is REQUEST_LINE
    if data[:1] in (b"\r", b"\n"):
        raise ProtocolViolation("empty-line", "an empty line stands before the message")
    if not _TOKEN_BYTE.match(data):
        raise ProtocolViolation("invalid-method" if request else "not-http", "the first byte cannot begin an HTTP message")
    if first < 0 or line.match(data):
        return
    text = data[:first]
    if not text.endswith(b"\r"):
        raise ProtocolViolation("bare-lf", "the first line ends in a bare LF; must end in CR LF")
    text = text[:-1]
    _refuse_characters(text, "the first line")
    if not request:
        raise ProtocolViolation("not-http", "the first line is not an HTTP/1 status line")
    words = text.split(b" ")
    if len(words) == 3 and words[2].startswith(b"HTTP/"):
        if words[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
            raise ProtocolViolation("http-version", "the version is not served; must be HTTP/1.1", status=505)
        if not re.fullmatch(rb"[\x21-\x7e]+", words[1]):
            raise ProtocolViolation("invalid-target", "the target holds bytes that a URI cannot")
        raise ProtocolViolation("invalid-method", "the method is not a token of at most 32 characters")
    if len(words) < 3:
        raise ProtocolViolation("http-version", "the request line has no version (HTTP/0.9); must be HTTP/1.1", status=505)
    raise ProtocolViolation("invalid-target", "the request line has more than two spaces")


def _refuse_characters(text: bytes, where: str) -> None:
    if b"\0" in text:
        raise ProtocolViolation("nul", f"{where} holds a NUL")
    if b"\r" in text:
        raise ProtocolViolation("bare-cr", f"{where} holds a bare CR")
    if re.search(rb"[\x01-\x08\x0a-\x1f\x7f]", text):
        raise ProtocolViolation("control-character", f"{where} holds a control character")


def _refuse_field(text: bytes) -> None:
    if text[:1] in (b" ", b"\t"):
        raise ProtocolViolation("obs-fold", "a field is continued on a second line (obs-fold)")
    _refuse_characters(text, "a field")
    name, colon, _ = text.partition(b":")
    if not colon:
        raise ProtocolViolation("malformed-field", "a line of the head has no colon")
    if name[-1:] in (b" ", b"\t"):
        raise ProtocolViolation("space-before-colon", "a space stands between a field's name and its colon")
    if not FIELD.fullmatch(text + b"\r\n"):
        raise ProtocolViolation("invalid-field-name", "a field's name is not a token")
