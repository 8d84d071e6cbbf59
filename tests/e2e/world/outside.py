"""A world outside for what attacks or leaks: a network namespace in which every address is a canary, and a packet socket that notices each packet.

    seen = run([sys.executable, "attack.py"])       # the command, with everything it starts, runs inside
    assert seen.contacts == []

No packet can leave the machine, whatever a weak control lets through: the namespace has no interface but `lo`. A connection to any address on a port of
TCP_PORTS succeeds, so a leak is a real one; a packet to any other port is noticed all the same. 127.0.0.1:LOOPBACK_PORT plays a service of the host,
and the abstract socket ABSTRACT one that a careless sandbox shares.
"""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.stranger import DatagramCounter
from bailiwick.cli.demo.web import Request, Response, Server
from bailiwick.gateway.layers.tap import read_attempt
from bailiwick.sandbox.netlink import seal

TCP_PORTS = (22, 25, 53, 80, 2375, 3128, 5432, 6443, 8080, 8443)
TLS_PORTS = (443,)
UDP_PORTS = (53, 123, 443, 9999)
LOOPBACK_PORT = 6379
ABSTRACT = "outside-canary"

_ROOT = Path(__file__).parents[3]
_EVERYTHING = 0x0003  # ETH_P_ALL
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_OUTGOING = 4  # PACKET_OUTGOING: on lo each packet is seen going out and coming in


@dataclass(frozen=True, slots=True)
class Contact:
    """Somebody inside reached, or tried to reach, an address outside. `protocol` is `tcp`, `udp`, ..., or `abstract`, whose address is its name."""

    protocol: str
    address: str
    port: int | None
    times: int


@dataclass(frozen=True, slots=True)
class Seen:
    status: int
    output: str
    errors: str
    contacts: list[Contact]


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    uid: int | None = None,
    udp_ports: Sequence[int] = UDP_PORTS,
    seconds_max: float = 100,
) -> Seen:
    """Runs the command in a fresh world outside, as `uid` (root only) or as who we are. Datagrams to `udp_ports` are answered; to any other they are
    noticed, too. TimeoutExpired after `seconds_max`, and nothing is left then."""
    with tempfile.TemporaryDirectory(prefix="outside-") as scratch:
        report = Path(scratch) / "contacts.json"
        spaces = ["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        spaces += [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
        starter = ["unshare", *spaces, sys.executable, str(Path(__file__).resolve()), str(report), "" if uid is None else str(uid), json.dumps(list(udp_ports))]
        done = subprocess.run(
            [*starter, *command],
            cwd=directory,
            env=dict(environment if environment is not None else os.environ) | {"PYTHONPATH": f"{_ROOT}/src:{_ROOT}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds_max,
        )
        if not report.exists():
            raise RuntimeError(f"the world outside broke: {done.stderr[-2000:]}")
        return Seen(done.returncode, done.stdout, done.stderr, [Contact(*contact) for contact in json.loads(report.read_text())])


class _Tap:
    """Counts the packets that ask for something outside: everything but the machine's own loopback addresses."""

    def __init__(self) -> None:
        self.contacts: Counter[tuple[str, str, int | None]] = Counter()
        self._flows: set[tuple[str, bytes, bytes]] = set()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_EVERYTHING))
        self._socket.bind(("lo", _EVERYTHING))
        self._thread = threading.Thread(target=self._read, name="tap", daemon=True)

    def __enter__(self) -> "_Tap":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends with the packet that says so, so that all packets before it were read."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("192.0.2.255", 1))
        self._thread.join(10)
        self._socket.close()

    def _read(self) -> None:
        while True:
            packet, origin = self._socket.recvfrom(65_535)
            attempt = read_attempt(packet) if origin[2] == _OUTGOING else None
            if attempt is None or not attempt.opens or ip_address(attempt.address).is_loopback:
                continue
            if (attempt.address, attempt.port) == ("192.0.2.255", 1):
                return
            if self._is_new(attempt.protocol, packet):
                self.contacts[attempt.protocol, attempt.address, attempt.port] += 1

    def _is_new(self, protocol: str, packet: bytes) -> bool:
        """Whether it is neither an answer to a packet seen before nor the kernel's own complaint about one."""
        four = packet[0] >> 4 == 4
        start = (packet[0] & 0xF) * 4 if four else 40
        if protocol in ("icmp", "icmpv6") and packet[start] in (3, 1):  # destination unreachable
            return False
        source, destination = (packet[12:16], packet[16:20]) if four else (packet[8:24], packet[24:40])
        ports = packet[start : start + 4] if protocol in ("tcp", "udp") else b""
        if (protocol, destination + source, ports[2:] + ports[:2]) in self._flows:
            return False
        self._flows.add((protocol, source + destination, ports))
        return True


@contextlib.contextmanager
def _canaries(udp_ports: Sequence[int]) -> Iterator[tuple[Server, "_Abstract"]]:
    def thank(_: Request) -> Response:
        return Response.json(200, {"canary": "reached"})

    with contextlib.ExitStack() as running:
        tls = Authority.create("canary authority").server_context("canary.example")
        for port in TCP_PORTS:
            running.enter_context(Server(thank, address=("::", port)))
        for port in TLS_PORTS:
            running.enter_context(Server(thank, tls=tls, address=("::", port)))
        for port in udp_ports:
            running.enter_context(DatagramCounter(("::", port)))
        loopback = running.enter_context(Server(thank, address=("127.0.0.1", LOOPBACK_PORT)))
        yield loopback, running.enter_context(_Abstract())


class _Abstract:
    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"\0{ABSTRACT}")
        self._socket.listen()
        self._thread = threading.Thread(target=self._accept, name="abstract", daemon=True)

    def __enter__(self) -> "_Abstract":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._socket.accept()
                self.connections += 1
                accepted.close()


def _keep_no_capability() -> None:
    """An ordinary user kept capabilities across the exec of this program, to make the namespace; the command is to have none of them."""
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def main(report: Path, uid: str, udp_ports: Sequence[int], command: list[str]) -> int:
    seal()
    with _canaries(udp_ports) as (loopback, abstract):
        with _Tap() as tap:
            _keep_no_capability()
            drop = {"user": int(uid), "group": int(uid), "extra_groups": []} if uid else {}
            done = subprocess.run(command, **drop)  # type: ignore[call-overload]
        contacts = [[*key, times] for key, times in sorted(tap.contacts.items(), key=str)]
        contacts += [["tcp", "127.0.0.1", LOOPBACK_PORT, loopback.connections]] if loopback.connections else []
        contacts += [["abstract", ABSTRACT, None, abstract.connections]] if abstract.connections else []
        report.write_text(json.dumps(contacts))
    return int(done.returncode)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]))
