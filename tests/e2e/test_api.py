"""The API of a real installation: on its unix socket by uid, on loopback TCP by token, and by no run at all."""

import hashlib
import http.client
import json
import secrets
import socket

import pytest
from tests.e2e.installation import Installation

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(port: int, path: str, token: str | None, method: str = "GET") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_on_tcp_a_token_is_asked_for_and_gives_its_owners_roles() -> None:
    """No token, a wrong one and a viewer's order are refused; a viewer may look."""
    port, token = free_port(), secrets.token_urlsafe(16)
    digest = hashlib.sha256(token.encode()).hexdigest()
    configuration = f"api: {{listen: '127.0.0.1:{port}'}}\noperators: {{ana: {{token_sha256: '{digest}', roles: [viewer]}}}}\n"
    with Installation(configuration) as installed:
        assert ask(port, "/v1/status", None)[0] == 401
        assert ask(port, "/v1/status", token + "x")[0] == 401
        status, body = ask(port, "/v1/status", token)
        assert (status, body["runs_live"]) == (200, 0)
        assert ask(port, "/v1/shutdown", token, "POST")[0] in (403, 422)
        installed.wait_whole()


def test_a_run_cannot_reach_the_api() -> None:
    """Neither by its socket, which no sandbox holds, nor by TCP, which no route leads to: an agent never approves its own hold."""
    port, token = free_port(), secrets.token_urlsafe(16)
    digest = hashlib.sha256(token.encode()).hexdigest()
    configuration = f"api: {{listen: '127.0.0.1:{port}'}}\noperators: {{ana: {{token_sha256: '{digest}', roles: [admin]}}}}\n"
    with Installation(configuration) as installed:
        socket_path = installed.layout.socket("api")
        script = f"ls {socket_path}; curl -s -m 3 --noproxy '*' -H 'Authorization: Bearer {token}' http://127.0.0.1:{port}/v1/status || echo unreachable"
        done = installed.run("--no-workspace", "--", "sh", "-c", script)
        assert "unreachable" in done.said
        assert "runs_live" not in done.said
        assert "No such file" in done.said
