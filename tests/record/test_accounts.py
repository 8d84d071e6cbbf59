"""The recorder as root starts it: a uid of its own, confined; writers and readers of other uids."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.layout import Layout
from bailiwick.record.repository import RecordReader

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.getuid() != 0, reason="needs root to give each process a uid")]

RECORDER = """
import socket, sys
from pathlib import Path
from bailiwick.kernel import confine
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
from bailiwick.record.recorder import run
layout, accounts = Layout(Path(sys.argv[2])), Accounts.for_machine(uid=0, gid=0, workers=2)
confine.become(accounts.named("recorder"))
confine.harden()
confine.restrict_files(read=[layout.sockets], write=[layout.record])
run(listener=socket.socket(fileno=int(sys.argv[1])), layout=layout, accounts=accounts, clock=SystemClock())
"""

WRITER = """
import asyncio, os, sys
from bailiwick.kernel.clock import SystemClock
from bailiwick.record.client import RecordClient
from bailiwick.record.event import Event
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
async def main():
    client = RecordClient(sys.argv[1], clock=SystemClock())
    await client.start()
    print(await client.append_durably(Event(id=f"e-{uid}", kind=sys.argv[3], time="2026-01-01T00:00:00.000000Z"), seconds_max=3))
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__, error)
"""

READER = """
import os, sys
from pathlib import Path
from bailiwick.record.repository import RecordReader
uid, path = int(sys.argv[2]), Path(sys.argv[1])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
print([(each.writer, each.event.kind) for each in RecordReader.open(path).events()])
try:
    print(open(path, "r+b"))
except OSError as error:
    print(error.strerror)
"""


def run_as(script: str, *arguments: object) -> str:
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture
def layout() -> Iterator[Layout]:
    """Where other uids may go; pytest closes its own directories to them."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o711)
    yield Layout(place)
    shutil.rmtree(place)


def test_each_writer_is_named_by_its_uid(layout: Layout, wait_until: Callable[..., None]) -> None:
    """A gateway's events bear its name; it cannot write the governor's; a stranger is refused and noted; the governor reads, and writes nothing."""
    accounts = Accounts.for_machine(uid=0, gid=0, workers=2)
    gateway, governor, recorder = accounts.named("gateway-1"), accounts.named("governor"), accounts.named("recorder")
    layout.sockets.mkdir(mode=0o711)
    layout.record.mkdir(mode=0o750)
    os.chown(layout.record, recorder.uid, governor.gid)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(layout.socket("recorder"))
        Path(layout.socket("recorder")).chmod(0o666)
        listener.listen(16)
        process = subprocess.Popen([sys.executable, "-c", RECORDER, str(listener.fileno()), str(layout.root)], pass_fds=[listener.fileno()])
        try:
            path = layout.socket("recorder")
            assert run_as(WRITER, path, gateway.uid, "action.decided") == "1\n"
            assert "Forbidden event run.ended is written by governor; this writer is gateway" in run_as(WRITER, path, gateway.uid, "run.ended")
            assert run_as(WRITER, path, governor.uid, "run.ended") == "2\n"
            assert "RecorderDown" in run_as(WRITER, path, 65534, "action.decided")
            database = layout.record / "record.db"
            reader = RecordReader.open(database)
            wait_until(lambda: reader.head().size >= 3)
            reader.close()
            told = run_as(READER, database, governor.uid)
            assert told.startswith("[('gateway-1', 'action.decided'), ('governor', 'run.ended'), ('recorder', 'peer.refused')")
            assert told.endswith("Permission denied\n")
            denied = subprocess.run([sys.executable, "-c", READER, str(database), str(gateway.uid)], capture_output=True, text=True, check=False)
            assert denied.returncode != 0
        finally:
            process.kill()
            process.wait()
