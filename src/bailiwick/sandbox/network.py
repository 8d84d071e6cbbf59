"""The sealed network: a namespace in which every address is ours, and the sockets in it that the gateway serves.

There is `lo` and nothing else, with one route a family that makes every address local to it (AnyIP). A listener on `::` therefore hears whatever the
agent dials, in IPv4 and IPv6, and `getsockname` on what it accepts is the address that was dialled. Sockets stay in the namespace they were born in,
wherever their descriptors go. Nothing here has SO_REUSEPORT: beside such a listener the agent could bind its own and take its connections.
"""

import contextlib
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from bailiwick.kernel import bpf
from bailiwick.kernel.bpf import AND_K, JEQ, JMP, JSET, LD_B_ABS, LD_B_IND, LD_H_ABS, LDX_B_MSH, RET, Label, ProgramHeader, Step
from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox import netlink

PORTS_ALWAYS = (80, 443, 3128)  # the last is the forward proxy's
NAME_PORT = 53
BACKLOG = 512

PROXY_ADDRESS = "198.18.0.1"
MODELS_ADDRESS = "198.18.0.2"

_RECEIVE_PACKET_INFO6 = 49  # IPV6_RECVPKTINFO: absent from `socket` on some builds
_IP_PACKET_INFO = 8
_FREE_BIND6 = 78
_PACKET_IGNORE_OUTGOING = 23
_SOL_PACKET = 263
_ATTACH_FILTER = 26
_ETH_P_ALL = 0x0003
_TAP_BYTES_MAX = 128  # of a packet: both headers and a little more
_TAP_BUFFER_BYTES = 64 * 1024

# Written in the new namespace by its owner; /proc/sys/net is always the writer's own. What a kernel does not have is passed over.
_SETTINGS = {
    "net/ipv4/ping_group_range": "1 0",  # nobody may open ICMP sockets
    "net/ipv4/tcp_fastopen": "0",  # data before a connection would be a second way to say something
}


def seal(ports: Iterable[int]) -> dict[str, socket.socket]:
    """In the calling thread's new network namespace: lo, both routes, every listener, by the names `AdoptRun` uses. The caller owns the sockets."""
    netlink.seal()
    served = sorted({*PORTS_ALWAYS, *ports})
    opened: dict[str, socket.socket] = {}
    try:
        for port in served:
            opened[f"tcp:{port}"] = _listener(port)
        opened[f"udp:{NAME_PORT}"] = _names()
        opened["tap"] = _tap(served)
    except OSError as error:
        for sock in opened.values():
            sock.close()
        raise BackendError(f"listener {len(opened)} of the sandbox cannot be opened: {error.strerror}") from error
    return opened


def settle() -> None:
    """The namespace's own settings. Called by the process that made it."""
    for name, value in _SETTINGS.items():
        with contextlib.suppress(OSError):
            (Path("/proc/sys") / name).write_text(value)


def _dual_stack(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def _listener(port: int) -> socket.socket:
    sock = _dual_stack(socket.SOCK_STREAM)
    sock.bind(("::", port))
    sock.listen(BACKLOG)
    return sock


def _names() -> socket.socket:
    """Tells with each datagram the address it was sent to, so that the answer leaves from there."""
    sock = _dual_stack(socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, _RECEIVE_PACKET_INFO6, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_PACKET_INFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, _FREE_BIND6, 1)  # an answer may leave from any address; in IPv6 the local route alone does not allow it
    sock.bind(("::", NAME_PORT))
    return sock


def _tap(served: Sequence[int]) -> socket.socket:
    """A packet socket on lo that hears attempts on what nobody serves. It can be opened only by who owns the namespace, which the agent does not."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)  # protocol 0: hears nothing yet
    header = ProgramHeader.of(tap_filter(served))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(header))
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # on lo every packet passes twice, going out and coming in
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TAP_BUFFER_BYTES)
    sock.bind(("lo", _ETH_P_ALL))
    return sock


def tap_filter(served: Sequence[int]) -> bytes:
    """Passes the first _TAP_BYTES_MAX bytes of: TCP with SYN and without ACK to a port not in `served`; UDP to a port other than 53 that is not an
    answer of ours (from 53); fragments; every other IP protocol but ICMP's answers to those. The packet starts with its IP header."""
    return bpf.assemble([
        Step(LD_B_ABS, 0),
        Step(AND_K, 0xF0),
        Step(JEQ, 0x40, then="four"),
        Step(JEQ, 0x60, then="six"),
        Step(RET, 0),
        *_four(served),
        *_six(served),
        Label("pass"),
        Step(RET, _TAP_BYTES_MAX),
        Label("drop"),
        Step(RET, 0),
    ])  # fmt: skip


_FLAGS_SYN, _FLAGS_ACK = 0x02, 0x10


def _four(served: Sequence[int]) -> list[Step | Label]:
    load_half = 0x48  # BPF_LD | BPF_H | BPF_IND: relative to the end of the IP header
    return [
        Label("four"),
        Step(LD_H_ABS, 6),
        Step(JSET, 0x1FFF, then="pass"),  # a later fragment: no agent's stack makes one on lo
        Step(LDX_B_MSH, 0),
        Step(LD_B_ABS, 9),
        Step(JEQ, 6, then="four tcp"),
        Step(JEQ, 17, then="four udp"),
        Step(JEQ, 1, then="four icmp"),
        Step(JMP, then="pass"),
        Label("four tcp"),
        Step(LD_B_IND, 13),
        Step(AND_K, _FLAGS_SYN | _FLAGS_ACK),
        Step(JEQ, _FLAGS_SYN, otherwise="drop"),
        Step(load_half, 2),
        *(Step(JEQ, port, then="drop") for port in served),
        Step(JMP, then="pass"),
        Label("four udp"),
        Step(load_half, 0),
        Step(JEQ, NAME_PORT, then="drop"),
        Step(load_half, 2),
        Step(JEQ, NAME_PORT, then="drop"),
        Step(JMP, then="pass"),
        Label("four icmp"),
        Step(LD_B_IND, 0),
        Step(JEQ, 3, then="drop"),  # destination unreachable: the kernel's refusal of what was recorded already
        Step(JEQ, 0, then="drop"),  # echo reply
        Step(JMP, then="pass"),
    ]


def _six(served: Sequence[int]) -> list[Step | Label]:
    return [
        Label("six"),
        Step(LD_B_ABS, 6),
        Step(JEQ, 6, then="six tcp"),
        Step(JEQ, 17, then="six udp"),
        Step(JEQ, 58, then="six icmp"),
        Step(JMP, then="pass"),  # extension headers among them
        Label("six tcp"),
        Step(LD_B_ABS, 40 + 13),
        Step(AND_K, _FLAGS_SYN | _FLAGS_ACK),
        Step(JEQ, _FLAGS_SYN, otherwise="drop"),
        Step(LD_H_ABS, 40 + 2),
        *(Step(JEQ, port, then="drop") for port in served),
        Step(JMP, then="pass"),
        Label("six udp"),
        Step(LD_H_ABS, 40 + 0),
        Step(JEQ, NAME_PORT, then="drop"),
        Step(LD_H_ABS, 40 + 2),
        Step(JEQ, NAME_PORT, then="drop"),
        Step(JMP, then="pass"),
        Label("six icmp"),
        Step(LD_B_ABS, 40),
        Step(JEQ, 128, then="pass"),  # echo request; neighbour discovery, reports, refusals and replies are the kernel's own
        Step(RET, 0),
    ]
