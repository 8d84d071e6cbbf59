import logging
from typing import Any

import pytest

from bailiwick.api import problem
from bailiwick.kernel import errors
from bailiwick.kernel.channel import RemoteFailure
from bailiwick.kernel.document import Finding, Invalid


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.CallerError("x"), 400, "bad-request"),
        (problem.Unauthenticated("x"), 401, "unauthenticated"),
        (errors.Forbidden("x"), 403, "forbidden"),
        (errors.NotFound("x"), 404, "not-found"),
        (errors.Conflict("x"), 409, "conflict"),
        (errors.CallerError("x", code="too-large"), 413, "too-large"),
        (Invalid([Finding("f", 1, 1, "", "x")]), 422, "invalid"),
        (errors.PeerError("x"), 503, "peer"),
        (errors.BackendError("x"), 503, "backend"),
        (errors.BackendError("x", code="recorder-down"), 503, "recorder-down"),
        (RemoteFailure("x", code="not-found"), 404, "not-found"),
        (RemoteFailure("x", code="something"), 500, "internal"),
        (errors.BailiwickError("x"), 500, "internal"),
        (ValueError("x"), 500, "internal"),
    ],
    ids=repr,
)
def test_every_error_has_its_status(error: Exception, status: int, code: str) -> None:
    """The caller's fault is 4xx, a part of ours that is down 503, what nobody foresaw 500."""
    found = problem.of(error)
    assert (found.status, found.code, found.type) == (status, code, f"urn:bailiwick:problem:{code}")


def test_an_unforeseen_error_shows_an_id_and_nothing_else(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What was raised stands in the log under the id the client was given, never in the answer."""

    def broken() -> list[str]:
        raise RuntimeError("the password is hunter2")

    api.governance.agents = broken
    with caplog.at_level(logging.ERROR, "bailiwick.api"):
        status, shown = api("GET", "/v1/agents")
    assert (status, shown["code"]) == (500, "internal")
    assert "hunter2" not in str(shown)
    assert shown["incident"] in caplog.text
    assert "hunter2" in caplog.text


def test_what_is_not_there_is_a_problem_too(api: Any) -> None:
    """Unknown paths, wrong methods and bad parameters are answered in the same form."""
    for method, path, status in [("GET", "/nowhere", 404), ("PUT", "/v1/runs", 405), ("GET", "/v1/runs?limit=0", 422), ("GET", "/v1/runs/%00", 422)]:
        found, shown = api(method, path)
        assert (found, shown["status"], shown["title"] != "") == (status, status, True)
