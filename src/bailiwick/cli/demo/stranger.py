"""The stranger: whoever must never be reached. It serves whatever comes, in the clear, over TLS and over UDP, and counts every connection and datagram.

A counter at zero says something only of a counter that can count: `can_count` knocks once on each door first and then starts again from zero.
"""

import contextlib
import socket
import threading

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Request, Response, Server

KNOCK_SECONDS_MAX = 5.0
DATAGRAM_BYTES_MAX = 65_535


class Stranger:
    """A context manager; `http_port`, `https_port` and `udp_port` are known at once."""

    def __init__(self, authority: Authority, *names: str) -> None:
        self._authority = authority
        self._names = names or ("127.0.0.1",)
        self._plain = Server(_thank)
        self._secure = Server(_thank, tls=authority.server_context(*self._names))
        self._datagrams = DatagramCounter()
        self._ignored = 0

    @property
    def http_port(self) -> int:
        return self._plain.port

    @property
    def https_port(self) -> int:
        return self._secure.port

    @property
    def udp_port(self) -> int:
        return self._datagrams.port

    @property
    def reached(self) -> int:
        """Connections accepted and datagrams received since the start, or since `can_count`."""
        return self._total() - self._ignored

    def can_count(self) -> bool:
        """Whether each door notices one knock."""
        before = self._total()
        for port in (self.http_port, self.https_port):
            with socket.create_connection(("127.0.0.1", port), KNOCK_SECONDS_MAX) as knock:
                if port == self.https_port:
                    context = self._authority.client_context()
                    with context.wrap_socket(knock, server_hostname=self._names[0]):
                        pass
                else:
                    knock.sendall(b"GET / HTTP/1.1\r\nhost: stranger\r\nconnection: close\r\n\r\n")
                    knock.recv(64)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knock:
            knock.settimeout(KNOCK_SECONDS_MAX)
            knock.connect(("127.0.0.1", self.udp_port))
            knock.send(b"knock")
            with contextlib.suppress(OSError):
                knock.recv(64)
        noticed = self._total() - before
        self._ignored = self._total()
        return noticed == 3

    def __enter__(self) -> "Stranger":
        with contextlib.ExitStack() as started:
            started.enter_context(self._plain)
            started.enter_context(self._secure)
            started.enter_context(self._datagrams)
            self._running = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _total(self) -> int:
        return self._plain.connections + self._secure.connections + self._datagrams.received


def _thank(_: Request) -> Response:
    return Response.json(200, {"thanks": "for everything"})


class DatagramCounter:
    """A context manager that answers every datagram and counts it in `received`."""

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.received = 0
        self._socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._receive, name=f"udp:{self.port}", daemon=True)

    def __enter__(self) -> "DatagramCounter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # an unconnected UDP socket complains, and wakes its reader all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(KNOCK_SECONDS_MAX)
        self._socket.close()

    def _receive(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(DATAGRAM_BYTES_MAX)
            except OSError:
                return
            if not data and peer is None:
                return
            self.received += 1
            with contextlib.suppress(OSError):
                self._socket.sendto(b"noticed", peer)
