"""The demo's servers together: model, configuration service, stranger, and one door at which their journals are read.

`World` runs them in threads of this process. `WorldProcess` runs them in a process of their own (`python -m bailiwick.cli.demo.world`), which the
demo needs because `bailiwick up` forks; it ends when its standard input closes, so it never outlives who started it.
"""

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from typing import Any

from bailiwick.cli.demo import configuration_service, scripts
from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.configuration_service import ConfigurationService
from bailiwick.cli.demo.model_server import ModelServer
from bailiwick.cli.demo.stranger import Stranger
from bailiwick.cli.demo.web import Request, Response, Server

MODEL = "gpt-5.2"
MODEL_HOST = "api.openai.com"
STRANGER_HOST = "paste.stranger.example"
OLD_VALUE = "registry.internal/shop:2026-11-01"

START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
_QUESTION_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the servers listen on 127.0.0.1, and the PEM of the authority that vouches for all of them."""

    model: int
    configuration: int
    stranger_http: int
    stranger_https: int
    stranger_udp: int
    journals: int
    ca: str


@dataclass(frozen=True, slots=True)
class Keys:
    """What the servers demand: the secrets of the story."""

    model: str = field(repr=False)
    configuration: str = field(repr=False)

    @classmethod
    def fresh(cls) -> "Keys":
        return cls(f"sk-demo-{secrets.token_urlsafe(24)}", f"cfg-demo-{secrets.token_urlsafe(24)}")


@dataclass(frozen=True, slots=True)
class Journals:
    """What the servers saw: `model_server.Seen` and `configuration_service.Arrival` as objects, the values as they are now, and how often the stranger
    was reached, by a counter that `stranger_can_count`."""

    models: list[dict[str, Any]]
    configuration: list[dict[str, Any]]
    values: dict[str, str]
    stranger_reached: int
    stranger_can_count: bool


class World:
    """A context manager; `doors` and `journals` are good while it is open."""

    def __init__(self, keys: Keys, *, script: scripts.Script | None = None) -> None:
        self.authority = Authority.create("Bailiwick demo authority")
        values = {f"{environment}/{scripts.KEY}": OLD_VALUE for environment in ("staging", "production")}
        tls = self.authority.server_context
        self.model = ModelServer(key=keys.model, scripts={MODEL: script or scripts.deployment()}, tls=tls(MODEL_HOST, "localhost", "127.0.0.1"))
        self.configuration = ConfigurationService(
            token=keys.configuration,
            values=values,
            tickets={scripts.TICKET: scripts.TICKET_TEXT},
            tls=tls(configuration_service.NAME, "localhost", "127.0.0.1"),
        )
        self.stranger = Stranger(self.authority, STRANGER_HOST, "localhost", "127.0.0.1")
        self._stranger_can_count = False
        self._journals = Server(self._show)

    def __enter__(self) -> "World":
        with contextlib.ExitStack() as started:
            for server in (self.model, self.configuration, self.stranger, self._journals):
                started.enter_context(server)
            self._stranger_can_count = self.stranger.can_count()
            self._running = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def doors(self) -> Doors:
        return Doors(
            model=self.model.port,
            configuration=self.configuration.port,
            stranger_http=self.stranger.http_port,
            stranger_https=self.stranger.https_port,
            stranger_udp=self.stranger.udp_port,
            journals=self._journals.port,
            ca=self.authority.pem,
        )

    def journals(self) -> Journals:
        return Journals(
            models=self.model.journal(),
            configuration=self.configuration.journal(),
            values=self.configuration.values,
            stranger_reached=self.stranger.reached,
            stranger_can_count=self._stranger_can_count,
        )

    def _show(self, request: Request) -> Response:
        """Read only, and without a secret: what arrived stands there as digests."""
        if (request.method, request.path) != ("GET", "/journals"):
            return Response.json(404, {"detail": "there is GET /journals and nothing else"})
        return Response.json(200, asdict(self.journals()))


class WorldProcess:
    """The same in a process of its own. Raises RuntimeError with its last words when it does not come up."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def __enter__(self) -> "WorldProcess":
        command = [sys.executable, "-m", "bailiwick.cli.demo.world"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            self._input.write(json.dumps({"model": self._keys.model, "configuration": self._keys.configuration}).encode() + b"\n")
            self._input.flush()
            self.doors = Doors(**json.loads(self._first_line()))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def journals(self) -> Journals:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxies the demo's user has
        with opener.open(f"http://127.0.0.1:{self.doors.journals}/journals", timeout=_QUESTION_SECONDS_MAX) as answer:
            return Journals(**json.loads(answer.read()))

    @property
    def _input(self) -> Any:
        assert self._process.stdin is not None
        return self._process.stdin

    def _first_line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        until = time.monotonic() + START_SECONDS_MAX
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(descriptor, 65_536) if ready else b""
            if not piece:
                raise RuntimeError(f"the demo's servers did not come up within {START_SECONDS_MAX:g} s (exit status {self._process.poll()})")
            line += piece
        return line

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main() -> None:
    """Keys come as a line on standard input (an argument or a variable would be seen by others), doors go as a line to standard output."""
    given = json.loads(sys.stdin.buffer.readline())
    with World(Keys(given["model"], given["configuration"])) as world:
        sys.stdout.write(json.dumps(asdict(world.doors)) + "\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()  # until whoever started us is gone


if __name__ == "__main__":
    main()
