import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.gateway.layers.tap import Attempt, read_attempt


def ipv4(protocol: int, payload: bytes, *, to: str = "1.2.3.4", fragment: int = 0, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s", 4 << 4 | words, 0, 20 + len(payload), 0, fragment, 64, protocol, 0, IPv4Address("127.0.0.1").packed, IPv4Address(to).packed
    )
    return head + options + payload


def ipv6(following: int, payload: bytes, *, to: str = "2001:db8::1") -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), following, 64, IPv6Address("::1").packed, IPv6Address(to).packed) + payload


def tcp(port: int, flags: int = 0x02) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, port, 0, 0, 5 << 4, flags, 0, 0, 0)


UDP = struct.pack("!HHHH", 40000, 123, 8, 0)
ICMP = b"\x08\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("packet", "attempt"),
    [
        (ipv4(6, tcp(22)), Attempt("tcp", "1.2.3.4", 22)),
        (ipv4(6, tcp(22, 0x10)), Attempt("tcp", "1.2.3.4", 22, opens=False)),
        (ipv4(6, tcp(22, 0x12)), Attempt("tcp", "1.2.3.4", 22, opens=False)),
        (ipv4(17, UDP), Attempt("udp", "1.2.3.4", 123)),
        (ipv4(1, ICMP), Attempt("icmp", "1.2.3.4", None)),
        (ipv4(132, UDP), Attempt("sctp", "1.2.3.4", 123)),
        (ipv4(200, b""), Attempt("ip-200", "1.2.3.4", None)),
        (ipv4(6, tcp(22), options=b"\x01" * 8), Attempt("tcp", "1.2.3.4", 22)),
        (ipv4(17, UDP, fragment=0x2000), Attempt("udp", "1.2.3.4", 123)),
        (ipv4(17, UDP, fragment=0x2001), Attempt("udp", "1.2.3.4", None)),
        (ipv4(17, UDP[:3]), Attempt("udp", "1.2.3.4", None)),
        (ipv6(6, tcp(443)), Attempt("tcp", "2001:db8::1", 443)),
        (ipv6(58, ICMP), Attempt("icmpv6", "2001:db8::1", None)),
        (ipv6(17, UDP, to="::ffff:169.254.169.254"), Attempt("udp", "169.254.169.254", 123)),
        (ipv6(0, b"\x3c\0" + bytes(6) + b"\x11\0" + bytes(6) + UDP), Attempt("udp", "2001:db8::1", 123)),
        (ipv6(44, b"\x11\0\0\x01" + bytes(4) + UDP), Attempt("udp", "2001:db8::1", 123)),
        (ipv6(44, b"\x11\0\0\x08" + bytes(4) + UDP), Attempt("udp", "2001:db8::1", None)),
        (ipv6(59, b""), Attempt("ip-59", "2001:db8::1", None)),
    ],
)
def test_what_was_tried_is_read(packet: bytes, attempt: Attempt) -> None:
    """Protocol, address and port of either family, behind options, extension headers and fragments."""
    assert read_attempt(packet) == attempt


@pytest.mark.parametrize("packet", [b"", b"\x45", ipv4(6, b"")[:19], b"\x44" + ipv4(6, tcp(1))[1:], b"\x55" * 60, ipv6(6, b"")[:39]])
def test_what_is_no_packet_is_none(packet: bytes) -> None:
    """A header that is cut short, or of another version, says nothing."""
    assert read_attempt(packet) is None


def test_a_chain_of_headers_has_an_end() -> None:
    """A packet of nothing but extension headers is read in bounded steps."""
    chain = (b"\x3c\0" + bytes(6)) * 99 + b"\x11\0" + bytes(6) + UDP
    got = read_attempt(ipv6(60, chain))
    assert got is not None
    assert got.port is None


@settings(max_examples=400)
@given(
    st.one_of(
        st.binary(max_size=120), st.binary(max_size=60).map(lambda rest: b"\x45" + rest), st.binary(min_size=39, max_size=120).map(lambda rest: b"\x60" + rest)
    )
)
def test_any_bytes_are_read(packet: bytes) -> None:
    """Nothing is raised, and a port is one."""
    got = read_attempt(packet)
    if got is not None and got.port is not None:
        assert 0 <= got.port <= 65535
