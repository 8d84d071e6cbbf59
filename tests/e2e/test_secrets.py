"""Every byte the product wrote or answered, and everything the agent could see, is searched for the secrets that were lent: none is anywhere."""

import base64
import contextlib
import gzip
import http.client
import io
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.installation import TREES, Done, Installation
from tests.e2e.reflector import REFLECTIONS, Reflector, searched

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.remains import processes_of

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(180)]

VARIABLE = "SECRETS_TEST_TOKEN"
WAYS = sorted(REFLECTIONS)

PROGRAM = '''\
"""Asks for everything, in every way there is, and shows and keeps whatever it is told."""
import gzip
import http.client
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

WAYS = sys.argv[2:]
seen = open("seen.bin", "wb")


def show(*parts):
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        seen.write(raw + b"\\n")
        sys.stdout.buffer.write(raw[:20_000] + b"\\n")
    sys.stdout.buffer.flush()


for host in ("one.internal", "two.internal"):
    for method in ("GET", "PUT", "HEAD"):
        for way in WAYS:
            connection = http.client.HTTPSConnection(host, timeout=20, context=ssl.create_default_context())
            try:
                connection.request(method, f"/reflect/{way}", b"{}" if method == "PUT" else None, {"Accept-Encoding": "gzip", "Authorization": "Bearer mine"})
                answer = connection.getresponse()
                show(f"{host} {method} {way} {answer.status}", answer.getheaders())
                raw = b""
                while piece := answer.read1(65536):
                    raw += piece
                show(raw)
                if answer.getheader("content-encoding") == "gzip":
                    show(gzip.decompress(raw))
            except (OSError, http.client.HTTPException) as error:
                show(f"{host} {method} {way}", error)
            finally:
                connection.close()
show(dict(os.environ))
for place in ("/proc", "/tmp", "/etc", "/run", "/var", "/home", str(Path.cwd())):
    for directory, below, names in os.walk(place):
        if directory in (sys.prefix, sys.base_prefix):  # thousands of files of an interpreter, which hold nothing of ours
            below.clear()
            continue
        for name in names:
            path = Path(directory, name)
            if path.name in ("seen.bin", "kmsg", "pagemap", "clear_refs", "mem") or "/task/" in directory:
                continue
            try:
                if path.is_file():
                    with path.open("rb") as file:
                        show(f"{path}", file.read(65536))
            except (OSError, ValueError):
                pass
seen.close()
Path("done").write_text("done")
if sys.argv[1] == "wait":
    time.sleep(600)
'''

CONFIGURATION = """\
trust_domain: secrets.internal
hosts:
  one.internal: {{address: "127.0.0.1:{one}", ca: ca.pem, tls: true}}
  two.internal: {{address: "127.0.0.1:{two}", ca: ca.pem, tls: true}}
approvers: {{oncall: {{operators: [nobody], quorum: 1, expires: 2h}}}}
agents:
  nosy:
    command: [{python}, nosy.py, "{{task}}", {ways}]
    workspace: ./agent
    trees: {trees}
    limits: {{wall: 5m}}
    boundary:
      - {{allow: [read, write], http: one.internal}}
      - {{allow: [read, write], http: two.internal}}
    credentials:
      - {{use: from-environment, for: one.internal, as: "Authorization: Bearer {{value}}"}}
      - {{use: from-file, for: two.internal, as: "X-Api-Key: {{value}}"}}
credentials:
  from-environment: {{source: environment, variable: {variable}, ttl: 60m}}
  from-file: {{source: file, path: secrets/two, ttl: 60m}}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    installed: Installation
    planted: list[str]
    one: Reflector
    two: Reflector

    def nosy(self) -> Done:
        return self.installed.run("nosy", "end", seconds_max=120.0)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    planted = ["tok-" + secrets.token_urlsafe(33), 'p@s/s+"' + base64.b64encode(secrets.token_bytes(24)).decode() + "<&'>=%"]
    authority = Authority.create("Bailiwick secrets tests")
    with Reflector(authority, "one.internal") as one, Reflector(authority, "two.internal") as two:
        configuration = CONFIGURATION.format(
            one=one.port, two=two.port, python=sys.executable, trees=TREES, variable=VARIABLE, ways=", ".join(f'"{way}"' for way in WAYS)
        )
        installed = Installation(configuration, files={"ca.pem": authority.pem, "agent/nosy.py": PROGRAM}, environment={VARIABLE: planted[0]})
        held = installed.write("secrets/two", planted[1] + "\n")
        held.chmod(0o600)
        held.parent.chmod(0o700)
        with installed:
            yield Stage(installed, planted, one, two)


def written(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the state directory: record, write-ahead logs, holds, keys, logs, archives."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def answered(installed: Installation, run: str) -> Iterator[tuple[str, bytes]]:
    """What the API and the command line say, each in every way they have."""
    for path in ("/v1/status", "/v1/runs", f"/v1/runs/{run}", f"/v1/runs/{run}/events", "/v1/events", "/v1/holds", "/v1/record/export", "/v1/record/key"):
        yield f"GET {path}", installed.api.text(path).encode()
    archive = io.BytesIO()
    installed.api.download(f"/v1/runs/{run}/changes.tar", archive)
    yield "changes.tar", archive.getvalue()
    export = str(installed.directory / "one.bailiwick")
    for words in (
        ["ps", "--all"], ["ps", "--all", "--json"], ["logs", run], ["logs", run, "--json"], ["trace", run], ["trace", run, "--json"],
        ["status"], ["status", "--json"], ["holds"], ["policy", "show", "nosy"], ["doctor"], ["check"],
        ["record", "export", run, "--output", export, "--force"], ["record", "verify", export],
    ):  # fmt: skip
        done = installed.cli(*words)
        yield f"bailiwick {' '.join(words)}", (done.stdout + done.stderr).encode()
    yield "export", Path(export).read_bytes()


def shown_by_proc(pids: list[int]) -> Iterator[tuple[str, bytes]]:
    for pid in pids:
        for name in ("environ", "cmdline"):
            try:
                yield f"/proc/{pid}/{name}", Path(f"/proc/{pid}/{name}").read_bytes()
            except PermissionError:  # an undumpable process shows nobody but root
                assert os.getuid() != 0


def test_no_byte_that_was_written_or_answered_holds_a_secret(stage: Stage) -> None:
    """A service reflects what was injected in seventeen ways; the agent shows and keeps everything; not one form of a secret is anywhere."""
    done = stage.nosy()
    assert stage.one.asked == stage.two.asked == set(WAYS)
    assert stage.one.received == {f"Bearer {stage.planted[0]}"}
    assert stage.two.received == {stage.planted[1]}
    assert "redacted" in done.said
    assert (done.view.cause, done.view.status) == ("exited", 0), done.said[-2_000:]
    places = [*written(stage.installed.layout.root), *answered(stage.installed, done.view.run), ("run's command line", done.output.encode())]
    with tarfile.open(fileobj=io.BytesIO(dict(places)["changes.tar"])) as archive:
        seen = archive.extractfile("seen.bin")
        assert seen is not None
        places.append(("what the agent kept", seen.read()))
    hits, looked = searched(places, stage.planted)
    assert hits == []
    assert looked > 1_000_000


def test_no_process_shows_a_secret(stage: Stage) -> None:
    """Neither environment nor command line: of ours, of their parent, of the sandbox."""
    run = stage.installed.begin("nosy", "wait")
    stage.installed.wait(lambda: "BAILIWICK_TASK" in said(stage, run), "the agent's look at its environment", 90.0)
    ours = list(stage.installed.pids().values())
    parent = int(Path(f"/proc/{ours[0]}/stat").read_text().rpartition(")")[2].split()[1])
    inside = processes_of([run])
    assert inside
    hits, looked = searched(shown_by_proc([*ours, parent, *inside]), stage.planted)
    assert hits == []
    assert looked > (1_000 if os.getuid() == 0 else 300)
    stage.installed.cli("kill", run, check=True)
    stage.installed.wait_ended(run)


def said(stage: Stage, run: str) -> str:
    return "".join(event["body"].get("text", "") for event in stage.installed.events(run) if event["kind"] == "run.output")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_crash_leaves_no_core(stage: Stage, number: signal.Signals) -> None:
    """A worker and the broker, which hold values, crash: no core file anywhere they might leave one, no secret in what the crash wrote."""
    before = set(_cores(stage.installed))
    for name in ("gateway-0", "broker"):
        pid = stage.installed.pids()[name]
        bound = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file size"))
        assert bound.split()[4:6] == ["0", "0"]
        os.kill(pid, number)
        stage.installed.wait(lambda name=name, pid=pid: stage.installed.pids().get(name, pid) != pid, f"another {name}")  # type: ignore[misc]
    stage.installed.wait_whole()
    assert set(_cores(stage.installed)) == before
    hits, _ = searched(written(stage.installed.layout.root), stage.planted)
    assert hits == []


def _cores(installed: Installation) -> Iterator[Path]:
    pattern = Path(Path("/proc/sys/kernel/core_pattern").read_text().strip().lstrip("|").split()[0]).parent
    for place in (Path.cwd(), Path("/"), Path("/tmp"), Path("/var/crash"), Path("/var/lib/systemd/coredump"), pattern, installed.directory):
        if place.is_dir():
            yield from (path for path in place.iterdir() if path.name.startswith("core"))
    yield from (path for path in installed.layout.root.rglob("core*") if path.is_file())


MISTAKES = {
    "a value where a source belongs": "credentials: {{token: {secret}}}",
    "a value beside its source": "credentials: {{token: {{source: environment, variable: TOKEN, value: {secret}}}}}",
    "a value as the variable": "credentials: {{token: {{source: environment, variable: {secret}}}}}",
    "a value as the kind of source": "credentials: {{token: {{source: {secret}}}}}",
    "a value in the template": "agents: {{a: {{command: [x], credentials: [{{use: token, for: one.internal, as: 'Authorization: Bearer {secret}'}}]}}}}",
    "a value in the environment": "agents: {{a: {{command: [x], environment: {{API_TOKEN: {secret}}}}}}}",
    "a value as a limit": "agents: {{a: {{command: [x], limits: {{wall: {secret}}}}}}}",
    "a value as a verb": "agents: {{a: {{command: [x], boundary: [{{allow: [{secret}], http: one.internal}}]}}}}",
    "yaml that does not close": "agents: {{a: [{secret}",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_configuration_that_holds_a_secret_by_mistake_is_refused_without_showing_it(tmp_path: Path, mistake: str) -> None:
    """What is where a credential belongs may be one: the error names file, line and field, and not the value."""
    secret = "sk-live-" + secrets.token_hex(20)
    path = tmp_path / "bailiwick.yaml"
    path.write_text(MISTAKES[mistake].format(secret=secret) + "\n")
    command = [sys.executable, "-m", "bailiwick.cli", "check", str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f"{path.name}:" in done.stdout + done.stderr
    assert searched([("check", (done.stdout + done.stderr).encode())], [secret])[0] == []


def test_without_scrubbing_the_search_finds_every_reflection(stage: Stage) -> None:
    """The control: asked directly, with the credential in hand, each way of reflecting is found by the same search."""
    missed = [way for way in WAYS if not searched([(way, asked_directly(stage, way))], [stage.planted[0]])[0]]
    assert missed == []


def asked_directly(stage: Stage, way: str) -> bytes:
    context = ssl.create_default_context(cadata=(stage.installed.directory / "ca.pem").read_text())
    connection = http.client.HTTPSConnection("localhost", stage.one.port, timeout=20, context=context)
    try:
        connection.request("GET", f"/reflect/{way}", headers={"Authorization": f"Bearer {stage.planted[0]}"})
        answer = connection.getresponse()
        content = str(answer.headers).encode()
        with contextlib.suppress(OSError, http.client.HTTPException):
            while piece := answer.read1(1 << 16):
                content += piece
        return content + gzip.decompress(content.partition(b"\n\n")[2]) if way == "compressed" else content
    finally:
        connection.close()
