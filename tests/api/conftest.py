import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.governance import FakeGovernance
from tests.fakes.served import Served, served

from bailiwick.api.application import create
from bailiwick.api.operators import Caller
from bailiwick.governor.views import Operator


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Api:
    """A client of a served API; `roles` is who calls, as the tests' authentication sees it."""

    def __init__(self, server: Served, governance: FakeGovernance) -> None:
        self.server = server
        self.governance = governance
        self.path = server.path
        self.roles = "admin"
        self.name = "ana"

    def __call__(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        connection = UnixConnection(self.path)
        try:
            payload = raw if raw is not None else None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Authorization": f"{self.name} {self.roles}"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kind = response.headers.get_content_type()
        if kind in ("application/json", "application/problem+json"):
            return response.status, json.loads(content)
        if kind == "application/x-ndjson":
            return response.status, [json.loads(line) for line in content.splitlines() if line]
        return response.status, content

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.server.call(function, *args)


def by_header(caller: Caller) -> Operator:
    """Whoever the test says it is."""
    name, _, roles = (caller.authorization or "nobody").partition(" ")
    return Operator(name=name, roles=frozenset(roles.split(",") if roles else []))


@pytest.fixture
def governance() -> FakeGovernance:
    return FakeGovernance()


@pytest.fixture
def api(governance: FakeGovernance, tmp_path: Path) -> Iterator[Api]:
    with served(create(governance, by_header), tmp_path / "api.sock") as server:
        yield Api(server, governance)
