import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.conftest import UnixConnection

from bailiwick.api import stream


def follow(api: Any, path: str) -> tuple[UnixConnection, Iterator[str]]:
    connection = UnixConnection(api.path)
    connection.request("GET", path, headers={"Authorization": "ana viewer"})
    response = connection.getresponse()
    assert response.status == 200
    return connection, (line.decode().rstrip("\n") for line in response)


def kinds(lines: list[str]) -> list[str]:
    return [json.loads(line)["event"]["kind"] for line in lines if line]


def test_what_is_committed_is_read_page_after_page(api: Any) -> None:
    """Without follow the answer is everything after `after`, however much, once and in order."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    api.do(lambda: [api.governance.commit("run.output", run=run, body={"text": str(n)}) for n in range(1200)])
    events = api("GET", f"/v1/runs/{run}/events")[1]
    assert [event["sequence"] for event in events] == list(range(1201))
    assert len(api("GET", f"/v1/runs/{run}/events?after=1190")[1]) == 10
    assert [event["event"]["kind"] for event in api("GET", "/v1/events?kind=run.requested")[1]] == ["run.requested"]


def test_a_run_is_followed_to_its_end(api: Any) -> None:
    """Events arrive as they are committed, other runs' do not, and the stream ends with the run."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    other = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    connection, lines = follow(api, f"/v1/runs/{run}/events?follow=true")
    assert kinds([next(lines)]) == ["run.requested"]
    api.do(api.governance.end, other)
    api.do(api.governance.end, run)
    assert kinds(list(lines)) == ["run.ended"]
    connection.close()


def test_following_a_run_that_is_over_ends_at_once(api: Any) -> None:
    """Also when its last event is before `after`."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    api.do(api.governance.end, run)
    for after in (-1, 0, 1):
        assert len(api("GET", f"/v1/runs/{run}/events?follow=true&after={after}")[1]) == 1 - after


def test_a_quiet_stream_says_it_is_alive(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line every so often, so that the other end can tell quiet from dead."""
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)
    connection, lines = follow(api, "/v1/events?follow=true")
    assert [next(lines), next(lines)] == ["", ""]
    connection.close()


def test_an_error_in_the_middle_is_the_last_line(api: Any) -> None:
    """The status is sent by then: the stream itself says what happened, as a problem."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    connection, lines = follow(api, f"/v1/runs/{run}/events?follow=true")
    next(lines)

    def broken(**_: Any) -> None:
        raise RuntimeError("hunter2")

    def breaking() -> None:
        api.governance.events = broken
        api.governance.commit("run.output", run=run)

    api.do(breaking)
    (last,) = list(lines)
    assert json.loads(last)["problem"]["code"] == "internal"
    assert "hunter2" not in last
    connection.close()


def test_followers_are_bounded(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than allowed is told to come later; one that leaves makes room."""
    monkeypatch.setattr(stream, "FOLLOWERS_MAX", 1)
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)
    connection, lines = follow(api, "/v1/events?follow=true")
    assert next(lines) == ""
    status, problem = api("GET", "/v1/events?follow=true")
    assert (status, problem["code"]) == (503, "busy")
    connection.close()
    for _ in range(500):
        again = UnixConnection(api.path)
        again.request("GET", "/v1/events?follow=true", headers={"Authorization": "ana viewer"})
        status = again.getresponse().status
        again.close()
        if status == 200:
            return
    raise AssertionError("a follower that left is still counted")
