import logging
import subprocess
import sys
from pathlib import Path

from bailiwick.gateway.complaints import LINES_BURST, Complaints

# A worker's process, as `worker.run` sets it up, whose agent greets with server names that are not ASCII and whose handlers fail, a thousand times each.
FLOODED = r"""
import asyncio, os, pathlib, socket, ssl, sys
from bailiwick.gateway import worker
from bailiwick.gateway.layers.tls import TlsFailure, TlsPump, front_context
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.layout import Layout
from bailiwick.trust.interception import InterceptionAuthority

context = ssl.create_default_context()
theirs = TlsPump.client(context, "aaaa.example")
theirs.feed(b"")
hello = theirs.outgoing().replace(b"aaaa.example", b"\xff\xff\xff\xff.example")

async def flood(self):
    loop, front = asyncio.get_running_loop(), front_context(self._house.context_for)
    for _ in range(1000):
        try:
            TlsPump.server(front, "a.example").feed(hello)
        except TlsFailure as failure:
            assert failure.code == "tls-handshake"
        else:
            raise AssertionError("the hello was taken")
        loop.call_exception_handler({"message": "exchange failed", "exception": RuntimeError("a mistake")})
    os._exit(7)

worker.Worker.tick = flood
directory = pathlib.Path(sys.argv[1])
sockets = []
for name in "ab":
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / name))
    sock.listen()
    sockets.append(sock)
worker.run(
    name="gateway-0", listener=sockets[0], adopt_listener=sockets[1], layout=Layout(directory),
    accounts=Accounts.for_machine(uid=os.getuid() or 1000, gid=0, workers=1), authority=InterceptionAuthority.create(SystemClock()),
)
"""


def test_an_agent_cannot_flood_the_workers_log(tmp_path: Path) -> None:
    """Thousands of broken hellos leave nothing on standard error, and as many mistakes of ours a bounded number of lines."""
    done = subprocess.run([sys.executable, "-c", FLOODED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "UnicodeDecodeError" not in done.stderr
    assert LINES_BURST <= done.stderr.count("exchange failed") <= LINES_BURST + 5


def test_what_is_left_out_is_counted() -> None:
    """The next line that is written says how many were not."""
    now = 100.0
    complaints = Complaints(lambda: now)
    records = [logging.LogRecord("x", logging.ERROR, "", 0, "mistake %d", (number,), None) for number in range(60)]
    assert [complaints.filter(record) for record in records].count(True) == LINES_BURST
    now = 110.0
    last = logging.LogRecord("x", logging.ERROR, "", 0, "mistake %d", (60,), None)
    assert complaints.filter(last)
    assert last.getMessage() == "mistake 60 (40 complaints before this one were not written)"


def test_other_complaints_of_python_are_told() -> None:
    """Only a server name is silent; what cannot be raised is otherwise written, at the same rate."""
    seen: list[type[BaseException]] = []
    hook = Complaints(lambda: 1.0).hook(lambda unraisable: seen.append(unraisable.exc_type))

    class Told:
        def __init__(self, kind: type[BaseException]) -> None:
            self.exc_type = kind

    for kind in (UnicodeDecodeError, *[ValueError] * 50):
        hook(Told(kind))  # type: ignore[arg-type]
    assert seen == [ValueError] * int(LINES_BURST)
