"""The few words of rtnetlink the sealed network needs: an interface up, a route that makes every address local. rtnetlink(7).

In Python rather than by `ip`: no program to start on the way to the first instruction, and none to depend on.
"""

import os
import socket
import struct

from bailiwick.kernel.errors import BackendError

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_INTERFACE = struct.Struct("=BBHiII")  # struct ifinfomsg: family, pad, type, index, flags, change
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HHI")

_NEWLINK, _NEWROUTE = 16, 24
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_ERROR = 2
_UP = 1
_OUTPUT_INTERFACE = 4
_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL = 255, 4, 254, 2
_LOOPBACK_INDEX = 1  # the first interface of every network namespace


def seal() -> None:
    """Brings `lo` up in the calling thread's network namespace and makes every IPv4 and IPv6 address local to it. BackendError if the kernel refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        _ask(link, _NEWLINK, 0, _INTERFACE.pack(socket.AF_UNSPEC, 0, 0, _LOOPBACK_INDEX, _UP, _UP), "lo up")
        for family, shown in ((socket.AF_INET, "local 0.0.0.0/0"), (socket.AF_INET6, "local ::/0")):
            route = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0)
            _ask(link, _NEWROUTE, _CREATE | _EXCLUSIVE, route + _ATTRIBUTE.pack(_ATTRIBUTE.size, _OUTPUT_INTERFACE, _LOOPBACK_INDEX), shown)


def _ask(link: socket.socket, kind: int, flags: int, body: bytes, shown: str) -> None:
    link.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body)
    answer = link.recv(4096)
    _length, answered, _flags, _sequence, _port = _HEADER.unpack_from(answer)
    (number,) = struct.unpack_from("=i", answer, _HEADER.size)
    if answered != _ERROR or number != 0:
        raise BackendError(f"{shown} refused by the kernel: {os.strerror(-number)}")
