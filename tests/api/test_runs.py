from pathlib import Path
from typing import Any

from tests.fakes.governance import tar_of

from bailiwick.governor.views import ChangesView


def test_a_run_is_asked_for_and_read_back(api: Any) -> None:
    """What was asked reaches the governor as asked, with the operator who asked it, and the run can be read."""
    status, run = api("POST", "/v1/runs", {"agent": "deployer", "task": "nightly"})
    assert status == 201
    request, operator = api.governance.requests[0]
    assert (request.agent, request.task, operator.name) == ("deployer", "nightly", "ana")
    assert api("GET", f"/v1/runs/{run['run']}") == (200, run)
    assert api("GET", "/v1/runs?state=running&agent=deployer&limit=5") == (200, [run])
    assert api("GET", "/v1/runs?state=ended") == (200, [])


def test_what_is_not_a_run_is_refused_by_name(api: Any) -> None:
    """A body that is no request says which part and why; neither agent nor command, or both, is refused."""
    for body, status, words in [
        ({"agent": "nobody"}, 404, "known: deployer"),
        ({}, 422, "give one of them"),
        ({"agent": "deployer", "command": ["x"]}, 422, "give one of them"),
        ({"agent": "deployer", "extra": 1}, 422, "extra"),
        ({"agent": 7}, 422, "$.agent"),
        ([], 422, "object"),
    ]:
        found, problem = api("POST", "/v1/runs", body)
        assert (found, words in problem["detail"]) == (status, True), problem
    assert api("POST", "/v1/runs", raw=b"{")[0] == 400
    assert api("POST", "/v1/runs", raw=b"\xff\xfe")[0] == 400
    assert api("POST", "/v1/runs", raw=b"[" * 100_000)[0] in (400, 422)
    assert api("POST", "/v1/runs", raw=b" " * 300_000)[0] == 413
    assert not api.governance.requests


def test_a_run_is_paused_resumed_and_killed(api: Any) -> None:
    """Each order is the governor's to take; one that its state forbids is a conflict with the way out."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    assert api("POST", f"/v1/runs/{run}/pause", {})[1]["state"] == "paused"
    assert api("POST", f"/v1/runs/{run}/pause", {})[0] == 409
    assert api("POST", f"/v1/runs/{run}/resume", {"reason": "looked at it"})[1]["state"] == "running"
    killed = api("POST", f"/v1/runs/{run}/kill", {"reason": "enough"})[1]
    assert (killed["state"], killed["detail"]) == ("ended", "enough")
    assert api("POST", f"/v1/runs/{run}/kill", {})[0] == 409


def test_changes_are_listed_fetched_and_applied_once(api: Any, tmp_path: Path) -> None:
    """The list, the tar byte for byte, and the note that they were applied; a run without files says so."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    assert api("GET", f"/v1/runs/{run}/changes.tar")[0] == 404
    archive = tar_of(tmp_path / "changes.tar", {"a.txt": b"new"})
    api.governance.archives[run] = archive
    api.governance.known_changes[run] = ChangesView(run=run, workspace="/w", changes=[{"path": "a.txt", "change": "added"}], refused=[])
    assert api("GET", f"/v1/runs/{run}/changes")[1]["changes"] == [{"path": "a.txt", "change": "added"}]
    assert api("GET", f"/v1/runs/{run}/changes.tar") == (200, archive.read_bytes())
    assert archive.exists()
    assert api("POST", f"/v1/runs/{run}/applied", {"directory": "/w"})[0] == 204
    assert api("POST", f"/v1/runs/{run}/applied", {"directory": "/w"})[0] == 409
