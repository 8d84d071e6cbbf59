"""The world outside notices everything, so that what it does not notice did not happen."""

import os
import subprocess
import sys
import time

import pytest
from tests.e2e.world import outside

pytestmark = pytest.mark.sandbox

LEAKS = """
import contextlib, socket, ssl
def tcp(family, address, port):
    with contextlib.suppress(OSError), socket.socket(family) as line:
        line.settimeout(5)
        line.connect((address, port))
        line.sendall(b"GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
        print(address, port, line.recv(20))
tcp(socket.AF_INET, "203.0.113.66", 80)
tcp(socket.AF_INET, "169.254.169.254", 80)
tcp(socket.AF_INET6, "2001:db8::66", 8443)
tcp(socket.AF_INET6, "::ffff:8.8.8.8", 80)
tcp(socket.AF_INET, "10.1.2.3", 40000)
tcp(socket.AF_INET, "127.0.0.1", 6379)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.settimeout(5)
    for port in (53, 40001):
        line.sendto(b"data", ("8.8.4.4", port))
    print(line.recv(20))
with socket.socket(socket.AF_UNIX) as line:
    line.connect("\\0outside-canary")
"""


def test_every_contact_is_noticed() -> None:
    """TCP and UDP of both families, served or not, the host's loopback and an abstract socket: each is a contact, by its own address."""
    seen = outside.run([sys.executable, "-c", LEAKS])
    assert seen.status == 0, seen.errors
    assert {(contact.protocol, contact.address, contact.port) for contact in seen.contacts} == {
        ("tcp", "203.0.113.66", 80),
        ("tcp", "169.254.169.254", 80),
        ("tcp", "2001:db8::66", 8443),
        ("tcp", "8.8.8.8", 80),
        ("tcp", "10.1.2.3", 40000),
        ("tcp", "127.0.0.1", 6379),
        ("udp", "8.8.4.4", 53),
        ("udp", "8.8.4.4", 40001),
        ("abstract", "outside-canary", None),
    }
    assert seen.output.count("HTTP/1.1 200 OK") == 5, "a leak really reaches somebody"
    assert "noticed" in seen.output


def test_silence_is_silence() -> None:
    """Talk on the machine's own loopback, or within a namespace of one's own, is nobody's contact."""
    talk = "import socket; a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()); print('talked')"
    seen = outside.run([sys.executable, "-c", talk])
    assert (seen.output, seen.contacts) == ("talked\n", [])
    kinds = ["--net"] if os.getuid() == 0 else ["--user", "--map-root-user", "--net"]
    sealed = outside.run(["unshare", *kinds, sys.executable, "-c", LEAKS])
    assert sealed.contacts == []


def test_the_commands_status_is_told() -> None:
    """A failure inside is a failure, and its words arrive."""
    seen = outside.run(["/bin/sh", "-c", "echo said; echo why >&2; exit 3"])
    assert (seen.status, seen.output, seen.errors) == (3, "said\n", "why\n")


def test_it_ends_with_its_time() -> None:
    """A command that does not end is killed with all it started."""
    with pytest.raises(subprocess.TimeoutExpired):
        outside.run(["/bin/sh", "-c", "sleep 31557 & sleep 31557"], seconds_max=3)
    deadline = time.monotonic() + 5
    while subprocess.run(["pgrep", "-f", "sleep 31557"], capture_output=True).stdout:
        assert time.monotonic() < deadline, "a process of a world that is over is still there"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root")
def test_it_may_be_somebody_else() -> None:
    """Started by root, the command may run as an ordinary user, and is noticed all the same."""
    seen = outside.run(["/bin/sh", "-c", "id -u; echo > /dev/tcp/203.0.113.1/80 || true"], uid=65534)
    assert seen.output == "65534\n"
    seen = outside.run(["bash", "-c", "echo > /dev/tcp/203.0.113.1/80"], uid=65534)
    assert [(contact.address, contact.port) for contact in seen.contacts] == [("203.0.113.1", 80)]
