"""A server at whose gates an agent waits until the test opens them: how a test and a sealed agent agree on what comes first, without a sleep."""

import threading
from collections import defaultdict

from bailiwick.cli.demo.web import Request, Response, Server

NAME = "gate.internal"
SECONDS_MAX = 60.0


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
        return Response(200 if self._open[name].wait(SECONDS_MAX) else 504)
