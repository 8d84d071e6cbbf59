"""A command of the operator's own, sealed: what `bailiwick run -- ...` promises."""

import os
import signal
import subprocess

import pytest
from tests.e2e.installation import Installation

from bailiwick.governor.views import RunView

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]


def test_a_command_without_a_boundary_may_do_nothing_outside() -> None:
    """Default deny: the request is refused with a reason the agent can read, the record has it, and the exit status is the agent's."""
    with Installation(files={"hello.txt": "hi\n"}) as installed:
        done = installed.run("--", "sh", "-c", "cat hello.txt; curl -s http://example.org/; exit 3")
        assert done.status == 1
        assert done.view.status == 3
        assert "hi" in done.said
        assert "no rule of command allows read on http://example.org/" in done.said
        decided = done.of("action.decided")
        assert [(event["verb"], event["decision"]) for event in decided] == [("read", "deny")]
        assert done.of("action.finished") == []
        assert installed.left(done.view.run) == []


def test_the_agent_sees_nothing_of_the_host() -> None:
    """Its files, its processes and its environment are its own."""
    with Installation() as installed:
        done = installed.run("--no-workspace", "--", "sh", "-c", "ls /root /home; cat /etc/shadow; ps ax 2>/dev/null || ls /proc; env; id -u")
        assert "agent" in done.said
        assert str(installed.directory) not in done.said
        assert "pytest" not in done.said
        assert done.of("run.probed")[0]["body"]["findings"]
        assert all(finding["held"] for finding in done.of("run.probed")[0]["body"]["findings"])


def test_an_interrupt_ends_the_run_and_leaves_nothing() -> None:
    """Ctrl-C: the run is killed, its sandbox gone, the exit status 130."""
    with Installation() as installed:
        process = subprocess.Popen(
            installed.command("run", "--no-workspace", "--state", str(installed.layout.root), "--", "sleep", "1000"),
            cwd=installed.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        run = installed.wait(lambda: installed.api.get("/v1/runs", list[RunView], state="running")[0].run, "a running run")
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
        ended = installed.wait_ended(run)
        assert ended.view.cause == "killed"
        assert installed.left(run) == []


def test_a_command_that_does_not_exist_is_refused_before_anything_is_made() -> None:
    """Value, expectation, way out; no run."""
    with Installation() as installed:
        done = installed.cli("run", "--no-workspace", "--", "no-such-program")
        assert done.returncode in (2, 4)
        assert "'no-such-program' is not found" in done.stderr
        assert installed.events() == [event for event in installed.events() if event["kind"] == "installation.started"]


def test_the_wall_limit_ends_a_run() -> None:
    """A run that goes on for longer than its wall limit is killed, and says so."""
    configuration = "agents: {sleeper: {command: [sleep, '1000'], limits: {wall: 1s}}}\n"
    with Installation(configuration) as installed:
        done = installed.run("sleeper", "sleep")
        assert done.view.cause == "wall"
        assert done.status == 8
        assert installed.left(done.view.run) == []
