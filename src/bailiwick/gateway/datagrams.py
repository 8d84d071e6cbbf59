"""A run's datagrams: questions to its DNS, and the packets of attempts on what nobody serves."""

import asyncio
import socket
import struct
from collections.abc import Callable

from bailiwick.gateway import events
from bailiwick.gateway.layers import dns, tap
from bailiwick.gateway.runs import Run

_PER_TURN_MAX = 64  # datagrams read before the loop may do something else
_PAUSE_SECONDS = 0.05  # after a full turn: a flood is dropped by the kernel, not read
_PACKET_BYTES_MAX = 2_048
_PACKET_OUTGOING = 4  # of packet(7): on the loopback device each packet is seen as it leaves, and as it arrives
_IN6_PKTINFO = struct.Struct("=16sI")
_IN_PKTINFO = struct.Struct("=I4s4s")
_IP_PKTINFO = 8
_ICMP_ANSWERS = frozenset((0, 3, 11, 12))  # what a kernel says of others' packets
_ICMP6_ANSWERS = frozenset((1, 2, 3, 4, 129, 130, 131, 132, 133, 134, 135, 136, 143))


class Turns:
    """Reads a socket in bounded turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, one: Callable[[socket.socket], bool]) -> None:
        self._loop = loop
        self._sock = sock
        self._one = one
        self._timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        loop.add_reader(sock, self._turn)

    def _turn(self) -> None:
        for _ in range(_PER_TURN_MAX):
            try:
                if not self._one(self._sock):
                    self.close()
                    return
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP answer to something sent earlier; the socket is as good as before
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._turn)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()


def serve_dns(run: Run, sock: socket.socket) -> Turns:
    """Answers from the address that was asked, whichever that was."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def one(sock: socket.socket) -> bool:
        query, control, _flags, sender = sock.recvmsg(dns.QUERY_BYTES_MAX + 1, 256)
        answer = dns.answer(query, run.names)
        if answer.problem is not None:
            run.refuse_attempt("dns", answer.name or "", answer.problem)
        if answer.first and answer.name is not None:
            address = run.names.address_of(answer.name)
            if not run.record(events.name_asked(run.house.ids.event(), run.id, run.agent, name=answer.name, address=address)):
                run.names.take_back(answer.name)  # another worker would not know it: the agent asks again
                return True
        if answer.reply is not None:
            sock.sendmsg([answer.reply], [source for item in control if (source := _as_source(*item)) is not None], 0, sender)
        return True

    return Turns(run.house.loop, sock, one)


def _as_source(level: int, kind: int, data: bytes) -> tuple[int, int, bytes] | None:
    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= _IN6_PKTINFO.size:
        address, _index = _IN6_PKTINFO.unpack_from(data)
        return level, kind, _IN6_PKTINFO.pack(address, 0)
    if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _IN_PKTINFO.size:
        _index, _local, address = _IN_PKTINFO.unpack_from(data)
        return level, kind, _IN_PKTINFO.pack(0, address, bytes(4))
    return None


def watch_attempts(run: Run, sock: socket.socket, served: Callable[[str, int], bool]) -> Turns:
    """Records what was tried on what is not served; `served` says of a protocol and port that something listens there."""

    def one(sock: socket.socket) -> bool:
        packet, sender = sock.recvfrom(_PACKET_BYTES_MAX)
        if not packet:
            return False
        if isinstance(sender, tuple) and len(sender) > 2 and sender[2] == _PACKET_OUTGOING:
            return True
        attempt = tap.read_attempt(packet)
        if attempt is None or not attempt.opens or is_answer(packet, attempt.protocol):
            return True
        if attempt.port is not None and served(attempt.protocol, attempt.port):
            return True
        name = run.names.name_of(attempt.address) or attempt.address
        where = f"{attempt.protocol} {name}" + (f" port {attempt.port}" if attempt.port is not None else "")
        run.refuse_attempt("not-served", where, "nothing serves it; only http and https leave a sandbox")
        return True

    return Turns(run.house.loop, sock, one)


def is_answer(packet: bytes, protocol: str) -> bool:
    """Whether the packet is the kernel's or our DNS's answer to one, and no attempt of its own."""
    header = (packet[0] & 0xF) * 4 if packet[0] >> 4 == 4 else 40
    payload = packet[header : header + 2]
    match protocol:
        case "udp":
            return payload == b"\x00\x35"
        case "icmp":
            return bool(payload) and payload[0] in _ICMP_ANSWERS
        case "icmpv6":
            return bool(payload) and payload[0] in _ICMP6_ANSWERS
        case _:
            return False
