import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bailiwick.gateway.layers import dns
from bailiwick.gateway.layers.dns import Rcode, answer
from bailiwick.gateway.names import NameTable

OPT = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)


def wire(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in name.encode().split(b".") if label) + b"\0"


def query(
    name: str = "api.example", qtype: int = dns.A, *, identity: int = 7, flags: int = 0x0100, counts: tuple[int, ...] = (1, 0, 0, 0), **more: Any
) -> bytes:
    question = more.get("raw", wire(name)) + struct.pack("!HH", qtype, more.get("qclass", 1))
    return struct.pack("!6H", identity, flags, *counts) + question + more.get("tail", b"")


def read(reply: bytes) -> dict[str, Any]:
    """A parser of its own for what we send: strict, and ending exactly at the end."""
    identity, flags, questions, answers, authorities, additionals = struct.unpack_from("!6H", reply)
    at, labels = 12, []
    for _ in range(questions):
        while reply[at]:
            assert reply[at] < 64
            labels.append(reply[at + 1 : at + 1 + reply[at]])
            at += 1 + reply[at]
        at += 5
    records = []
    for _ in range(answers):
        assert reply[at : at + 2] == b"\xc0\x0c"
        kind, group, ttl, length = struct.unpack_from("!HHIH", reply, at + 2)
        records.append((kind, group, ttl, reply[at + 12 : at + 12 + length]))
        at += 12 + length
    opt = None
    for _ in range(additionals):
        assert reply[at] == 0
        kind, size, extended, length = struct.unpack_from("!HHIH", reply, at + 1)
        assert (kind, length) == (41, 0)
        opt, at = (size, extended), at + 11
    assert at == len(reply)
    assert authorities == 0
    rcode = flags & 0xF | ((opt[1] >> 24) << 4 if opt else 0)
    return {"id": identity, "flags": flags, "rcode": rcode, "questions": questions, "name": b".".join(labels), "answers": records, "opt": opt}


def test_a_name_gets_its_synthetic_address() -> None:
    """A is answered with the table's address, the identifier and the case as asked, and the first time is told apart."""
    table = NameTable()
    first = answer(query("Api.Example"), table)
    again = answer(query("api.example"), table)
    assert first.reply is not None
    reply = read(first.reply)
    assert (reply["id"], reply["rcode"], reply["name"]) == (7, Rcode.NOERROR, b"Api.Example")
    assert reply["flags"] & 0x8000
    assert reply["flags"] & 0x0100
    assert reply["answers"] == [(dns.A, 1, dns.TTL_SECONDS, bytes((198, 18, 1, 0)))]
    assert (first.name, first.first, again.first) == ("api.example", True, False)


@pytest.mark.parametrize("qtype", [dns.AAAA, 65, 64, 15, 16, 33, 6, 2, 5, 257, 65535])
def test_other_types_have_no_data(qtype: int) -> None:
    """A host has nothing but an IPv4 address: the client settles for it, and the name is known all the same."""
    table = NameTable()
    got = answer(query(qtype=qtype), table)
    assert got.reply is not None
    reply = read(got.reply)
    assert (reply["rcode"], reply["answers"], got.name, got.problem) == (Rcode.NOERROR, [], "api.example", None)


@pytest.mark.parametrize("qtype", [255, 252, 251, 41])
def test_questions_for_everything_are_refused(qtype: int) -> None:
    """ANY and transfers name nothing, so they give no name an address."""
    table = NameTable()
    got = answer(query(qtype=qtype), table)
    assert got.reply is not None
    assert read(got.reply)["rcode"] == Rcode.REFUSED
    assert got.problem
    assert len(table) == 2


def test_a_synthetic_address_has_its_name_back() -> None:
    """PTR answers for addresses that were given out, and for nothing else."""
    table = NameTable()
    table.address_of("api.example")
    known = answer(query("0.1.18.198.in-addr.arpa", dns.PTR), table)
    assert known.reply is not None
    assert read(known.reply)["answers"][0][3] == wire("api.example")
    for unknown in (
        "1.1.18.198.in-addr.arpa",
        "8.8.8.8.in-addr.arpa",
        "in-addr.arpa",
        "x.0.1.18.198.in-addr.arpa",
        "0.1.18.198.in-addr.arpb",
        "00.1.18.198.in-addr.arpa",
    ):
        got = answer(query(unknown, dns.PTR), table)
        assert got.reply is not None
        assert read(got.reply)["rcode"] == Rcode.NXDOMAIN


@pytest.mark.parametrize(
    "raw", [b"\x05a.b.c\0", b"\x03a\0b\0", b"\x02\xc3\xa9\0", b"\x07a b.exa\0", b"\x01-\0", b"\0", b"\x031.2\x031.2\0", wire("10.0.0.1"), wire("a.-b")]
)
def test_what_is_no_host_name_does_not_exist(raw: bytes) -> None:
    """A dot, a NUL or a byte beyond ASCII inside a label does not smuggle another name in."""
    table = NameTable()
    got = answer(query(raw=raw), table)
    assert got.reply is not None
    assert read(got.reply)["rcode"] == Rcode.NXDOMAIN
    assert got.name is None
    assert len(table) == 2


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (query(counts=(0, 0, 0, 0)), Rcode.FORMERR),
        (query(counts=(2, 0, 0, 0)), Rcode.FORMERR),
        (query(counts=(1, 1, 0, 0)), Rcode.FORMERR),
        (query(counts=(1, 0, 1, 0)), Rcode.FORMERR),
        (query(counts=(1, 0, 0, 2), tail=OPT + OPT), Rcode.FORMERR),
        (query(counts=(1, 0, 0, 1)), Rcode.FORMERR),
        (query(counts=(1, 0, 0, 1), tail=b"\0\0\1\0\1" + bytes(6)), Rcode.FORMERR),
        (query(counts=(1, 0, 0, 1), tail=OPT[:-2] + b"\0\5"), Rcode.FORMERR),
        (query(counts=(1, 0, 0, 1), tail=OPT[:-2] + b"\0\5" + b"\0\1\0\2x"), Rcode.FORMERR),
        (query(tail=b"x"), Rcode.FORMERR),
        (query(flags=0x0300), Rcode.FORMERR),
        (query(flags=0x0900), Rcode.NOTIMP),
        (query(flags=0x2800), Rcode.NOTIMP),
        (query(raw=b"\xc0\x0c"), Rcode.FORMERR),
        (query(raw=b"\x01a\xc0\x0c"), Rcode.FORMERR),
        (query(raw=b"\x40a\0"), Rcode.FORMERR),
        (query(raw=b"\xc0" + b"a" * 192 + b"\0"), Rcode.FORMERR),
        (query(raw=b"\x41" + b"a" * 65 + b"\0"), Rcode.FORMERR),
        (query(raw=b"\x3fshort\0"), Rcode.FORMERR),
        (query(raw=(b"\x3f" + b"a" * 63) * 4 + b"\0"), Rcode.FORMERR),
        (query(qclass=3), Rcode.REFUSED),
        (query()[:-1], Rcode.FORMERR),
        (query(tail=bytes(5000)), Rcode.FORMERR),
    ],
)
def test_a_malformed_question_is_refused_by_name(packet: bytes, rcode: Rcode) -> None:
    """What RFC 1035 and 6891 do not allow gets an error code and a problem for the record, and no name an address."""
    table = NameTable()
    got = answer(packet, table)
    assert got.reply is not None
    assert read(got.reply)["rcode"] == rcode
    assert got.problem
    assert len(table) == 2


def test_a_name_of_the_greatest_length_is_a_name() -> None:
    """255 octets on the wire are allowed, as 253 characters."""
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    got = answer(query(name), NameTable())
    assert got.name == name


def test_edns_is_answered_in_kind() -> None:
    """A question with EDNS gets EDNS back; an unknown version is BADVERS; options are passed over."""
    options = OPT[:-2] + struct.pack("!HHHQ", 12, 10, 8, 0)
    for tail in (OPT, options):
        got = answer(query(counts=(1, 0, 0, 1), tail=tail), NameTable())
        assert got.reply is not None
        reply = read(got.reply)
        assert (reply["rcode"], reply["opt"]) == (0, (dns.UDP_PAYLOAD_BYTES, 0))
        assert len(reply["answers"]) == 1
    newer = b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 16, 0)
    got = answer(query(counts=(1, 0, 0, 1), tail=newer), NameTable())
    assert got.reply is not None
    assert read(got.reply)["rcode"] == Rcode.BADVERS


def test_a_response_is_not_answered() -> None:
    """Nothing that calls itself a response, and nothing shorter than a header, gets a reply: no loops."""
    for packet in (query(flags=0x8180), b"", b"x" * 11):
        got = answer(packet, NameTable())
        assert got.reply is None
        assert got.problem


def test_too_many_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that asks for more names than it may is refused, and told why."""
    monkeypatch.setattr("bailiwick.kernel.limits.NAMES_PER_RUN_MAX", 1)
    table = NameTable()
    assert answer(query("a.example"), table).problem is None
    got = answer(query("b.example"), table)
    assert got.reply is not None
    assert read(got.reply)["rcode"] == Rcode.REFUSED


@settings(max_examples=400)
@given(st.binary(max_size=300))
@example(query())
def test_any_packet_gets_an_answer_that_parses(packet: bytes) -> None:
    """Whatever comes, nothing is raised; a reply has the question's identifier, parses whole, and is not larger than a datagram."""
    got = answer(packet, NameTable())
    if got.reply is not None:
        assert read(got.reply)["id"] == int.from_bytes(packet[:2], "big")
        assert len(got.reply) <= 512
    assert got.reply is not None or got.problem


@settings(max_examples=400)
@given(st.data())
def test_a_bent_question_gets_an_answer_that_parses(data: st.DataObject) -> None:
    """The same for questions with some bytes changed, cut or added: the neighbours of what is allowed."""
    packet = bytearray(query(counts=(1, 0, 0, 1), tail=OPT, qtype=data.draw(st.sampled_from([1, 12, 28, 255]))))
    for _ in range(data.draw(st.integers(0, 4))):
        packet[data.draw(st.integers(2, len(packet) - 1))] = data.draw(st.integers(0, 255))
    bent = bytes(packet[: data.draw(st.integers(0, len(packet)))]) + data.draw(st.binary(max_size=3))
    got = answer(bent, NameTable())
    if got.reply is not None:
        read(got.reply)
