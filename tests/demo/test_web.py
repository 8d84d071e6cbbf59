import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Cut, Request, Response, Server


def echo(request: Request) -> Response:
    return Response.json(200, {"method": request.method, "path": request.path, "query": request.query, "body": request.body.decode()})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(echo) as running:
        yield running


def talk(server: Server, raw: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 5) as line:
        line.sendall(raw)
        line.shutdown(socket.SHUT_WR)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := line.recv(65536):
                got += piece
    return got


def test_a_connection_serves_many_requests(server: Server) -> None:
    """Keep-alive: bodies of either framing, any method, one connection."""
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    for method, body in (("GET", None), ("PUT", b"with a length"), ("REPORT", iter([b"in ", b"chunks"])), ("DELETE", b"")):
        line.request(
            method, "/a?b=c", body, encode_chunked=not isinstance(body, bytes | None), headers={"transfer-encoding": "chunked"} if method == "REPORT" else {}
        )
        answer = line.getresponse()
        assert answer.status == 200
        assert method in answer.read().decode()
    line.close()
    assert server.connections == 1


def test_a_head_has_no_body(server: Server) -> None:
    """HEAD is answered with the length and without the content."""
    answer = talk(server, b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"content-length:" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n", b"413"),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffff\r\n", b"413"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_bad_requests_are_refused(server: Server, raw: bytes, status: bytes) -> None:
    """What is not HTTP, or too large, gets an error and the connection's end."""
    assert status in talk(server, raw).split(b"\r\n")[0]


@pytest.mark.parametrize("raw", [b"", b"GET / HT", b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf"])
def test_a_request_cut_short_is_forgotten(server: Server, raw: bytes) -> None:
    """Half a request is no request; the handler never sees it and the server goes on."""
    assert b"200" not in talk(server, raw)
    assert b"200 OK" in talk(server, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")


def test_it_stops_with_connections_open_and_leaves_no_thread() -> None:
    """Idle, half-said and unfinished TLS connections end with the server, at once."""
    before = set(threading.enumerate())
    secure = Authority.create("test").server_context("127.0.0.1")
    with Server(echo) as plain, Server(echo, tls=secure) as tls:
        lines = [socket.create_connection(("127.0.0.1", port), 5) for port in (plain.port, tls.port, plain.port)]
        lines[2].sendall(b"GET / HTTP/1.1\r\nhost:")
    for line in lines:
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
        line.close()
    assert set(threading.enumerate()) == before


def test_it_stops_at_once_whatever_a_connection_is_at() -> None:
    """However a stop falls between accept and handshake, no thread waits for a client that says nothing more."""
    secure = Authority.create("test").server_context("127.0.0.1")
    begun = time.monotonic()
    for _ in range(100):
        with Server(echo, tls=secure) as server:
            line = socket.create_connection(("127.0.0.1", server.port), 5)
        line.close()
    assert time.monotonic() - begun < 30


def test_plain_words_to_a_tls_door_do_no_harm() -> None:
    """A client that speaks in the clear, or distrusts the certificate, is gone; the next one is served."""
    authority = Authority.create("test")
    with Server(echo, tls=authority.server_context("localhost", "127.0.0.1")) as server:
        talk(server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        line = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=authority.client_context())
        line.request("GET", "/")
        assert line.getresponse().read()
        line.close()


def test_a_cut_ends_the_connection() -> None:
    """The last bytes arrive, then nothing; no length or chunk makes it look whole."""

    def cutting(_: Request) -> Response:
        raise Cut(last=b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhal")

    with Server(cutting) as server:
        assert talk(server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").endswith(b"\r\n\r\nhal")
