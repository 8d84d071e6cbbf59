import hashlib
import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.api.conftest import UnixConnection
from tests.fakes.governance import FakeGovernance
from tests.fakes.served import served

from bailiwick.api.application import create
from bailiwick.api.operators import Directory, OperatorSection
from bailiwick.kernel.accounts import Accounts


def test_the_kernel_says_who_calls(tmp_path: Path) -> None:
    """On the unix socket the operator is the uid at the other end, whatever its headers claim."""
    directory = Directory({}, starter_uid=os.getuid(), separate=os.getuid() == 0)
    with served(create(FakeGovernance(), directory.authenticate), tmp_path / "api.sock") as server:
        connection = UnixConnection(server.path)
        connection.request("GET", "/v1/operator", headers={"X-Forwarded-For": "1.2.3.4", "Authorization": "Bearer nonsense"})
        assert b'"admin"' in connection.getresponse().read()
        connection.close()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="becomes a run's uid")
def test_a_process_with_a_runs_uid_is_refused(tmp_path: Path) -> None:
    """The real thing: a process that has a run's uid and reaches the socket gets the same 403 for everything."""
    directory = Directory({}, starter_uid=0, separate=True)
    place = Path("/tmp") / f"bailiwick-test-{os.getpid()}"  # pytest's own directory is root's alone
    place.mkdir(mode=0o755)
    asks = (
        "import os, socket, sys; os.setgid(UID); os.setuid(UID); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'POST /v1/shutdown HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'); print(s.recv(100).decode())"
    ).replace("UID", str(Accounts.run_uid(1)))
    governance = FakeGovernance()
    try:
        with served(create(governance, directory.authenticate), place / "api.sock") as server:
            answer = subprocess.run(["/usr/bin/env", sys.executable, "-c", asks, str(server.path)], capture_output=True, text=True, timeout=20)
        assert answer.stdout.startswith("HTTP/1.1 403"), answer
    finally:
        (place / "api.sock").unlink(missing_ok=True)
        place.rmdir()
    assert governance.stopped_by is None


def test_on_tcp_only_a_token_counts(tmp_path: Path) -> None:
    """The same application on loopback: no token, no answer."""
    known = OperatorSection.model_validate({"token_sha256": hashlib.sha256(b"t0ken").hexdigest(), "roles": ["viewer"]})
    directory = Directory({"bo": known}, starter_uid=os.getuid(), separate=True)
    with socket.create_server(("127.0.0.1", 0)) as listener, served(create(FakeGovernance(), directory.authenticate), tmp_path / "s", also=(listener,)):
        for header, status in [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer t0ken"}, 200)]:
            connection = http.client.HTTPConnection(*listener.getsockname(), timeout=10)
            connection.request("GET", "/v1/status", headers=header)
            response = connection.getresponse()
            assert response.status == status
            assert ("WWW-Authenticate" in response.headers) == (status == 401)
            connection.close()


def test_what_is_not_http_is_turned_away(tmp_path: Path) -> None:
    """Garbage, an upgrade and a half request end their own connection and nothing else."""
    directory = Directory({}, starter_uid=os.getuid(), separate=os.getuid() == 0)
    with served(create(FakeGovernance(), directory.authenticate), tmp_path / "api.sock") as server:
        for raw in (
            b"\x00\xff\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            b"POST /v1/runs HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        ):
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(str(server.path))
            stranger.sendall(raw)
            stranger.shutdown(socket.SHUT_WR)
            stranger.close()
        connection = UnixConnection(server.path)
        connection.request("GET", "/v1/agents")
        assert connection.getresponse().read() == b'["deployer"]'
        connection.close()


def test_stopping_cuts_streams_and_lets_answers_finish(tmp_path: Path) -> None:
    """A stream that is followed has no end to wait for; whoever follows sees it break off, and the server is gone at once."""
    import time

    directory = Directory({}, starter_uid=os.getuid(), separate=os.getuid() == 0)
    connection = UnixConnection(tmp_path / "api.sock")
    with served(create(FakeGovernance(), directory.authenticate), tmp_path / "api.sock"):
        connection.request("GET", "/v1/events?follow=true")
        response = connection.getresponse()
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
