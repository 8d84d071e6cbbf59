import socket
import threading
import time

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.stranger import Stranger


def test_every_kind_of_contact_counts() -> None:
    """A connection that says nothing, one that speaks, and a datagram: each is one."""
    with Stranger(Authority.create("test"), "stranger.example", "127.0.0.1") as stranger:
        assert stranger.reached == 0
        assert stranger.can_count()
        assert stranger.reached == 0, "its own knocks do not count"
        with socket.create_connection(("127.0.0.1", stranger.https_port), 5):
            pass
        with socket.create_connection(("127.0.0.1", stranger.http_port), 5) as line:
            line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert line.recv(64).startswith(b"HTTP/1.1 200")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(5)
            line.sendto(b"", ("127.0.0.1", stranger.udp_port))
            assert line.recv(64) == b"noticed"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(5)
            line.sendto(b"again", ("127.0.0.1", stranger.udp_port))
            assert line.recv(64) == b"noticed"
        deadline = time.monotonic() + 5
        while stranger.reached < 4 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert stranger.reached == 4


def test_it_leaves_no_thread() -> None:
    """Stopped is stopped: the threads are those from before."""
    before = set(threading.enumerate())
    with Stranger(Authority.create("test")) as stranger:
        assert stranger.can_count()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
