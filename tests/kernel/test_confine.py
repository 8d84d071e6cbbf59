"""What a process gives up is tried from inside a child that gave it up."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bailiwick.kernel import confine
from bailiwick.kernel.accounts import Account, Role
from bailiwick.kernel.errors import BackendError


def in_child(body: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if body() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def test_hardened_process_gets_no_new_privileges_and_leaves_no_core() -> None:
    """No new privileges, not dumpable, no core, private files."""

    def body() -> bool:
        import resource

        confine.harden()
        private = os.umask(0)
        return (
            status("NoNewPrivs") == "1" and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) and private == 0o077 and Path("/proc/self/fd").stat().st_uid == 0
        )

    assert in_child(body)


def test_no_new_privileges_alone() -> None:
    """The promise can be made without the rest."""
    assert in_child(lambda: confine.promise_no_new_privileges() is None and status("NoNewPrivs") == "1")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root has anything to drop")
def test_dropping_is_for_good() -> None:
    """After `become` there is no way back to root, in any of the three uids, and no supplementary group."""

    def body() -> bool:
        confine.become(Account("gateway-0", Role.GATEWAY, 761_004, 761_004))
        try:
            os.setuid(0)
            return False
        except PermissionError:
            return os.getresuid() == (761_004,) * 3 and os.getresgid() == (761_004,) * 3 and os.getgroups() == []

    assert in_child(body)


def test_a_process_that_is_somebody_else_is_refused() -> None:
    """Who cannot become the account says so instead of going on as whoever it is."""

    def body() -> bool:
        if os.getuid() == 0:
            os.setresuid(64_000, 64_000, 64_000)
        try:
            confine.become(Account("broker", Role.BROKER, 761_001, 761_001))
        except BackendError as error:
            return "must be 761001" in str(error)
        return False

    assert in_child(body)


def test_child_dies_with_its_parent() -> None:
    """SIGKILL of the parent is the child's end."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        child = os.fork()
        if child == 0:
            confine.die_with_parent(me)
            os.write(writing, b"x")
            time.sleep(60)
            os._exit(0)
        os.write(writing, str(child).encode() + b"\n")
        time.sleep(60)
    said = b""
    while not (b"x" in said and b"\n" in said):
        said += os.read(reading, 100)
    child = int(said.replace(b"x", b"").strip())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.005)
    else:
        pytest.fail("child outlived its parent")
    os.close(reading)
    os.close(writing)


def test_landlock_leaves_only_what_is_named(tmp_path: Path) -> None:
    """Reading outside the named trees, and writing where only reading was given, are refused."""
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "file").write_text("x")
    (tmp_path / "hidden").write_text("y")
    (tmp_path / "own").mkdir()

    def body() -> bool:
        confine.promise_no_new_privileges()  # without it the kernel takes no Landlock from who is not root
        if not confine.restrict_files(read=[tmp_path / "seen"], write=[tmp_path / "own"]):
            return True
        (tmp_path / "own" / "new").write_text("z")
        reads = (tmp_path / "seen" / "file").read_text() == "x"
        for attempt in (lambda: (tmp_path / "hidden").read_text(), lambda: (tmp_path / "seen" / "file").write_text("no"), lambda: os.listdir("/etc")):
            try:
                attempt()
                return False
            except PermissionError:
                continue
        return reads

    assert in_child(body)
