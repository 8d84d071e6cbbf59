"""The commands of the documents, given as they stand there."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.e2e.installation import Installation

from bailiwick.record.event import KINDS

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox]


def transcript(page: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/transcript"), "--check", page], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tutorial_is_what_happens() -> None:
    """Hold, sign-off, trace, diff, apply, export and the altered copy that is found: each command prints what the page shows, ids and times apart."""
    transcript("docs/tutorials/first-run.md")


def test_the_commands_of_the_readme_work() -> None:
    """Every block that is marked to be run ends with 0, command by command."""
    transcript("README.md")


def test_every_finding_of_the_probe_is_documented() -> None:
    """What the probe says it tried is in the reference."""
    page = (ROOT / "docs/reference/sandbox.md").read_text()
    with Installation() as installed:
        done = installed.run("--no-workspace", "--", "true")
    found = {finding["check"] for finding in done.of("run.probed")[0]["body"]["findings"]}
    assert len(found) > 30
    assert {name for name in found if f"`{name}`" not in page} == set()


class _Notes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def notes() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Notes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


CONFIGURATION = """
operators: {{ana: {{uid: {uid}, roles: [admin]}}}}
approvers: {{oncall: {{operators: [ana]}}}}
hosts: {{notes.internal: {{address: "127.0.0.1:{port}", tls: false}}}}
credentials: {{token: {{source: environment, variable: NOTES_TOKEN}}}}
agents:
  writer:
    command: [sh, agent.sh]
    workspace: ./agent
    boundary:
      - {{allow: [read], http: notes.internal}}
      - {{hold: [write], http: notes.internal, approvers: [oncall], wait: 1m}}
    credentials: [{{use: token, for: notes.internal}}]
"""
AGENT = """
for n in 1 2; do curl -s -X PUT -d $n http://notes.internal/$n; done
curl -s --noproxy '*' http://notes.internal/; curl -s http://elsewhere.example/; curl -s --noproxy '*' http://203.0.113.9:81/; echo done > done.txt; sleep 1
"""


def test_the_bodies_of_events_are_documented() -> None:
    """Whatever a run's events and the installation's hold in their bodies, the page names it beside their kind."""
    rows = {
        row.split("`")[1]: row.rpartition(" | ")[2]
        for row in re.findall(r"^\| `[a-z.]+` \|.*\|$", (ROOT / "docs/reference/events.md").read_text(), re.MULTILINE)
    }
    with notes() as port:
        written = CONFIGURATION.format(port=port, uid=os.getuid())
        with Installation(written, files={"agent/agent.sh": AGENT}, environment={"NOTES_TOKEN": "not-a-secret-4711"}) as installed:
            done = installed.run("writer", "write", approve=True)
            installed.cli("apply", done.view.run, "--yes", check=True)
            seen = {(event["kind"], key) for event in installed.events() for key in event.get("body", {})}
    assert {kind for kind, _ in seen} >= KINDS.keys() - {
        "process.ended",
        "run.paused",
        "run.resumed",
        "run.killed",
        "installation.stopped",
        "peer.refused",
        "hold.closed",
    }
    assert {(kind, key) for kind, key in seen if f"`{key}`" not in rows[kind]} == set()
