"""What the fault tests load an installation with: a service that counts what arrives, and an agent that reads and writes it under ids of its own.

Every write has an id that is used once and never sent again by the agent, so an id that arrives twice was forwarded twice. The one exception is the
write that is held: it is asked for again, byte for byte the same, until it goes through, as a real agent would.
"""

import hmac
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.installation import TREES

from bailiwick.api.operators import unix_name
from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Request, Response, Server

HOST = "config.internal"
AGENT = "counter"
VARIABLE = "FAULTS_CONFIG_TOKEN"  # the installation is started with the token in it

PROGRAM = '''\
"""Reads and writes for ever. Ids are used once, whatever happened to the request. What it was refused with it says, once, when it is served again."""
import http.client
import json
import os
import ssl
import sys
import threading
import time

RUN = os.environ["BAILIWICK_RUN"]
PAUSE = float(sys.argv[1])
TRUSTED = ssl.create_default_context()
told, said = [], set()


def say():
    while told:
        line = told.pop(0)
        if line not in said:
            said.add(line)
            print(line, flush=True)


def reason(raw):
    try:
        problem = json.loads(raw)
        return problem.get("reason") or problem.get("detail") or "?"
    except ValueError:
        return "an answer that is no problem document"


class Line:
    def __init__(self, seconds):
        self.seconds = seconds
        self.connection = None

    def ask(self, method, path, body=None):
        """The status; 0 when there was no answer. Never a second time by itself."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPSConnection("config.internal", timeout=self.seconds, context=TRUSTED)
            self.connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            raw = answer.read()
            if answer.will_close:
                self.close()
            if answer.status >= 400:
                told.append(f"{method} {answer.status} {reason(raw)}")
            else:
                say()
            return answer.status
        except (OSError, http.client.HTTPException):
            self.close()
            return 0

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def held():
    line = Line(120)
    while line.ask("PUT", f"/v1/production/{RUN}", json.dumps({"value": RUN})) not in (200, 201):
        line.close()
        time.sleep(0.2)
    told.append("held write went through")


def read():
    line = Line(20)
    while True:
        line.ask("GET", f"/v1/staging/{RUN}.1")
        time.sleep(4 * PAUSE)


threading.Thread(target=read, daemon=True).start()
if "hold" in sys.argv:
    threading.Thread(target=held, daemon=True).start()
line = Line(20)
number = 0
while True:
    number += 1
    line.ask("PUT", f"/v1/staging/{RUN}.{number}", json.dumps({"value": str(number)}))
    line.ask("GET", f"/v1/staging/{RUN}.{number}")
    time.sleep(PAUSE)
'''

_CONFIGURATION = """\
trust_domain: faults.internal
hosts: {{{host}: {{address: "127.0.0.1:{port}", ca: ca.pem, tls: true}}}}
approvers: {{oncall: {{operators: [{operator}], quorum: 1, expires: 2h}}}}
agents:
  {agent}:
    command: [{python}, counter.py, "{pause}", {hold}]
    workspace: ./agent
    trees: {trees}
    limits: {{wall: 20m}}
    boundary:
      - {{allow: [read], http: {host}}}
      - {{allow: [write, delete], http: {host}, path: /v1/staging/**}}
      - {{hold: [write], http: {host}, path: /v1/production/**, approvers: [oncall], wait: 20m, four_eyes: false}}
    credentials: [{{use: config-token, for: {host}, as: "Authorization: Bearer {{value}}"}}]
credentials: {{config-token: {{source: environment, variable: {variable}, ttl: 60m}}}}
"""


@dataclass(frozen=True, slots=True)
class Arrived:
    method: str
    path: str
    time: datetime  # when the request was whole

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]

    @property
    def run(self) -> str:
        return self.name.partition(".")[0]


class CountingService:
    """A context manager. Answers whoever brings the token; `arrived` is everything that came, refused or not."""

    def __init__(self, token: str) -> None:
        self.authority = Authority.create("Bailiwick fault tests")
        self._token = token
        self._arrived: list[Arrived] = []
        self._values: set[str] = set()
        self._lock = threading.Lock()  # keeps the three counts in step
        self.unauthorised = 0
        self._server = Server(self._answer, tls=self.authority.server_context(HOST, "localhost"))

    @property
    def port(self) -> int:
        return self._server.port

    def __enter__(self) -> "CountingService":
        self._server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.__exit__(*details)

    @property
    def arrived(self) -> list[Arrived]:
        with self._lock:
            return list(self._arrived)

    def writes(self) -> Counter[str]:
        """How often each path was written."""
        return Counter(arrival.path for arrival in self.arrived if arrival.method == "PUT")

    def written_by(self, run: str) -> int:
        return sum(arrival.method == "PUT" and arrival.run == run for arrival in self.arrived)

    def _answer(self, request: Request) -> Response:
        with self._lock:
            if not hmac.compare_digest((request.bearer() or "").encode(), self._token.encode()):
                self.unauthorised += 1
                return Response.json(401, {"detail": "a bearer token is required"})
            self._arrived.append(Arrived(request.method, request.path, datetime.now(UTC)))
            if request.method == "PUT":
                self._values.add(request.path)
                return Response.json(201, {"path": request.path})
            known = request.path in self._values
        return Response.json(200 if known else 404, {"path": request.path})


def configuration(service: CountingService, *, operator: int, pause_seconds: float = 0.05, hold: bool = True) -> str:
    return _CONFIGURATION.format(
        agent=AGENT,
        hold="hold" if hold else "",
        host=HOST,
        operator=unix_name(operator, {}),
        pause=pause_seconds,
        port=service.port,
        python=str(Path(sys.executable)),
        trees=str(TREES),
        variable=VARIABLE,
    )


def files(service: CountingService) -> dict[str, str]:
    return {"ca.pem": service.authority.pem, "agent/counter.py": PROGRAM}
