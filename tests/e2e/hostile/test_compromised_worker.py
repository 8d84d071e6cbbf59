"""A process of ours that was taken over: hostile code inside it, with all it holds and under all that holds it, gets nothing but what the process is for.

A gateway worker may append the kinds of events it writes and use the live leases of its own runs. A recorder may spoil its own file, which is found out
by anybody with the public key. As root, where each process has a uid of its own; an ordinary user's processes share one, and `bailiwick doctor` says so.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.hostile.places import Places
from tests.e2e.hostile.turned import MARK, ORDER
from tests.e2e.installation import Installation

from bailiwick.governor.views import StatusView

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.getuid() != 0, reason="needs to be root")]

START_SECONDS_MAX = 60.0
ATTEMPT_SECONDS_MAX = 60.0
ATTEMPTS_MIN = 150
AGENT = {
    "command": ["sleep", "1000"],
    "boundary": [
        {"allow": ["read"], "http": "open.internal", "path": "/public/**"},
        {"hold": ["write"], "http": "open.internal", "path": "/held/**", "approvers": ["oncall"]},
    ],
    "credentials": [{"use": "token", "for": "open.internal", "as": "Authorization: Bearer {value}"}],
}


class Turned(Installation):
    """An installation whose `process` is taken over when `turn` says so."""

    def __init__(self, process: str, facts: Path, *, places: Places, environment: Mapping[str, str]) -> None:
        configuration = {
            "hosts": places.pins(),
            "approvers": {"oncall": {"operators": ["ana"]}},
            "agents": {
                "idle": AGENT,
                "ordinary": AGENT | {"command": ["curl", "-s", "-m", "20", "https://open.internal/public/ordinary"]},
            },
            "credentials": {"token": {"source": "file", "path": "secrets/token"}, "key": {"source": "environment", "variable": "HOSTILE_MODEL_KEY"}},
        }
        super().__init__(json.dumps(configuration), files={"ca.pem": places.authority.pem, "secrets/token": TOKEN}, environment=environment, workers=2)
        (self.directory / "secrets/token").chmod(0o600)
        self.process = process
        self.facts = facts

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.e2e.hostile.turned",
            self.process,
            str(self.directory / "bailiwick.yaml"),
            str(self.layout.root),
            str(self.facts),
        ]
        root = Path(__file__).parents[3]
        environment = self._environment | {"PYTHONPATH": f"{root}/src:{root}", "BAILIWICK_STATE": str(self.layout.root)}
        self.layout.root.mkdir(mode=0o755, exist_ok=True)
        with (self.layout.root / "up.log").open("wb") as log:
            self._group = subprocess.Popen(command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait(lambda: all(each.state == "up" for each in self.api.get("/v1/status", StatusView).processes), "every process", START_SECONDS_MAX)
        except BaseException:
            self._group.kill()
            self._group.wait()
            raise

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._group.terminate()
            try:
                self._group.wait(30)
            except subprocess.TimeoutExpired:
                self._group.kill()  # the others die with it
                self._group.wait()
                raise

    def turn(self, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The attempts and what became of them, by name."""
        self.facts.write_text(json.dumps(facts))
        self.facts.chmod(0o644)
        os.kill(self.pids()[self.process], ORDER)
        log = self.layout.logs / f"{self.process}.log"

        def lines() -> list[str]:
            said = [line.removeprefix(MARK) for line in log.read_text(errors="replace").splitlines() if line.startswith(MARK)]
            return said if said and said[-1] == "over" else []

        said = self.wait(lines, f"the end of what {self.process} tries", ATTEMPT_SECONDS_MAX)
        return {entry["attempt"]: entry for entry in map(json.loads, said[:-1])}

    def about(self, own: str, other: str) -> dict[str, Any]:
        """What an intruder might know or find out."""
        layout = self.layout
        pids = {name: pid for name, pid in self.pids().items() if name != self.process}
        requested = next(event["id"] for event in self.events(own) if event["kind"] == "run.requested")
        return {
            "own": own,
            "other": other,
            "neighbour": "gateway-1",
            "origin": "bailiwick.internal/record",
            "event": requested,
            "pids": pids | {"supervisor": self._group.pid, "agent of its own": pid_of(own), "agent of another": pid_of(other)},
            "secret": {
                "checkpoint key": str(layout.broker / "checkpoint.key"),
                "checkpoint state": str(layout.broker / "checkpoint.state"),
                "record.db": str(layout.record / "record.db"),
                "state.db": str(next(layout.governor.glob("*.db"))),
                "configuration": str(self.directory / "bailiwick.yaml"),
                "token": str(self.directory / "secrets/token"),
                "log of another": str(layout.logs / "governor.log"),
                "shadow": "/etc/shadow",
                "sandbox": str(layout.sandboxes),
            },
            "written": {
                "record.db": str(layout.record / "record.db"),
                "checkpoint key": str(layout.broker / "checkpoint.key"),
                "checkpoint state": str(layout.broker / "checkpoint.state"),
                "state.db": str(next(layout.governor.glob("*.db"))),
                "recorder.sock": str(layout.sockets / "recorder.sock"),
                "processes.json": str(layout.sockets / "processes.json"),
                "configuration": str(self.directory / "bailiwick.yaml"),
                "log of another": str(layout.logs / "governor.log"),
                "program": bailiwick_itself(),
            },
        }


TOKEN = "-".join(("planted", "token", "0123456789abcdef0123456789abcdef"))  # so that no constant of this file is the secret itself
KEY = "-".join(("planted", "key", "0123456789abcdef0123456789abcdef"))


def bailiwick_itself() -> str:
    import bailiwick.gateway.worker

    return str(bailiwick.gateway.worker.__file__)


def pid_of(run: str) -> int:
    """A process of the run's, as the machine counts: the agent, which carries the run's id in its environment."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"BAILIWICK_RUN={run}".encode() in (entry / "environ").read_bytes() and b"sleep" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise AssertionError(f"{run} has no process")


def holding(pids: Mapping[str, int], secret: str) -> list[str]:
    """The processes with the secret anywhere in what they may write of their memory."""
    found = []
    for name, pid in pids.items():
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                span, rights, *_, what = line.split()
                start, end = (int(each, 16) for each in span.split("-"))
                if rights.startswith("rw") and not what.startswith("[v"):
                    with contextlib.suppress(OSError):  # given back meanwhile
                        memory.seek(start)
                        found += [name] if secret.encode() in memory.read(end - start) else []
    return sorted(set(found))


def succeeded(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    assert [verdict for verdict in verdicts.values() if verdict["broke"]] == []
    assert len(verdicts) >= ATTEMPTS_MIN
    return [name for name, verdict in verdicts.items() if verdict["succeeded"]]


@pytest.fixture
def places() -> Iterator[Places]:
    with Places(TOKEN, KEY) as running:
        yield running


def test_a_compromised_worker_has_its_own_runs_and_nothing_else(places: Places) -> None:
    """Not the broker's key, the record, another's memory, sockets, runs or leases; only its kinds of events, and the leases of the runs it serves."""
    facts = Path(f"/dev/shm/hostile-{os.getpid()}.json")  # where a worker may read
    try:
        with Turned("gateway-0", facts, places=places, environment={"HOSTILE_MODEL_KEY": KEY}) as installed:
            own, other = (installed.begin("idle", "be there") for _ in range(2))
            installed.wait(lambda: installed.view(other).state == "running" and installed.view(own).state == "running", "two runs")
            assert (installed.view(own).worker, installed.view(other).worker) == ("gateway-0", "gateway-1")
            before = installed.pids()
            assert holding(before, KEY) == ["broker"], "of all processes one knows it"
            assert set(holding(before, TOKEN)) <= {"broker"}, "read from its file when it is needed, and by nobody else"
            verdicts = installed.turn(installed.about(own, other))
            writes = ["run.output", "name.asked", "attempt.refused", "action.decided", "action.finished", "peer.refused"]
            assert succeeded(verdicts) == [*(f"OWN append {kind}" for kind in writes), "OWN recorder: TakeCheckpoint", "OWN lease of its own run"]

            assert installed.pids() == before
            assert installed.view(other).state == "running"
            assert installed.view(other).calls != 666
            forged = [recorded for recorded in installed.api.lines("/v1/events") if recorded["event"]["id"].startswith("hostile.")]
            assert {recorded["writer"] for recorded in forged} == {"gateway-0"}, "what it wrote says who wrote it"
            assert sorted(recorded["event"]["kind"] for recorded in forged) == sorted(writes)
            refused = [event["body"] for event in installed.events() if event["kind"] == "peer.refused" and not event["id"].startswith("hostile.")]
            assert {str(body.get("uid")) for body in refused} == {str(uid_of(before["gateway-0"]))}, "who was turned away is on file"
            ordinary = installed.run("ordinary", "do your work")
            assert "welcome" in ordinary.said, f"{ordinary.view}\n{ordinary.output}\n{ordinary.events}\n{installed.logs()}"
            verified(installed)
            for run in (own, other):
                installed.cli("kill", run, check=True)
                installed.wait_ended(run)
            assert installed.left(own, other) == []
    finally:
        facts.unlink(missing_ok=True)


def test_a_compromised_recorder_cannot_rewrite_history_unseen(places: Places) -> None:
    """It reaches no lease and no other process; no altered history is signed for it, and what it alters in its own file is named by the verification."""
    with contextlib.ExitStack() as held:
        installed = Turned("recorder", Path("/nowhere"), places=places, environment={"HOSTILE_MODEL_KEY": KEY})
        installed.facts = installed.layout.record / "hostile.json"  # where a recorder may read
        held.enter_context(installed)
        own, other = (installed.begin("idle", "be there") for _ in range(2))
        installed.wait(lambda: installed.view(other).state == "running" and installed.view(own).state == "running", "two runs")
        verified(installed)
        before = installed.pids()
        verdicts = installed.turn(installed.about(own, other))
        assert succeeded(verdicts) == ["OWN describe the key", "OWN sign the history as it is", "OWN alter its own file"]
        assert installed.pids() == before
        altered = int(verdicts["OWN alter its own file"]["detail"].split()[-1])
        exported = installed.cli("record", "export", "--output", "all.bailiwick", "--force")
        if exported.returncode == 0:  # nothing was appended since: the last signature is of the truth, and the file does not agree with it
            unverified = installed.cli("record", "verify", "all.bailiwick", "--key", "record.vkey")
            assert unverified.returncode == 7, unverified.stdout + unverified.stderr
            assert f"event {altered}" in unverified.stderr
        else:  # something was, and nobody signs for it on top of a lie
            assert "does not extend the last one signed" in exported.stderr


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid or int(Path(f"/proc/{pid}/status").read_text().partition("Uid:\t")[2].split()[0])


def export_and_verify(installed: Installation) -> "subprocess.CompletedProcess[str]":
    installed.write("record.vkey", installed.cli("record", "key", check=True).stdout)
    installed.cli("record", "export", "--output", "all.bailiwick", "--force", check=True)
    return installed.cli("record", "verify", "all.bailiwick", "--key", "record.vkey")


def verified(installed: Installation) -> None:
    done = export_and_verify(installed)
    assert done.returncode == 0, done.stdout + done.stderr
