"""A server at whose gates an agent waits until the test opens them: how a test and a sealed agent agree on what comes first, without a sleep."""

import threading
import time
from collections import defaultdict

from bailiwick.cli.demo.web import Request, Response, Server

NAME = "gate.internal"
SECONDS_MAX = 60.0
_SLICE_SECONDS = 0.1  # between two looks at whether the server is to stop


class Gate:
    def __init__(self) -> None:
        self._arrived: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._open: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.server = Server(self._answer)

    def url(self, name: str) -> str:
        return f"http://{NAME}/{name}"

    def wait_arrived(self, name: str) -> None:
        if not self._arrived[name].wait(SECONDS_MAX):
            raise AssertionError(f"nobody came to gate {name!r} within {SECONDS_MAX:g} s")

    def open(self, name: str) -> None:
        self._open[name].set()

    def _answer(self, request: Request) -> Response:
        name = request.path.removeprefix("/")
        self._arrived[name].set()
        until = time.monotonic() + SECONDS_MAX
        while not self._open[name].wait(_SLICE_SECONDS):
            if self.server.stopping.is_set() or time.monotonic() > until:
                return Response(504)
        return Response(200)
