"""A group of processes: restarts, order, descriptors, and an end that leaves nothing."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bailiwick.kernel.accounts import Account, Role
from bailiwick.kernel.supervise import FINISHED, Group, Program

DEADLINE_SECONDS = 20.0


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("condition not met before the deadline")


def account(name: str) -> Account:
    return Account(name, Role.GATEWAY, os.getuid(), os.getgid())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for pid in Running.started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    Running.started.clear()


class Running:
    """A group in a child process of its own, so that its signal mask and its waits are not pytest's."""

    started: ClassVar[list[int]] = []

    def __init__(self, directory: Path, programs: list[Program], report: Path | None = None) -> None:
        self.report = report or directory / "processes.json"
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = Group(programs, self.report, directory).run()
            finally:
                os._exit(status)
        self.started.append(self.pid)

    def state(self) -> dict[str, Any]:
        try:
            return {entry["name"]: entry for entry in json.loads(self.report.read_text())}
        except (FileNotFoundError, ValueError):
            return {}

    def member(self, name: str, **wanted: Any) -> Any:
        def found() -> Any:
            entry = self.state().get(name)
            return entry if entry and entry["pid"] and all(entry[key] == value for key, value in wanted.items()) else None

        return wait_until(found)

    def wait(self) -> int:
        result: list[int] = []
        thread = threading.Thread(target=lambda: result.append(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])), daemon=True)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        return result[0]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def forever(_: object) -> None:
    signal.pause()


def test_a_killed_process_is_started_again_and_the_end_leaves_none(tmp_path: Path) -> None:
    """kill -9 of a member brings a new one, counted; SIGTERM to the parent ends them all, and the parent with 0."""
    running = Running(tmp_path, [Program("one", account("one"), forever), Program("two", account("two"), forever)])
    first = running.member("one")
    os.kill(first["pid"], signal.SIGKILL)
    second = running.member("one", restarts=1)
    assert second["pid"] != first["pid"]
    assert "signal 9" in second["detail"]
    pids = [entry["pid"] for entry in running.state().values()]
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 0
    assert all(gone(pid) for pid in pids)
    assert not running.report.exists()


def test_members_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the parent leaves no member behind."""
    running = Running(tmp_path, [Program("one", account("one"), forever)])
    pid = running.member("one")["pid"]
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_until(lambda: gone(pid))


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give processes accounts of their own")
def test_members_with_accounts_of_their_own_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """The kernel forgets whose death is a process's own when its uid changes; ours dies all the same."""
    become = os.memfd_create("become")

    def main(_: object) -> None:
        os.write(become, b"1")
        signal.pause()

    running = Running(tmp_path, [Program("one", Account("one", Role.GATEWAY, 765_000, 765_000), main, descriptors=(become,))])
    pid = running.member("one")["pid"]
    wait_until(lambda: os.pread(become, 1, 0))
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_until(lambda: gone(pid))
    os.close(become)


def test_a_leading_process_that_finishes_ends_the_group(tmp_path: Path) -> None:
    """The governor's orderly exit is the whole installation's."""
    running = Running(tmp_path, [Program("worker", account("worker"), forever), Program("lead", account("lead"), lambda _: os._exit(FINISHED), leading=True)])
    assert running.wait() == 0


def test_a_process_that_fails_at_once_is_started_with_growing_pauses(tmp_path: Path) -> None:
    """No busy loop of forks: the tenth start is not reached within half a second."""

    def fail(_: object) -> None:
        os._exit(3)

    running = Running(tmp_path, [Program("one", account("one"), fail)])
    wait_until(lambda: running.state().get("one", {}).get("restarts", 0) >= 3)
    assert "status 3" in running.state()["one"]["detail"]
    assert running.state()["one"]["restarts"] < 10
    os.kill(running.pid, signal.SIGTERM)
    running.wait()


def test_a_child_keeps_only_the_descriptors_it_was_promised(tmp_path: Path) -> None:
    """A secret's descriptor reaches the process that may read it and no other."""
    secret, other = os.memfd_create("secret"), os.memfd_create("other")

    def tell(_: object) -> None:
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.lexists(f"/proc/self/fd/{fd}")]
        (tmp_path / "descriptors").write_text("\n".join(names))
        signal.pause()

    running = Running(tmp_path, [Program("one", account("one"), tell, descriptors=(secret,))])
    told = wait_until(lambda: (tmp_path / "descriptors").exists() and (tmp_path / "descriptors").read_text())
    assert "memfd:secret" in told
    assert "memfd:other" not in told
    os.kill(running.pid, signal.SIGTERM)
    running.wait()
    os.close(secret)
    os.close(other)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give processes accounts of their own")
def test_a_child_runs_as_its_account_and_cannot_go_back(tmp_path: Path) -> None:
    """The uid is dropped after `prepare` and before `main`, for good."""
    result = os.memfd_create("result")

    def main(prepared: object) -> None:
        try:
            os.setuid(0)
            regained = True
        except PermissionError:
            regained = False
        os.write(result, json.dumps([prepared, os.getuid(), regained, os.getgroups()]).encode())
        signal.pause()

    running = Running(tmp_path, [Program("one", Account("one", Role.GATEWAY, 765_000, 765_000), main, prepare=os.getuid, descriptors=(result,))])
    told = wait_until(lambda: os.pread(result, 1000, 0))
    assert json.loads(told) == [0, 765_000, False, []]
    os.kill(running.pid, signal.SIGTERM)
    running.wait()
    os.close(result)


def test_a_report_that_cannot_be_written_ends_nobody_and_is_written_when_it_can(tmp_path: Path) -> None:
    """A full disk, here a directory that is away: the killed member is started again all the same, and the state is on file once there is room."""
    place = tmp_path / "run"
    place.mkdir()
    running = Running(tmp_path, [Program("one", account("one"), forever)], report=place / "processes.json")
    first = running.member("one")["pid"]
    away = place.rename(tmp_path / "away")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(first))
    away.rename(place)
    assert running.member("one", restarts=1)["pid"] != first
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 0
