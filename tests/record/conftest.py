"""A recorder and a signer as processes of their own, and events to append."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bailiwick.kernel.clock import SystemClock, timestamp
from bailiwick.kernel.ids import RunId, SequenceOfIds
from bailiwick.kernel.layout import Layout
from bailiwick.record.event import Event
from bailiwick.record.repository import RecordReader

RECORDER = """
import os, socket, sys
from pathlib import Path
from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
from bailiwick.record import checkpointing, signer_link
from bailiwick.record.recorder import run
checkpointing.TAKE_SECONDS_MAX, signer_link.ANSWER_SECONDS_MAX = 2.0, 1.0  # the same, sooner
uid, gid = os.getuid(), os.getgid()
accounts = Accounts.for_machine(uid=uid or 1, gid=gid or 1, workers=2)
if not uid:
    accounts = Accounts(tuple(Account(m.name, m.role, 0, 0) for m in accounts.members), separate=False)
run(listener=socket.socket(fileno=int(sys.argv[1])), layout=Layout(Path(sys.argv[2])), accounts=accounts, clock=SystemClock())
"""

SIGNER = """
import anyio, socket, sys
from pathlib import Path
from bailiwick.broker.signer import Signer
from bailiwick.kernel.channel import serve
from bailiwick.record.signing import SIGNER
signer = Signer(Path(sys.argv[2]) / "broker", "example.org/record")
anyio.run(lambda: serve(socket.socket(fileno=int(sys.argv[1])), SIGNER, signer.handle, admit=lambda peer: True, refused=lambda peer, why: print(why)))
"""


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


class Process:
    """A process that inherits a listening socket, so that it can be killed and started anew behind it."""

    def __init__(self, script: str, layout: Layout, name: str) -> None:
        self._script, self._layout = script, layout
        layout.sockets.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(layout.socket(name))
        self._listener.listen(64)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, prefix: tuple[str, ...] = ()) -> None:
        number = self._listener.fileno()
        self._popen = subprocess.Popen([*prefix, sys.executable, "-c", self._script, str(number), str(self._layout.root)], pass_fds=[number])

    def signal(self, number: int) -> None:
        assert self._popen is not None
        os.kill(self._popen.pid, number)

    def kill(self) -> None:
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self._popen.wait()
            self._popen = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def close(self) -> None:
        self.kill()
        self._listener.close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def recorder(layout: Layout) -> Iterator[Process]:
    process = Process(RECORDER, layout, "recorder")
    process.start()
    yield process
    process.close()


@pytest.fixture
def signer(layout: Layout) -> Iterator[Process]:
    process = Process(SIGNER, layout, "signer")
    process.start()
    yield process
    process.close()


@pytest.fixture
def read(layout: Layout) -> Iterator[Callable[[], RecordReader]]:
    """Opens the record for reading; closed after the test."""
    opened: list[RecordReader] = []

    def reader() -> RecordReader:
        opened.append(RecordReader.open(layout.record / "record.db"))
        return opened[-1]

    yield reader
    for each in opened:
        each.close()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    return eventually


@pytest.fixture
def event() -> Callable[..., Event]:
    ids, clock = SequenceOfIds(), SystemClock()

    def make(kind: str = "action.decided", run: str | None = "run-1", **fields: object) -> Event:
        return Event(id=ids.event(), kind=kind, time=timestamp(clock.now()), run=RunId(run) if run else None, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}
