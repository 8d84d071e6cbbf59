"""`bailiwick demo`: the whole story, on real processes, real sandboxes and real servers of this machine, and every claim of it checked.

Told by the product's own commands, each in a process of its own as a person would start it: `run`, `approve`, `trace`, `record export`, `record verify`.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bailiwick.api.operators import unix_name
from bailiwick.app.detached import start_detached
from bailiwick.cli import terminal
from bailiwick.cli.client import Client
from bailiwick.cli.command_run import stop_group
from bailiwick.cli.command_show import stream
from bailiwick.cli.demo import claims
from bailiwick.cli.demo.alteration import alter
from bailiwick.cli.demo.remains import remains
from bailiwick.cli.demo.story import Setting, prepare
from bailiwick.cli.demo.world import Journals, Keys, WorldProcess
from bailiwick.cli.exits import Exit
from bailiwick.governor.views import HoldView, RunView
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.layout import Layout
from bailiwick.record.verify import Tampered, verify_export

RUN_SECONDS_MAX = 600.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where the story plays: the setting on disk, the installation, and a client of it."""

    setting: Setting
    layout: Layout
    api: Client
    by_hand: bool  # a person at the keyboard answers; else a second process does

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "bailiwick.cli", *words, "--state", str(self.layout.root)]


def main(arguments: list[str]) -> int:
    """Exit status 0 when every claim held."""
    app = typer.Typer(add_completion=False)
    app.command()(_demo)
    status = typer.main.get_command(app)(arguments, prog_name="bailiwick demo", standalone_mode=False)
    return int(status or 0)


def _demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the directory with configuration, record and export.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The claims as JSON on standard output.")] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask at the keyboard; a second process approves.")] = False,
) -> int:
    """Tells the 2 AM story: an agent that deploys configuration is talked into more than it may, and every claim is checked.

    \b
    bailiwick demo
    bailiwick demo --no-input --json | jq '.[].claim'
    """
    directory = Path(tempfile.mkdtemp(prefix="bailiwick-demo-"))
    directory.chmod(0o755)  # as root each process has an account of its own and must reach its part of this
    try:
        keys = Keys.fresh()
        with WorldProcess(keys) as world:
            setting = prepare(directory, world.doors, keys, approver=unix_name(os.getuid(), {}))
            layout = Layout(directory / "state")
            stage = _Stage(setting, layout, Client(layout), by_hand=terminal.interactive() and not no_input and not json_output)
            evidence, run = _play(stage, world.journals, quiet=json_output)
        findings = claims.check(evidence)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    if json_output:
        terminal.as_json([{"claim": finding.claim, "passed": finding.passed, "sentence": finding.sentence} for finding in findings])
    else:
        _show(findings, directory if keep else None, run)
    return Exit.OK if all(finding.passed for finding in findings) else Exit.NOT_VERIFIED


def _play(stage: _Stage, journals: Any, *, quiet: bool) -> tuple[claims.Evidence, str]:
    os.environ.update(stage.setting.environment)
    try:
        with terminal.progress("starting the six processes"):
            start_detached(stage.setting.configuration, stage.layout, idle_exit_seconds=RUN_SECONDS_MAX)
    finally:
        for name in stage.setting.environment:
            del os.environ[name]
    try:
        _chapter("An agent is sent to roll out the nightly build. It is an ordinary program; it has never heard of us.", quiet)
        approved = _run_agent(stage, quiet)
        run = stage.api.get("/v1/runs", list[RunView], limit=1)[0].run
        _chapter("What the record says it did:", quiet)
        if not quiet:
            subprocess.run(stage.command("trace", run), check=False)
        told = _told(stage, run, approved, journals())
    finally:
        with terminal.progress("ending everything"):
            stop_group(stage.api, stage.layout)
    _chapter("The record is verified offline, and one field of a copy of it is altered:", quiet)
    verified, altered, found = _verify(stage, told.export, told.key, quiet)
    return (
        claims.Evidence(
            events=told.events,
            journals=told.journals,
            output=claims.agent_output(told.events),
            summary=told.summary,
            approved=approved,
            verified=verified,
            altered=altered,
            found=found,
            secrets=stage.setting.secrets,
            written=b"".join(_everything_written(stage.layout.root)) + told.export.read_bytes(),
            remains=remains([run], sandboxes=stage.layout.sandboxes),
        ),
        run,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    events: list[dict[str, Any]]
    journals: Journals
    summary: str
    export: Path
    key: str


def _run_agent(stage: _Stage, quiet: bool) -> bool:
    """Runs the agent to its end; returns what the approver said."""
    words = ["run", stage.setting.agent, stage.setting.task]
    with _second_process(stage) if not stage.by_hand else _nobody():
        subprocess.run(stage.command(*words), check=False, timeout=RUN_SECONDS_MAX, stdout=subprocess.DEVNULL if quiet else None)
    holds = stage.api.get("/v1/holds", list[HoldView])
    return any(hold.state == "redeemed" for hold in holds)


@contextmanager
def _nobody() -> Iterator[None]:
    yield


@contextmanager
def _second_process(stage: _Stage) -> Iterator[None]:
    """Somebody else, with `bailiwick approve` in another terminal."""
    over = threading.Event()

    def answer() -> None:
        answered: set[str] = set()
        while not over.wait(_POLL_SECONDS):
            try:
                waiting = stage.api.get("/v1/holds", list[HoldView], state="pending")
            except BailiwickError:
                continue
            for hold in waiting:
                if hold.hold not in answered:
                    answered.add(hold.hold)
                    words = stage.command("approve", hold.hold, "--yes", "--why", "the ticket is approved")
                    said = subprocess.run(words, check=False, capture_output=True, text=True)
                    if said.returncode != 0:
                        terminal.note(said.stderr.strip())

    approver = threading.Thread(target=answer, daemon=True)
    approver.start()
    try:
        yield
    finally:
        over.set()
        approver.join()


def _told(stage: _Stage, run: str, approved: bool, journals: Journals) -> _Told:
    export = stage.setting.directory / "run.bailiwick"
    with export.open("wb") as file:
        stage.api.download("/v1/record/export", file, run=run)
    return _Told(
        events=[recorded["event"] for recorded in stream(stage.api, run, follow=False)],
        journals=journals,
        summary=_summary(stage, run),
        export=export,
        key=stage.api.text("/v1/record/key").strip(),
    )


def _summary(stage: _Stage, run: str) -> str:
    """The file the agent left in its workspace, as it came back."""
    archive = io.BytesIO()
    try:
        stage.api.download(f"/v1/runs/{run}/changes.tar", archive)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            file = tar.extractfile("summary.json")
            return file.read().decode() if file is not None else ""
    except (BailiwickError, KeyError):  # it left none: the claims say what that means
        return ""


def _verify(stage: _Stage, export: Path, key: str, quiet: bool) -> tuple[str | None, int, int | None]:
    """What verifying found wrong with the export, which event was altered in a copy, and which one the verification named."""
    wrong: str | None = None
    try:
        verified = verify_export(export, key)
        _say(f"  verified: {verified.events} events of this run, in a signed record of {verified.size}", quiet)
    except Tampered as tampered:
        wrong = str(tampered)
    copy = stage.setting.directory / "altered.bailiwick"
    try:
        altered = alter(export, copy)
    except ValueError as error:
        _say(f"  {error}", quiet)
        return wrong, 0, None
    try:
        verify_export(copy, key)
    except Tampered as tampered:
        _say(f"  altered copy: {tampered}", quiet)
        return wrong, altered, tampered.sequence
    return wrong, altered, None


def _everything_written(root: Path) -> Iterator[bytes]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def _chapter(text: str, quiet: bool) -> None:
    _say(f"\n{terminal.styled(text, 'bold')}\n", quiet)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        terminal.say(text)
        sys.stdout.flush()


def _show(findings: list[claims.Finding], kept: Path | None, run: str) -> None:
    _chapter("What was claimed, and what the servers, the record and this machine say:", quiet=False)
    for finding in findings:
        mark = terminal.styled("✓", "green") if finding.passed else terminal.styled("✗", "red")
        terminal.say(f"  {mark} {terminal.styled(finding.claim, 'bold')}")
        for line in textwrap.wrap(finding.sentence, max(40, terminal.width() - 6)):
            terminal.say(f"    {line}")
    failed = sum(not finding.passed for finding in findings)
    terminal.say()
    terminal.say(f"{len(findings)} claims checked, {'all hold' if not failed else f'{failed} FAILED'}")
    if kept is not None:
        terminal.say(f"kept: {kept} (run {run}); look again with BAILIWICK_STATE={kept}/state bailiwick trace last")
