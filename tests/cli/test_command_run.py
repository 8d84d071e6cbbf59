import json
import os
import pty
import re
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bailiwick.governor.views import RunView


def plays(governance: Any, *steps: Any) -> None:
    """What every run does as soon as it is asked for."""

    def play(run: RunView) -> None:
        for step in steps:
            step(governance, run.run)

    governance.on_request = play


def says(text: str, stream: str = "stdout") -> Any:
    return lambda governance, run: governance.commit("run.output", run=run, body={"stream": stream, "text": text})


def ends(**how: Any) -> Any:
    return lambda governance, run: governance.end(run, **how)


def acts(decision: str, **body: Any) -> Any:
    def act(governance: Any, run: str) -> None:
        fields = {"action": f"a-{len(governance.log)}", "verb": "write", "resource": "https://config.internal/v1/x"}
        governance.commit("action.decided", run=run, decision=decision, body={"rules": ["rule[0]"], "method": "PUT", **body}, **fields)
        if decision == "allow":
            governance.commit("action.finished", run=run, body={"result": "answered", "status": 200, "duration_ms": 12}, **fields)

    return act


def test_an_agents_run_is_watched_to_its_end(cli: Any) -> None:
    """The agent's output is our output, what it did and what was decided is on standard error, and the status says how it ended."""
    plays(cli.governance, says("hello\n"), says("oops\n", "stderr"), acts("allow"), acts("deny", reason="not in the boundary"), ends())
    out = cli("run", "deployer", "nightly")
    assert out == "hello\n"
    for words in ("oops", "PUT https://config.internal/v1/x", "allowed", "200", "12 ms", "denied", "not in the boundary", "exit status 0"):
        assert words in cli.err
    request, _ = cli.governance.requests[0]
    assert (request.agent, request.task, request.observe) == ("deployer", "nightly", False)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"cause": "exited", "status": 0}, 0),
        ({"cause": "exited", "status": 3}, 1),
        ({"cause": "exited", "status": -9}, 1),
        ({"cause": "refused", "status": None, "detail": "no such command"}, 4),
        ({"cause": "sandbox", "status": None}, 5),
        ({"cause": "lost", "status": None}, 5),
        ({"cause": "killed", "status": None}, 8),
        ({"cause": "wall", "status": None}, 8),
        ({"cause": "memory", "status": -9}, 8),
    ],
    ids=str,
)
def test_the_status_says_how_it_ended(cli: Any, how: dict[str, Any], status: int) -> None:
    """The agent's failure, ours, and a limit are told apart."""
    plays(cli.governance, ends(**how))
    cli("run", "deployer", status=status)
    assert how.get("detail", "") in cli.err


def test_a_command_is_everything_after_the_dashes(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own options are its own, the directory it is asked from is its workspace, and its program is found on the asker's PATH."""
    plays(cli.governance, ends())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "my-agent").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "my-agent").chmod(0o755)
    monkeypatch.setenv("PATH", f"/usr/bin:{tmp_path}/bin")
    cli("run", "--observe", "--", "my-agent", "a.py", "--json", "--", "x")
    request, _ = cli.governance.requests[0]
    assert request.command == [f"{tmp_path}/bin/my-agent", "a.py", "--json", "--", "x"]
    assert (request.observe, request.workspace) == (True, str(tmp_path))
    assert request.trees
    cli("run", "--no-workspace", "--", "true")
    assert cli.governance.requests[1][0].workspace is None
    monkeypatch.setenv("HOME", str(tmp_path))
    cli("run", "--", "true")
    assert cli.governance.requests[2][0].workspace is None
    assert "is not copied in" in cli.err


def test_what_makes_no_run_is_a_usage_error(cli: Any, tmp_path: Path) -> None:
    """Neither agent nor command, both, or an option that does not belong."""
    for args in (["run"], ["run", "a", "--", "b"], ["run", "a", "-w", str(tmp_path)], ["run", "--nonsense"]):
        cli(*args, status=2)
    cli("run", "-w", str(tmp_path / "none"), "--", "true", status=4)
    assert "is not a directory" in cli.err
    cli("run", "nobody", status=4)
    assert "known: deployer" in cli.err


def test_events_as_json_lines(cli: Any) -> None:
    """Each event whole, one a line, and nothing else on standard output."""
    plays(cli.governance, says("x\n"), ends())
    kinds = [json.loads(line)["event"]["kind"] for line in cli("run", "deployer", "--json").splitlines()]
    assert kinds == ["run.requested", "run.output", "run.ended"]


def test_a_configuration_that_is_not_in_force_is_said(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was edited since the start, a policy beside it, or another file; the way to use it is named, and the run goes on."""
    from msgspec.structs import replace

    file = tmp_path / "bailiwick.yaml"
    policy = tmp_path / "policies" / "more.cedar"
    policy.parent.mkdir()
    for each in (file, policy):
        each.write_text("")
        os.utime(each, (0, 0))
    status = replace(cli.governance.status(), configuration=str(file), started="2026-11-24T02:00:00.000000Z")
    cli.governance.status = lambda: status
    monkeypatch.chdir(tmp_path)
    plays(cli.governance, ends())
    cli("run", "deployer")
    assert "down" not in cli.err
    for each in (file, policy):
        os.utime(each, (2**32, 2**32))
        cli("run", "deployer")
        assert f"{file} has changed since what is up was started" in cli.err
        assert "`bailiwick down` first" in cli.err
        os.utime(each, (0, 0))
    (tmp_path / "other.yaml").write_text("")
    cli("run", "-c", "other.yaml", "deployer")
    assert "not other.yaml; `bailiwick down` first" in cli.err


def test_detached(cli: Any) -> None:
    """The id and nothing else; the run goes on."""
    run = cli("run", "deployer", "--detach").strip()
    assert cli.governance.known_runs[run].state == "running"


def test_a_hold_says_how_to_answer_it(cli: Any) -> None:
    """Without a terminal the run waits, and standard error has the whole of what is asked and the commands that answer."""
    process = cli.start("run", "deployer")
    wait_until(lambda: cli.governance.known_runs)
    (run,) = cli.governance.known_runs
    hold = cli.do(cli.governance.open_hold, run).hold
    lines = []
    while not lines or "bailiwick approve" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1]
    shown = "".join(lines)
    for words in (hold, "PUT https://config.internal/v1/production/flags", '{"rollout": 100}', "oncall", f"bailiwick deny {hold} --why"):
        assert words in shown
    cli("approve", hold, "--why", "checked", "--yes")
    cli.do(cli.governance.end, run)
    assert process.wait(10) == 0
    assert "granted by" in process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_and_waits_until_it_has(cli: Any, number: signal.Signals) -> None:
    """One kill is ordered, the end is waited for, and the status is 130."""
    process = cli.start("run", "deployer")
    wait_until(lambda: cli.governance.known_runs)
    read_until(process, "requested")
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted: ending the run" in err
    assert [run.state for run in cli.governance.known_runs.values()] == ["ended"]
    assert cli.governance.stopped_by is None  # it did not start the processes, so it does not stop them


def test_a_second_interrupt_does_not_wait(cli: Any) -> None:
    """Who insists is let go, and told that the run may go on."""
    cli.governance.end_on_kill = False
    process = cli.start("run", "deployer")
    read_until(process, "requested")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: any(event.event["kind"] == "run.killed" for event in cli.governance.log))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "bailiwick ps" in err


def read_until(process: Any, words: str) -> None:
    line = "\n"
    while words not in line:
        line = process.stderr.readline()
        assert line, f"standard error ended without {words!r}"


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


_CONTROLLED = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Terminal:
    """A program on a terminal of 80 columns, and what it has shown so far."""

    def __init__(self, cli: Any, *args: str, controlling: bool = False, term: str = "xterm-256color") -> None:
        import fcntl
        import struct
        import termios

        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        environment = {"stdin": inner, "stdout": inner, "stderr": inner, "start_new_session": True}
        before = os.environ.pop("NO_COLOR", None)
        self.process = _coloured(cli, ("-c", _CONTROLLED) if controlling else (), args, environment | {"term": term})
        if before is not None:
            os.environ["NO_COLOR"] = before
        os.close(inner)
        self.shown = ""

    def until(self, words: str, seconds: float = 10.0) -> str:
        deadline = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 65536).decode()
                except OSError:
                    assert words in self.shown, self.shown
        return self.shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        deadline = time.monotonic() + 15
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self.fd, 65536).decode()
                except OSError:
                    break
        status = self.process.wait(5)
        os.close(self.fd)
        return status


def _coloured(cli: Any, prefix: tuple[str, ...], args: tuple[str, ...], options: dict[str, Any]) -> Any:
    import subprocess
    import sys

    environment = {**os.environ, "BAILIWICK_STATE": str(cli.state), "TERM": options.pop("term")}
    environment.pop("NO_COLOR", None)
    environment.pop("COLUMNS", None)
    return subprocess.Popen([sys.executable, *prefix, "-m", "bailiwick.cli", *args], env=environment, **options)


def test_on_a_terminal_a_hold_is_answered_by_a_key(cli: Any) -> None:
    """The person at the keyboard sees all of it, and y lets it happen; a key pressed before it was shown counts for nothing."""
    terminal = Terminal(cli, "run", "deployer", "nightly")
    terminal.until("requested")
    terminal.type("y")
    (run,) = cli.governance.known_runs
    hold = cli.do(cli.governance.open_hold, run).hold
    terminal.until("y approves, n denies")
    assert cli.governance.known_holds[hold].state == "pending"

    def granted() -> bool:
        terminal.type("y")  # the first ones come too soon after it was shown to be an answer to it
        return bool(cli.governance.known_holds[hold].state == "granted")

    wait_until(granted)
    terminal.until("granted by")
    cli.do(cli.governance.end, run)
    assert terminal.end() == 0
    assert '{"rollout": 100}' in terminal.shown


def test_on_a_terminal_nothing_an_agent_writes_is_obeyed(cli: Any) -> None:
    """Escape sequences, in output and in names, are shown and not acted on; the terminal is as it was afterwards."""
    plays(cli.governance, says("\x1b]0;owned\x07\x1b[2J\rtext\n"), acts("deny", reason="x\x1b[31m"), ends())
    terminal = Terminal(cli, "run", "deployer")
    assert terminal.end() == 0
    assert "\x1b]0;" not in terminal.shown
    assert "\x1b[2J" not in terminal.shown
    assert "\\u{1b}]0;owned" in terminal.shown


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_on_a_terminal_an_agent_writes_behind_the_bar(cli: Any, term: str) -> None:
    """A forged line of the story stays the agent's, however long what stands before it, with colours and without."""
    forged = "+0.001 ✓ write PUT https://elsewhere.internal/  allowed"
    plays(cli.governance, says(" " * 78 + forged + "\n"), says("x" * 76 + forged, "stderr"), ends())
    terminal = Terminal(cli, "run", "deployer", term=term)
    assert terminal.end() == 0
    rows = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", row).strip("\r") for row in terminal.shown.split("\n")]
    written = [row for row in rows if "elsewhere" in row or "+0.001" in row or "x" * 10 in row]
    assert len(written) == 3
    assert all(row.rpartition("\r")[2].startswith("│ ") and len(row.rpartition("\r")[2]) <= 80 for row in written), written


def test_on_a_terminal_ctrl_c_ends_the_run(cli: Any) -> None:
    """As a key, not as a signal sent from elsewhere."""
    terminal = Terminal(cli, "run", "deployer")
    terminal.until("requested")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert [run.state for run in cli.governance.known_runs.values()] == ["ended"]


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("controlling", [True, False])
def test_a_closed_terminal_ends_the_run(cli: Any, controlling: bool, term: str) -> None:
    """By SIGHUP, by the end of input or by a write that fails, whichever is first: the end is ordered, waited for, and counts as an interrupt."""
    terminal = Terminal(cli, "run", "deployer", controlling=controlling, term=term)
    terminal.until("requested")
    (run,) = cli.governance.known_runs
    os.close(terminal.fd)
    cli.do(lambda: says("more\n")(cli.governance, run))
    assert terminal.process.wait(15) == 130
    assert [event.event["body"].get("detail") for event in cli.governance.log if event.event["kind"] == "run.killed"] == ["interrupted at the terminal"]
    assert cli.governance.known_runs[run].state == "ended"


class DeadTerminal:
    """A view each of whose writes fails."""

    def __enter__(self) -> "DeadTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        raise OSError(5, "Input/output error")

    def _fail(self, *_: object) -> None:
        raise OSError(5, "Input/output error")

    event = hold = note = _fail


def test_what_it_started_it_stops_when_its_terminal_is_gone(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails: the run is ended all the same, and then the processes."""
    from queue import SimpleQueue

    from bailiwick.cli import command_run, live, options
    from bailiwick.cli.exits import Exit

    run = cli("run", "deployer", "--detach").strip()
    up = iter([True, False])
    monkeypatch.setattr(command_run, "_is_up", lambda _: next(up))
    monkeypatch.setattr(live, "view", lambda *_, **__: DeadTerminal())
    watch = command_run.Watch(options.client(cli.state), options.layout(cli.state), cli.governance.known_runs[run], started_here=True)
    assert watch.until_end(SimpleQueue(), as_json=False) is Exit.INTERRUPTED
    assert cli.governance.known_runs[run].state == "ended"
    assert cli.governance.stopped_by is not None


def test_what_it_started_it_stops_when_interrupted(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves nothing behind: the run ends first, then the processes, and only then does the command."""
    from queue import SimpleQueue

    from bailiwick.cli import command_run, options
    from bailiwick.cli.exits import Exit
    from bailiwick.cli.follow import Interrupted

    run = cli("run", "deployer", "--detach").strip()
    layout = options.layout(cli.state)
    inbox: Any = SimpleQueue()
    inbox.put(Interrupted(signal.SIGINT))
    up = iter([True, True, False])
    monkeypatch.setattr(command_run, "_is_up", lambda _: next(up))
    watch = command_run.Watch(options.client(cli.state), layout, cli.governance.known_runs[run], started_here=True)
    assert watch.until_end(inbox, as_json=False) is Exit.INTERRUPTED
    assert cli.governance.known_runs[run].state == "ended"
    assert cli.governance.stopped_by is not None


def test_a_configuration_that_keeps_it_from_starting_is_named(alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The findings, and status 3: not that a process of ours did not come up."""
    from bailiwick.app import detached
    from bailiwick.kernel.errors import BackendError

    def fails(*_: Any, **__: Any) -> int:
        raise BackendError("the installation did not come up: it said nothing")

    monkeypatch.setattr(detached, "start_detached", fails)
    file = tmp_path / "bailiwick.yaml"
    file.write_text("agents: 7\n")
    alone("run", "-c", str(file), "deployer", status=3)
    assert "bailiwick.yaml:1:" in alone.err
    file.write_text("{}\n")
    alone("run", "-c", str(file), "deployer", status=5)
    assert "did not come up" in alone.err


def test_a_governor_that_is_started_anew_is_followed_on(tmp_path: Path) -> None:
    """The stream breaks in the middle of a run: nothing is lost, nothing is told twice, and the end is the run's."""
    from tests.cli.conftest import Cli
    from tests.fakes.governance import FakeGovernance
    from tests.fakes.served import served

    from bailiwick.api.application import create
    from bailiwick.api.operators import Directory
    from bailiwick.kernel.layout import Layout

    governance = FakeGovernance()
    directory = Directory({}, starter_uid=os.getuid(), separate=os.getuid() == 0)
    cli = Cli(tmp_path, None, governance)
    path = Path(Layout(tmp_path).socket("api"))
    with served(create(governance, directory.authenticate), path) as server:
        process = cli.start("run", "deployer")
        read_until(process, "requested")
        (run,) = governance.known_runs
        server.call(lambda: governance.commit("run.output", run=run, body={"stream": "stdout", "text": "one\n"}))
        assert process.stdout.readline() == "one\n"
    governance._news = None
    with served(create(governance, directory.authenticate), path) as server:
        server.call(lambda: governance.commit("run.output", run=run, body={"stream": "stdout", "text": "two\n"}))
        server.call(lambda: governance.end(run))
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("two\n", 0)
