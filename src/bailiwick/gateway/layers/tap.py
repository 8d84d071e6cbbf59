"""Attempts that no listener serves, read from the packets that made them.

A packet socket (AF_PACKET, SOCK_DGRAM) inside a sandbox sees each packet from its IP header on. The packet is hostile: lengths lie, extension headers chain
without end, what follows may be cut off. What can be said of it is said; nothing is believed beyond the bytes that are there.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

# IANA protocol numbers.
_NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_WITH_PORTS = {6, 17, 33, 132, 136}  # each begins with source and destination port
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _NOTHING, _DESTINATION, _MOBILITY = 0, 43, 44, 51, 59, 60, 135
_EXTENSIONS = {_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _MOBILITY}
EXTENSIONS_MAX = 8  # RFC 8200 names six; more is an attack on parsers
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Attempt:
    """`protocol` is a name of IANA's or `ip-N`. `port` is None where the protocol has none, or where the packet is a later fragment or cut short.
    `opens` is whether a TCP packet asks for a connection (SYN without ACK); True for other protocols, each packet of which is an attempt."""

    protocol: str
    address: str
    port: int | None
    opens: bool = True


def read_attempt(packet: bytes) -> Attempt | None:
    """What the packet tried to reach; None for what is not IP at all. Never raises."""
    if not packet:
        return None
    match packet[0] >> 4:
        case 4:
            return _ipv4(packet)
        case 6:
            return _ipv6(packet)
        case _:
            return None


def _ipv4(packet: bytes) -> Attempt | None:
    """RFC 791, section 3.1."""
    header = (packet[0] & 0xF) * 4
    if len(packet) < 20 or header < 20:
        return None
    first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    return _transport(packet[9], str(IPv4Address(packet[16:20])), packet[header:] if first else b"")


def _ipv6(packet: bytes) -> Attempt | None:
    """RFC 8200, sections 3 and 4: the chain of extension headers ends at the transport, at a later fragment, or where we stop following it."""
    if len(packet) < 40:
        return None
    destination = IPv6Address(packet[24:40])
    mapped = destination.ipv4_mapped
    address = str(destination if mapped is None else mapped)
    following, at = packet[6], 40
    for _ in range(EXTENSIONS_MAX):
        if following not in _EXTENSIONS or at + 8 > len(packet):
            break
        if following == _FRAGMENT:
            if int.from_bytes(packet[at + 2 : at + 4], "big") >> 3:
                return _transport(packet[at], address, b"")
            following, at = packet[at], at + 8
        else:
            following, at = packet[at], at + (packet[at + 1] + 1) * 8
    return _transport(following, address, packet[at:])


def _transport(number: int, address: str, payload: bytes) -> Attempt:
    protocol = _NAMES.get(number, f"ip-{number}")
    if number not in _WITH_PORTS or len(payload) < 4:
        return Attempt(protocol, address, None)
    opens = number != 6 or len(payload) < 14 or payload[13] & (_SYN | _ACK) == _SYN
    return Attempt(protocol, address, int.from_bytes(payload[2:4], "big"), opens)
