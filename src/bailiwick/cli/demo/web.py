"""A small HTTP/1.1 server on loopback, with or without TLS, that can also misbehave on order and stops without leaving a thread or a socket.

A handler is a function from `Request` to `Response`. A body given as an iterator is sent chunk by chunk as it comes; raising `Cut` inside the handler
or the iterator ends the connection right there, which is how the faults are made.
"""

import contextlib
import http.server
import json
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BODY_BYTES_MAX = 64 * 1024 * 1024
IDLE_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 5.0

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST


class Cut(Exception):
    """End the connection here: with a reset, after some last bytes, or just so."""

    def __init__(self, *, reset: bool = False, last: bytes = b"") -> None:
        super().__init__("connection cut on order")
        self.reset = reset
        self.last = last  # written as it is, with no chunk framing


@dataclass(frozen=True, slots=True)
class Request:
    """`fields` has names in lower case; `path` is as sent, without its query."""

    method: str
    path: str
    query: str
    fields: Mapping[str, str]
    body: bytes

    def bearer(self) -> str | None:
        scheme, _, value = self.fields.get("authorization", "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" and value else None


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes | Iterator[bytes] = b""
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, value: Any, **fields: str) -> "Response":
        named = {name.replace("_", "-"): text for name, text in fields.items()}
        return cls(status, json.dumps(value).encode(), {"content-type": "application/json"} | named)


Handler = Callable[[Request], Response]


class Server:
    """Serves from `__enter__` to `__exit__`; `port` is known at once. `connections` counts what was accepted, before a byte was read."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.stopping = threading.Event()
        self._listener = _Listener(handler, tls, address, self.stopping)
        self.port: int = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, name=f"http:{self.port}", daemon=True)

    @property
    def connections(self) -> int:
        return self._listener.accepted

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._listener.shutdown()
        self._listener.cut_all()
        self._listener.server_close()  # joins the connections' threads
        self._thread.join(STOP_SECONDS_MAX)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 128

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None, address: tuple[str, int], stopping: threading.Event) -> None:
        self.handler = handler
        self.stopping = stopping
        self.accepted = 0
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()  # keeps `_open` and `accepted`
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        super(http.server.HTTPServer, self).server_bind()  # without the reverse look-up of our own name

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, peer = super().get_request()
        sock.settimeout(IDLE_SECONDS_MAX)
        with self._lock:
            self.accepted += 1
            self._open.add(sock)
        return sock, peer

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        sock: socket.socket = request
        try:
            if self._tls is not None:
                raw = sock
                sock = self._tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open.discard(raw)
                    self._open.add(sock)
                if self.stopping.is_set():  # cut_all may have come while neither socket was the open one
                    return
                sock.do_handshake()
            self.finish_request(sock, client_address)
        except (OSError, ValueError):
            pass  # the peer is gone or never spoke TLS: its own business
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def cut_all(self) -> None:
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Connection(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener
    disable_nagle_algorithm = True
    server_version = "loopback"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the journals say what arrived."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every method goes the same way
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        body = self._read_body()
        if body is None:
            return
        path, _, query = self.path.partition("?")
        if path.startswith(("http://", "https://")):
            path = urllib.parse.urlsplit(path).path
        fields = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        try:
            response = self.server.handler(Request(self.command, path, query, fields, body))
            self._send(response)
        except Cut as cut:
            self._cut(cut)

    def _read_body(self) -> bytes | None:
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return self._read_chunks()
        try:
            length = int(self.headers.get("content-length", "0"))
        except ValueError:
            length = -1
        if not 0 <= length <= BODY_BYTES_MAX:
            self._refuse(400 if length < 0 else 413)
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return None
        return body

    def _read_chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            try:
                size = int(self.rfile.readline(256).split(b";")[0].strip(), 16)
            except ValueError:
                self._refuse(400)
                return None
            if size < 0 or len(body) + size > BODY_BYTES_MAX:
                self._refuse(413)
                return None
            body += self.rfile.read(size)
            line = self.rfile.readline(1024)
            if size == 0:
                while line not in (b"\r\n", b"\n", b""):
                    line = self.rfile.readline(1024)
                return bytes(body)

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        self._send(Response(status, fields={"connection": "close"}))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.fields.items():
            self.send_header(name, value)
        if isinstance(response.body, bytes):
            if response.status not in (204, 304):
                self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in response.body:
            if self.server.stopping.is_set():
                self.close_connection = True
                return
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self, cut: Cut) -> None:
        self.close_connection = True
        if cut.last:
            self.wfile.write(cut.last)
        if cut.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif isinstance(self.connection, ssl.SSLSocket):
            self.connection.shutdown(socket.SHUT_RDWR)  # no close_notify: a server that died says nothing
