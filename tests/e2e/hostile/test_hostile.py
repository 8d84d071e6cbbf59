"""A hostile agent, more than three hundred attempts: none gets out, each that touches the network is on file, and the product goes on as if nothing had been.

Everything runs in a world outside that notices every packet, so a leak would be a real one and nothing could leave the machine. `test_the_control_gets_out`
runs the same attempts with nothing but bubblewrap around them, to show that they can.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.hostile.places import DENIED, OPEN
from tests.e2e.installation import TREES
from tests.e2e.world import outside

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

HERE = Path(__file__).parent
AGENT = HERE / "agent"
NOBODY = 65_534
SECONDS_MAX = 110.0

ATTEMPTS_MIN = 300
LEAKS_MIN = 15
NAMED = ["network", "names", "http", "request"]  # groups whose attempts reach the gateway
TOLD = ("attempt.refused", "name.asked", "action.decided", "hold.opened")


@dataclass(frozen=True)
class Told:
    """What came of it: the scenario's report, and what the world outside noticed."""

    report: dict[str, Any]
    contacts: list[outside.Contact]

    @property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        return {verdict["attempt"]: verdict for group in self.report["groups"].values() for verdict in verdicts_in(group["said"])}


def verdicts_in(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith('{"number"')]


def attempts() -> dict[str, dict[str, Any]]:
    """Every attempt there is, by name, with its group and its trace, from the agent itself."""
    listing = "import agent, json; print(json.dumps({n: {'group': a.group, 'trace': a.trace} for n, a in agent.ATTEMPTS.items()}))"
    done = subprocess.run([sys.executable, "-B", "-c", listing], cwd=AGENT, capture_output=True, text=True, check=True)
    listed: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return listed


def as_ordinary_user(command: list[str], directory: Path) -> outside.Seen:
    """As who we are where that is nobody special, else as nobody."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    if os.getuid() != 0:
        return outside.run(command, directory=directory, environment=environment, seconds_max=SECONDS_MAX)
    for path in (directory, *directory.rglob("*")):
        shutil.chown(path, NOBODY, NOBODY)
    become = [sys.executable, str(HERE / "as_nobody.py"), str(NOBODY)]
    return outside.run([*become, *command], directory=directory, environment=environment, seconds_max=SECONDS_MAX)


@pytest.fixture(scope="module", params=["root", "ordinary-user"])
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    with tempfile.TemporaryDirectory(prefix="hostile-", dir="/tmp") as scratch:
        yield tell(request.param, Path(scratch))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Which every user may enter: pytest's own lie behind one that is closed."""
    with tempfile.TemporaryDirectory(prefix="hostile-", dir="/tmp") as scratch:
        yield Path(scratch)


def tell(who: str, directory: Path) -> Told:
    command = [sys.executable, "-m", "tests.e2e.hostile.scenario", str(directory / "report.json")]
    if who == "root":
        if os.getuid() != 0:
            pytest.skip("needs to be root")
        seen = outside.run(command, directory=directory, seconds_max=SECONDS_MAX)
    else:
        seen = as_ordinary_user(command, directory)
    assert seen.status == 0, seen.output[-2000:] + seen.errors[-4000:]
    report = json.loads((directory / "report.json").read_text())
    assert (report["uid"] == 0) == (who == "root")
    return Told(report, seen.contacts)


def test_no_attempt_gets_out(told: Told) -> None:
    """By the agent's own word: not one, and none of them merely broke."""
    known = attempts()
    assert len(known) >= ATTEMPTS_MIN
    assert [verdict for verdict in told.verdicts.values() if verdict["got_out"] or verdict["broke"]] == []
    assert set(known) - set(told.verdicts) <= {"memory"}, "some were not made"


def test_nothing_was_noticed_outside(told: Told) -> None:
    """By the world's word: no packet, no service of the host's loopback, no abstract socket."""
    assert told.contacts == []


def test_nothing_arrived_that_should_not(told: Told) -> None:
    """By the servers' word: at the allowed host only what may be read there, at the denied one nothing, at the model only the allowed one."""
    journal = told.report["journal"]
    assert [entry for entry in journal if entry["wrong"]] == []
    assert [entry for entry in journal if entry["at"] == DENIED] == []
    assert {entry["host"] for entry in journal if entry["at"] == OPEN} == {OPEN}
    assert any(entry["path"] == "/public/first" for entry in journal), "the journal is not kept"


def test_the_neighbour_was_left_alone(told: Told) -> None:
    """Another run: nobody came, no signal, no reader of its files, and it is there to the end."""
    neighbour = told.report["neighbour"]
    assert neighbour["state"] == "running"
    assert neighbour["cause"] == "killed"
    assert [json.loads(line) for line in neighbour["said"].splitlines()] == [{"neighbour": "ready", "pid": 1}]


@pytest.mark.parametrize("group", NAMED)
def test_each_network_attempt_is_on_file(told: Told, group: str) -> None:
    """By name: what each left in the record, a refused attempt, a name that was asked for, or an action and its decision."""
    run = told.report["groups"][group]
    recorded = [json.dumps(event) for event in run["events"] if event["kind"] in TOLD]
    expected = {name: attempt["trace"] for name, attempt in attempts().items() if attempt["group"] == group and attempt["trace"]}
    missing = {name: trace for name, trace in expected.items() if not any(all(text in event for text in trace) for event in recorded)}
    assert missing == {}
    assert len(expected) > 20


def test_what_is_worn_out_is_its_own(told: Told) -> None:
    """A flood is counted where it is not written, the bounds hold, and the run that takes too much memory is ended by name."""
    run = told.report["groups"]["exhaustion"]
    refused = [event["body"] for event in run["events"] if event["kind"] == "attempt.refused"]
    assert any(body["what"] == "connection" and "connections open" in body["why"] for body in refused)
    assert sum(body.get("suppressed", 0) for body in refused) > 0
    assert run["written"] > 20 * 65_536, "output was lost"
    if run["cause"] == "memory":
        assert "bound of" in run["detail"]
    else:
        assert told.verdicts["memory"]["detail"].startswith("refused after")


def test_everything_goes_on(told: Told) -> None:
    """The next run works through the same gateway, no process of ours ended, and every hostile run ended as a run does."""
    ordinary = told.report["ordinary"]
    assert json.loads(ordinary["said"])["ordinary"] == 200
    assert (ordinary["cause"], ordinary["status"]) == ("exited", 0)
    assert {process["name"]: process["restarts"] for process in told.report["processes"]["processes"] if process["restarts"]} == {}
    causes = {group: run["cause"] for group, run in told.report["groups"].items() if run["cause"] != "exited"}
    assert causes in ({}, {"exhaustion": "memory"})
    assert "Traceback" not in told.report["logs"]


def test_no_hold_was_signed(told: Told) -> None:
    """What needed a person waited, and ended unused."""
    kinds = [event["kind"] for event in told.report["groups"]["request"]["events"] if event["kind"].startswith("hold.")]
    assert "hold.opened" in kinds
    assert {"hold.signed", "hold.redeemed"} & set(kinds) == set()


def test_no_secret_is_in_sight(told: Told) -> None:
    """Not in what the agent said, not in the record, not in any file of the product."""
    assert told.report["secrets_in_events"] == []
    assert told.report["secrets_in_state"] == []
    assert "planted-" not in json.dumps([group["said"] for group in told.report["groups"].values()])


def test_links_out_do_not_come_back(told: Told) -> None:
    """What the run left in its workspace to lead whoever collects it astray is refused by name, and what came back leads nowhere."""
    refused = "\n".join(told.report["changes"]["refused"])
    for name in ("kept", "left-link-to-root", "left-link-to-state", "left-link-upward", "left-link-to-proc", "left-through", "left-pipe", "left-setuid"):
        assert f"{name}: " in refused
    applied = told.report["applied"]
    assert applied["status"] == 0, applied["said"]
    assert (applied["leading_out"], applied["setuid"], applied["special"]) == ([], [], [])
    assert "left-deep/er/here" in applied["links"]
    assert "kept.was/file.txt" in applied["names"]


def test_nothing_is_left(told: Told) -> None:
    """No process, mount, namespace, control group or directory of any of the runs."""
    assert told.report["left"] == []


# -- the control

FACTS = {
    "patience": 0.3,
    "resolver": "198.18.0.1",
    "proxy": "198.18.0.1",
    "models": "198.18.0.2",
    "elsewhere": "203.0.113.200",
    "loopback_port": outside.LOOPBACK_PORT,
    "abstract": outside.ABSTRACT,
    "placeholder": "none",
    "state": "/nowhere",
    "sockets": [],
    "files": [],
    "trees": [],
    "pids": [],
    "namespaces": {},
    "neighbour": {"pid": 2**22 - 1, "port": 7777, "abstract": "nobody", "address": "198.51.100.77"},
    "limits": {"pids": 64, "open_files": 512, "disk": 1, "memory": 1},
}
LEAKS = {
    "tcp": "tcp4-22 tcp4-80 tcp4-443-without-a-name tcp4-2375 tcp4-8080 tcp6-80 tcp6-8080 tcp4-inside-ipv6 tcp-443-by-a-name-of-its-own",
    "udp": "udp4-443 udp4-9999 udp6-9999",
    "dns": "dns-data-in-a-label dns-data-in-txt dns-data-in-many-names dns-of-another-server dns-of-another-server-ipv6 dns-over-tcp dns-over-https",
    "metadata": "metadata metadata-inside-ipv6 metadata-6to4 metadata-decimal metadata-hexadecimal metadata-octal metadata-ipv6",
    "host": "loopback loopback-zero host-docker-bridge abstract-socket-of-the-host",
    "protocols": "proxy-variables-ignored proxy-variables-of-its-own smtp-by-name ssh-by-an-allowed-name",
}


def test_the_control_gets_out(open_directory: Path) -> None:
    """The same attempts in a plain `bwrap --share-net`: they get out by many ways, each of which the world outside notices as well."""
    for path in AGENT.glob("*.py"):
        shutil.copy(path, open_directory)
    (open_directory / "facts.json").write_text(json.dumps(FACTS))
    box = ["bwrap", "--unshare-all", "--share-net", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    box += [part for tree in TREES for part in ("--ro-bind", tree, tree)]  # where they lie under /tmp
    command = [*box, "--bind", str(open_directory), str(open_directory), "--chdir", str(open_directory), sys.executable, "-B", "agent.py", "network", "names"]
    seen = as_ordinary_user(command, open_directory)
    assert seen.status == 0, seen.errors[-2000:]
    verdicts = {verdict["attempt"]: verdict for verdict in verdicts_in(seen.output)}
    out = [name for name, verdict in verdicts.items() if verdict["got_out"]]
    expected = " ".join(LEAKS.values()).split()
    assert len(expected) >= LEAKS_MIN
    assert {name: verdicts.get(name) for name in expected if name not in out} == {}
    reached = {(contact.protocol, contact.address, contact.port) for contact in seen.contacts}
    assert {
        ("tcp", "203.0.113.80", 80),
        ("tcp", "169.254.169.254", 80),
        ("udp", "203.0.113.99", 9999),
        ("udp", "8.8.8.8", 53),
        ("tcp", "127.0.0.1", outside.LOOPBACK_PORT),
        ("abstract", outside.ABSTRACT, None),
    } <= reached
