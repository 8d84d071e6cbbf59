"""Starting the group behind a terminal, and asking whether it is there."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from bailiwick.kernel import environment
from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.kernel.layout import Layout

READY_SECONDS_MAX = 15.0
_OURS = frozenset({"lock", "up.log", "run", "record", "broker", "governor", "sandboxes", "logs"})
STOP_SECONDS_MAX = 60.0  # longer than the group takes to end in order


def start_detached(path: Path | None, layout: Layout, *, idle_exit_seconds: float | None = None, workers: int | None = None) -> int:
    """Starts `up` behind the terminal and returns its pid once its API answers. BackendError with what it said when it does not come up in time."""
    prepare(layout)
    log_path = layout.root / "up.log"
    try:
        log = log_path.open("wb")
    except OSError as error:
        raise CallerError(f"{log_path} cannot be written: {error.strerror}; move it away, or choose another directory with BAILIWICK_STATE") from error
    packed = environment.pack(os.environb)
    command = [sys.executable, "-m", "bailiwick.cli", "up"]
    command += ["--config", str(path.absolute())] if path is not None else ["--no-config"]
    command += ["--idle-exit", str(idle_exit_seconds)] if idle_exit_seconds is not None else []
    command += ["--workers", str(workers)] if workers is not None else []
    with log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment.harmless(os.environ, packed) | {"BAILIWICK_STATE": str(layout.root)},
            pass_fds=[packed],
            start_new_session=True,
        )
    os.close(packed)
    try:
        return _wait_up(process, layout, log_path)
    except BaseException:  # also an interrupt: nobody would know of a group that came up after this
        process.terminate()
        process.wait(STOP_SECONDS_MAX)
        raise


def prepare(layout: Layout) -> None:
    """Makes the state directory unless it is there. CallerError when it cannot be, or is one that a group must not keep its keys and sockets in."""
    root = layout.root
    another = "choose another directory with BAILIWICK_STATE"
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        status, names = root.stat(), {each.name for each in root.iterdir()}
    except FileExistsError as error:
        raise CallerError(f"state directory {root} is not a directory; {another}") from error
    except OSError as error:
        raise CallerError(f"state directory {root} cannot be made or read: {error.strerror} ({error.filename}); {another}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise CallerError(f"state directory {root} belongs to uid {status.st_uid}, and must be yours; {another}")
    if status.st_mode & 0o022:
        raise CallerError(f"state directory {root} may be written by others (mode {status.st_mode & 0o7777:o}); take that away (chmod go-w), or {another}")
    if "lock" not in names and names - _OURS:
        raise CallerError(f"state directory {root} is not empty and not of an installation (it has no `lock`); {another}")


def _wait_up(process: subprocess.Popen[bytes], layout: Layout, log_path: Path) -> int:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log_path.read_text(errors="replace").strip().removeprefix("error: ")
            raise BackendError(f"the installation did not come up: {said or 'it said nothing'}")
        if is_up(layout):
            return process.pid
        time.sleep(0.01)
    raise BackendError(f"the installation did not come up within {READY_SECONDS_MAX:g} s; {log_path} and {layout.logs} say why")


def is_up(layout: Layout) -> bool:
    """Whether a group serves this state directory and its API answers."""
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(READY_SECONDS_MAX)
    try:
        probe.connect(layout.socket("api"))
        probe.sendall(b"GET /v1/status HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
        return b" 200 " in probe.recv(64)
    except OSError:
        return False
    finally:
        probe.close()
