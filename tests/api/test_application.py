import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from tests.fakes.governance import FakeGovernance

from bailiwick.api.application import create, role_of
from bailiwick.api.operators import Caller, Directory
from bailiwick.governor.views import Operator
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.channel import Peer

FUZZ_SECONDS_MAX = 15.0

READ = {"viewer", "approver", "operator", "admin"}
WHO = {
    ("GET", "/v1/status"): READ, ("GET", "/v1/operator"): READ, ("GET", "/v1/openapi.json"): READ, ("GET", "/v1/agents"): READ,
    ("GET", "/v1/agents/{agent}/policy"): READ, ("GET", "/v1/runs"): READ, ("GET", "/v1/runs/{run}"): READ,
    ("GET", "/v1/runs/{run}/events"): READ, ("GET", "/v1/runs/{run}/changes"): READ, ("GET", "/v1/runs/{run}/changes.tar"): READ,
    ("GET", "/v1/holds"): READ, ("GET", "/v1/holds/{hold}"): READ, ("GET", "/v1/events"): READ, ("GET", "/v1/record/key"): READ,
    ("GET", "/v1/record/export"): READ,
    ("POST", "/v1/holds/{hold}/approve"): {"approver", "admin"}, ("POST", "/v1/holds/{hold}/deny"): {"approver", "admin"},
    ("POST", "/v1/runs"): {"operator", "admin"}, ("POST", "/v1/runs/{run}/kill"): {"operator", "admin"},
    ("POST", "/v1/runs/{run}/pause"): {"operator", "admin"}, ("POST", "/v1/runs/{run}/resume"): {"operator", "admin"},
    ("POST", "/v1/runs/{run}/applied"): {"operator", "admin"}, ("POST", "/v1/shutdown"): {"admin"},
}  # fmt: skip


def operations() -> list[tuple[str, str]]:
    document = create(FakeGovernance(), lambda _: admin()).openapi()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


def admin() -> Operator:
    return Operator(name="ana", roles=frozenset({"admin"}))


def routes(app: Any) -> Iterator[APIRoute]:
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if isinstance(route, APIRoute):
            yield route
        else:
            inner = getattr(getattr(route, "original_router", route), "routes", None)
            assert inner is not None, f"{route!r} is served and no declared route"
            pending += inner


def test_every_route_declares_a_role() -> None:
    """Default deny: a route that demands no role does not exist, and nothing is served that is not a declared route."""
    app = create(FakeGovernance(), lambda _: admin())
    found = list(routes(app))
    assert not [route.path for route in found if role_of(route) is None]
    assert {tuple(key) for key in operations()} == set(WHO)


@pytest.mark.parametrize("role", ["viewer", "approver", "operator", "admin"])
def test_each_role_may_what_it_says(api: Any, role: str) -> None:
    """Reading is everybody's, signing off the approver's, running and stopping the operator's, the installation the admin's."""
    api.roles = role
    for (method, path), roles in WHO.items():
        where = path.replace("{run}", "run-0").replace("{hold}", "hold-0").replace("{agent}", "deployer")
        status, _ = api(method, where, {} if method == "POST" else None)
        assert (status == 403) == (role not in roles), f"{role} {method} {path}: {status}"


def test_without_a_role_there_is_nothing(api: Any) -> None:
    """An operator who was given no role reads nothing either."""
    api.roles = ""
    for method, path in WHO:
        assert api(method, path.replace("{", "").replace("}", ""))[0] == 403


def test_a_run_can_do_nothing(governance: FakeGovernance, tmp_path: Path) -> None:
    """With a run's uid every path, known or not, is the same refusal, and the governor hears of none of it."""
    app = create(governance, Directory({}, starter_uid=0, separate=True).authenticate)
    run = Peer(4711, Accounts.run_uid(3), Accounts.run_uid(3))

    async def ask(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": headers, "root_path": "", "scheme": "http", "server": None, "client": None,
            "extensions": {"bailiwick.peer": run}, "state": {},
        }  # fmt: skip
        await app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    credentials: list[list[tuple[bytes, bytes]]] = [[], [(b"authorization", b"Bearer x"), (b"x-forwarded-for", b"127.0.0.1")]]
    with start_blocking_portal("asyncio") as portal:
        for (method, path), headers in itertools.product([*WHO, ("GET", "/"), ("GET", "/v1/nowhere")], credentials):
            status, body = portal.call(ask, method, path, headers)
            assert (status, json.loads(body)["code"]) == (403, "forbidden")
    assert not governance.log
    assert governance.stopped_by is None


def _fuzzed() -> Any:
    governance = FakeGovernance()
    governance.open_hold("run-0")

    def authenticate(_: Caller) -> Operator:
        return admin()

    return schemathesis.openapi.from_asgi("/v1/openapi.json", create(governance, authenticate))


def test_fuzzed_by_its_own_description() -> None:
    """Generated requests, valid and not, to every operation: no 5xx, no undeclared status or media type, no answer that breaks its schema."""
    schema = _fuzzed()
    deadline = time.monotonic() + FUZZ_SECONDS_MAX
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def fuzz(case: Any) -> None:
            nonlocal count
            if time.monotonic() > deadline or (case.query or {}).get("follow") in (True, "true", "1", 1):
                return  # a followed stream does not end by itself; test_stream has those
            count += 1
            case.call_and_validate()

        fuzz()
    assert count > len(WHO) * 5


def test_every_operation_is_documented() -> None:
    """The page of the reference lists what is served, with its role, and nothing else."""
    page = (Path(__file__).parents[2] / "docs/reference/api.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith(("| GET ", "| POST "))]
    document = create(FakeGovernance(), lambda _: admin()).openapi()
    served = [[method.upper(), path, operation["x-bailiwick-role"]] for path, methods in document["paths"].items() for method, operation in methods.items()]
    assert sorted(rows) == sorted(served)
