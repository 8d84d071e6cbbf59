"""DNS as a sandbox sees it: one question in, one answer out, and nothing resolved.

The packets are hostile. A question is parsed strictly (RFC 1035, sections 4.1.1 and 4.1.2): exactly one, its name uncompressed (nothing precedes it that a
pointer could mean), no answer or authority in it, at most one OPT record (RFC 6891) after it. The reply is made from the parsed parts only.

A and ANY-class tricks apart: A gets the name's synthetic address; AAAA, HTTPS, SVCB and any other type get no data, so that clients settle for A; PTR of a
synthetic address gets its name; ANY is refused (RFC 8482); what is no host name does not exist. Nothing of a query is carried anywhere.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from bailiwick.gateway.names import NETWORK, InvalidName, NamesExhausted, NameTable
from bailiwick.kernel.canonical import text

TTL_SECONDS = 60  # short enough for a restarted run, long enough not to ask before each request
QUERY_BYTES_MAX = 4096  # the largest EDNS payload in common use; a question needs at most 271
UDP_PAYLOAD_BYTES = 1232  # what we say we accept; DNS flag day 2020
QUESTION_NAME_BYTES_MAX = 255  # RFC 1035, section 2.3.4
LABEL_BYTES_MAX = 63

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
_AXFR, _IXFR = 252, 251
_INTERNET = 1
_HEADER = struct.Struct("!6H")
_TYPE_CLASS = struct.Struct("!2H")
_OPT_FIXED = struct.Struct("!B2HIH")
_RECORD = struct.Struct("!3HIH")
_POINTER_TO_QUESTION: Final = 0xC00C
_RESPONSE, _RECURSION_DESIRED, _RECURSION_AVAILABLE, _TRUNCATED, _CHECKING_DISABLED = 0x8000, 0x0100, 0x0080, 0x0200, 0x0010
_OPT_DO = 0x8000


class Rcode(IntEnum):
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16  # RFC 6891, section 6.1.3: its upper bits stand in the OPT record


@dataclass(frozen=True, slots=True)
class Answer:
    """`reply` is what to send back, None for what deserves none (a response, noise). `name` is the host asked for, normalised, None when there is none.
    `first` says that the name got its address now. `problem` says why the question was refused, in words fit for the record."""

    reply: bytes | None
    name: str | None
    qtype: int
    first: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Question:
    raw: bytes  # name, type and class as asked (resolvers check the case they sent)
    labels: tuple[bytes, ...]
    qtype: int
    qclass: int
    end: int


@dataclass(frozen=True, slots=True)
class _Edns:
    version: int
    wants_dnssec: bool


class _Malformed(ValueError):
    pass


def answer(query: bytes, names: NameTable) -> Answer:
    """The answer to one UDP payload (or one TCP message without its length). Never raises for anything in `query`."""
    if len(query) < _HEADER.size:
        return Answer(None, None, 0, False, f"{len(query)} bytes are no DNS message; a header has 12")
    identity, flags, *counts = _HEADER.unpack_from(query)
    if flags & _RESPONSE:
        return Answer(None, None, 0, False, "a response was sent where a question belongs")
    opcode = flags >> 11 & 0xF
    if opcode:
        return _failed(identity, flags, Rcode.NOTIMP, f"opcode {opcode} is not a query; must be 0")
    try:
        question, edns = _parse(query, flags, counts)
    except _Malformed as malformed:
        return _failed(identity, flags, Rcode.FORMERR, str(malformed))
    if edns is not None and edns.version:
        reply = _reply(identity, flags, Rcode.BADVERS, question, edns)
        return Answer(reply, None, question.qtype, False, f"EDNS version {edns.version} is unknown; must be 0")
    rcode, data, name, first, problem = _decide(question, names)
    return Answer(_reply(identity, flags, rcode, question, edns, data), name, question.qtype, first, problem)


def _decide(question: _Question, names: NameTable) -> tuple[Rcode, bytes | None, str | None, bool, str | None]:
    qtype = question.qtype
    shown = text(b".".join(question.labels))[:120]
    if question.qclass != _INTERNET:
        return Rcode.REFUSED, None, None, False, f"class {question.qclass} is not served; must be 1 (internet)"
    if qtype in (ANY, _AXFR, _IXFR, OPT):
        return Rcode.REFUSED, None, None, False, f"type {qtype} is not answered for {shown!r}; ask for an address"
    if qtype == PTR:
        pointed = _pointed(question.labels, names)
        return (Rcode.NXDOMAIN if pointed is None else Rcode.NOERROR), pointed, None, False, None
    try:
        if any(b"." in label for label in question.labels):  # one label that reads as several names another host (RFC 1035, section 5.1)
            raise InvalidName("a label holds a dot")
        name = b".".join(question.labels).decode("ascii")
        known = name in names
        address = names.address_of(name)
    except (UnicodeDecodeError, InvalidName):
        return Rcode.NXDOMAIN, None, None, False, f"{shown!r} is not a host name"
    except NamesExhausted as exhausted:
        return Rcode.REFUSED, None, None, False, str(exhausted)
    data = IPv4Address(address).packed if qtype == A else None
    return Rcode.NOERROR, data, names.name_of(address), not known, None


def _pointed(labels: tuple[bytes, ...], names: NameTable) -> bytes | None:
    """The wire form of the name a reverse question (RFC 1035, section 3.5) is about."""
    if len(labels) != 6 or b".".join(labels[4:]).lower() != b"in-addr.arpa":
        return None
    try:
        address = IPv4Address(b".".join(reversed(labels[:4])).decode("ascii"))
    except (AddressValueError, UnicodeDecodeError):
        return None
    name = names.name_of(str(address)) if address in NETWORK else None
    if name is None:
        return None
    return b"".join(bytes((len(label),)) + label for label in name.encode("ascii").split(b".")) + b"\0"


def _parse(query: bytes, flags: int, counts: list[int]) -> tuple[_Question, _Edns | None]:
    questions, answers, authorities, additionals = counts
    if len(query) > QUERY_BYTES_MAX:
        raise _Malformed(f"a question of {len(query)} bytes; must be at most {QUERY_BYTES_MAX}")
    if flags & _TRUNCATED:
        raise _Malformed("a truncated question; ask again over TCP")
    if questions != 1:
        raise _Malformed(f"{questions} questions in one message; must be 1")
    if answers or authorities:
        raise _Malformed("a question that brings records of its own; must bring none")
    if additionals > 1:
        raise _Malformed(f"{additionals} additional records; must be at most one, EDNS")
    question = _question(query)
    edns, end = (None, question.end) if not additionals else _edns(query, question.end)
    if end != len(query):
        raise _Malformed(f"{len(query) - end} bytes after the end of the question; must be none")
    return question, edns


def _question(query: bytes) -> _Question:
    labels, at, start = [], _HEADER.size, _HEADER.size
    while True:
        if at >= len(query):
            raise _Malformed("the name runs past the end of the message")
        length = query[at]
        if length > LABEL_BYTES_MAX:
            raise _Malformed(f"a label of kind 0x{length & 0xC0:02x} in a question; must be plain, without compression (RFC 1035, 4.1.4)")
        at += 1
        if length == 0:
            break
        labels.append(query[at : at + length])
        at += length
        if at - start >= QUESTION_NAME_BYTES_MAX:  # the root's octet is still to come
            raise _Malformed(f"a name longer than {QUESTION_NAME_BYTES_MAX} bytes")
    if at + _TYPE_CLASS.size > len(query):
        raise _Malformed("the question ends before its type and class")
    qtype, qclass = _TYPE_CLASS.unpack_from(query, at)
    end = at + _TYPE_CLASS.size
    return _Question(query[start:end], tuple(labels), qtype, qclass, end)


def _edns(query: bytes, at: int) -> tuple[_Edns, int]:
    """RFC 6891, section 6.1.2: the root name, type OPT, the sender's payload size, extended flags, options (read past, never interpreted)."""
    if at + _OPT_FIXED.size > len(query):
        raise _Malformed("the additional record runs past the end of the message")
    root, kind, _payload, extended, length = _OPT_FIXED.unpack_from(query, at)
    if root != 0 or kind != OPT:
        raise _Malformed(f"an additional record of type {kind}; must be EDNS, for the root")
    end = at + _OPT_FIXED.size + length
    if end > len(query):
        raise _Malformed("the EDNS options run past the end of the message")
    option = at + _OPT_FIXED.size
    while option < end:
        if option + 4 > end:
            raise _Malformed("an EDNS option is cut short")
        option += 4 + int.from_bytes(query[option + 2 : option + 4], "big")
        if option > end:
            raise _Malformed("an EDNS option runs past its record")
    return _Edns(version=extended >> 16 & 0xFF, wants_dnssec=bool(extended & _OPT_DO)), end


def _reply(identity: int, flags: int, rcode: Rcode, question: _Question, edns: _Edns | None, data: bytes | None = None) -> bytes:
    """At most 12 + 259 + 12 + 255 + 11 bytes: always within 512 but for a PTR, and within any EDNS size there is in use."""
    kept = flags & (_RECURSION_DESIRED | _CHECKING_DISABLED)
    header = _HEADER.pack(identity, _RESPONSE | kept | _RECURSION_AVAILABLE | rcode & 0xF, 1, int(data is not None), 0, int(edns is not None))
    parts = [header, question.raw]
    if data is not None:
        parts += [_RECORD.pack(_POINTER_TO_QUESTION, question.qtype, _INTERNET, TTL_SECONDS, len(data)), data]
    if edns is not None:
        parts.append(_OPT_FIXED.pack(0, OPT, UDP_PAYLOAD_BYTES, rcode >> 4 << 24, 0))
    return b"".join(parts)


def _failed(identity: int, flags: int, rcode: Rcode, problem: str) -> Answer:
    """A reply without the question, which could not be read (RFC 1035, section 4.1.1: the identifier and RCODE are enough)."""
    kept = flags & (0x7800 | _RECURSION_DESIRED)
    return Answer(_HEADER.pack(identity, _RESPONSE | kept | _RECURSION_AVAILABLE | rcode, 0, 0, 0, 0), None, 0, False, problem)
