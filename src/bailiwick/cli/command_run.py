"""`run`: an agent of the configuration or any command, from the order to its end, watched."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Refused, Stop, Unreachable, of_run
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError

if TYPE_CHECKING:
    from bailiwick.cli.client import Client
    from bailiwick.cli.follow import Inbox
    from bailiwick.cli.live import View
    from bailiwick.governor.views import HoldView, RunRequest
    from bailiwick.kernel.layout import Layout

IDLE_EXIT_SECONDS = 60.0  # what `run` started stops by itself, this long after its last run
END_SECONDS_MAX = 45.0  # from the order to stop until the run's end is recorded
STOP_SECONDS_MAX = 40.0
_EARLY_KEY_SECONDS = 0.4  # a key pressed this soon was meant for what stood there before

_COMMAND = "bailiwick.command"


class _RunCommand(TyperCommand):
    """Everything after `--` is the command, whatever it looks like."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_COMMAND] = args[:at], args[at + 1 :]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


commands = typer.Typer(rich_markup_mode=None)


@commands.command("run", short_help="Run an agent or a command in a sandbox of its own", cls=_RunCommand)
def run(
    ctx: typer.Context,
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="An agent of the configuration.")] = None,
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="What it is to do.")] = None,
    observe: Annotated[bool, typer.Option("--observe", help="Forward what the network rules allow, and record what would have been decided.")] = False,
    workspace: Annotated[Path | None, typer.Option("--workspace", "-w", metavar="DIR", help="For a command: the directory copied in [here].")] = None,
    no_workspace: Annotated[bool, typer.Option("--no-workspace", help="For a command: copy nothing in.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the run's id and do not wait.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Every event as a line of JSON.")] = False,
    config: options.Config = None,
    state: options.State = None,
) -> None:
    """Runs an agent of the configuration on a task, or any command after `--`, in a sandbox of its own.

    Starts what is not up. Shows what the run does as it does it; where it is held for sign-off and you may answer, y and n do. Ctrl-C ends the run.
    What the agent changed in its workspace comes back with `bailiwick diff` and `bailiwick apply`.

    \b
    bailiwick run deployer "Roll out the nightly build"
    bailiwick run --observe -- python my_agent.py
    bailiwick run --no-workspace --json -- curl https://example.org/ | jq .event.kind
    bailiwick run --detach reviewer "Look at the open pull requests"

    The exit status is 0 when the agent's is 0, 1 when the agent failed, 5 when the sandbox broke, 8 when the run was killed or reached a limit, 130
    when you interrupted it.
    """
    command: list[str] = ctx.meta.get(_COMMAND, [])
    request = _request(agent, task, command, observe, None if no_workspace else workspace, no_workspace)
    layout = options.layout(state)
    api = options.client(state)
    from bailiwick.governor.views import RunView

    chosen = options.configuration(config)
    if agent is not None and chosen is None and not _is_up(layout):
        raise Stop(Exit.CONFIGURATION, f"agent {agent!r} needs a configuration and there is no {options.CONFIGURATION} here; `bailiwick init` makes one")
    started_here = ensure_up(layout, chosen)
    if not started_here:
        _say_if_another(api, chosen if config is not None or agent is not None else None)
    from queue import SimpleQueue

    from bailiwick.cli import follow

    inbox: Inbox = SimpleQueue()
    with follow.signals(inbox):  # from before the run is there: an interrupt is never lost between the two
        made = api.post("/v1/runs", request, RunView)
        if detach:
            terminal.say(made.run)
            return
        raise Stop(Watch(api, layout, made, started_here=started_here).until_end(inbox, as_json=json))


def ensure_up(layout: "Layout", configuration: Path | None, *, idle_exit_seconds: float | None = IDLE_EXIT_SECONDS) -> bool:
    """Starts the processes unless they are up. Returns whether it did. Interrupted, it leaves none behind."""
    if _is_up(layout):
        return False
    if configuration is not None and not configuration.exists():
        raise Stop(Exit.CONFIGURATION, f"{configuration} does not exist; `bailiwick init` makes a starter")
    from bailiwick.app.detached import start_detached

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        with terminal.progress("starting the processes"):
            start_detached(configuration, layout, idle_exit_seconds=idle_exit_seconds)
    except BackendError:
        if configuration is not None:
            _say_what_is_wrong(configuration)
        raise
    except KeyboardInterrupt:
        if _is_up(layout):
            stop_group(options.client(layout.root), layout)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return True


def _say_what_is_wrong(configuration: Path) -> None:
    """Invalid, when that is why nothing came up."""
    from bailiwick.app.configuration import load_configuration

    load_configuration(configuration)


def stop_group(api: "Client", layout: "Layout") -> None:
    """Orders the end of everything and waits for it. Unreachable when it takes too long."""
    api.post("/v1/shutdown", {}, dict[str, bool])
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while _is_up(layout) or (layout.sockets / "processes.json").exists():
        if time.monotonic() > deadline:
            raise Unreachable(f"the processes have not ended after {STOP_SECONDS_MAX:g} s; {layout.logs} may say why")
        time.sleep(0.05)


def _is_up(layout: "Layout") -> bool:
    from bailiwick.app.detached import is_up

    return is_up(layout)


def _request(agent: str | None, task: str | None, command: list[str], observe: bool, workspace: Path | None, no_workspace: bool) -> "RunRequest":
    from bailiwick.governor.runtime import find_runtime
    from bailiwick.governor.views import RunRequest

    if command and agent is not None:
        raise typer.BadParameter(f"both an agent ({agent}) and a command after `--` are given; give one of them")
    if agent is not None:
        if workspace is not None or no_workspace:
            raise typer.BadParameter("an agent's workspace is the configuration's; --workspace and --no-workspace are for a command")
        return RunRequest(agent=agent, task=task or "", observe=observe)
    if not command:
        raise typer.BadParameter("neither an agent nor a command is given; name an agent, or write the command after `--`")
    found = find_runtime(command, [], os.environ.get("PATH", ""))
    return RunRequest(command=found.command, trees=found.trees, observe=observe, workspace=None if no_workspace else _directory(workspace))


def _directory(named: Path | None) -> str | None:
    """What is copied in for a command: the directory named, or this one, unless it is a home or the root."""
    if named is not None:
        if not named.is_dir():
            raise CallerError(f"workspace {str(named)!r} is not a directory; name one, or use --no-workspace")
        return str(named.resolve())
    here = Path.cwd()
    if here == Path(here.anchor) or here == Path.home():
        terminal.note(f"bailiwick: {here} is not copied in; --workspace DIR says what is")
        return None
    return str(here)


def _say_if_another(api: "Client", chosen: Path | None) -> None:
    """What is up reads its configuration once: neither another file nor a later version of its own is in force."""
    from datetime import datetime

    from bailiwick.governor.views import StatusView

    status = api.get("/v1/status", StatusView)
    used = Path(status.configuration)
    if chosen is not None and used != chosen.absolute():
        terminal.note(f"bailiwick: what is up uses {terminal.shown(str(used))}, not {terminal.shown(str(chosen))}; `bailiwick down` first, to use it")
        return
    with suppress(OSError):  # it may be gone, or not ours to look at
        changed = max(each.stat().st_mtime for each in (used, *(used.parent / "policies").glob("*.cedar")))
        if changed > datetime.fromisoformat(status.started).timestamp():
            terminal.note(
                f"bailiwick: {terminal.shown(str(used))} has changed since what is up was started, which still goes by what it was; "
                "`bailiwick down` first, to use it"
            )


@dataclass
class Watch:
    """A run watched to its end: shows what happens, answers holds by key, passes an interrupt on to the run and waits until it is gone."""

    api: "Client"
    layout: "Layout"
    run: Any  # RunView
    started_here: bool
    _pending: "list[HoldView]" = field(default_factory=list)
    _shown_at: float = 0.0
    _interrupted: bool = False
    _deadline: float | None = None
    _ended: dict[str, Any] = field(default_factory=dict)
    _changed: int = 0

    def until_end(self, inbox: "Inbox", *, as_json: bool) -> Exit:
        """`inbox` has signals already."""
        try:
            return self._until_end(inbox, as_json)
        finally:
            if self._interrupted and self.started_here:
                with terminal.progress("stopping the processes"):
                    stop_group(self.api, self.layout)

    def _until_end(self, inbox: "Inbox", as_json: bool) -> Exit:
        from bailiwick.cli import follow, live

        with ExitStack() as stack:
            shown = live.view(self.run.run, self.run.agent, as_json=as_json)
            view = live.Lasting(shown, gone=lambda: inbox.put(follow.Interrupted(signal.SIGHUP)))
            stack.enter_context(view)
            view.note(f"{self.run.run} of {self.run.agent}")
            answers = isinstance(shown, live.Live) and sys.stdin.isatty() and self._may_answer()
            if answers:
                stack.enter_context(follow.keys(inbox))
            follow.follow(self.api, self.run.run, inbox)
            status = self._loop(inbox, view, answers)
            if self._changed:
                changes = "1 change" if self._changed == 1 else f"{self._changed:,} changes"
                view.note(f"{changes} in its workspace: `bailiwick diff {self.run.run}`, `bailiwick apply {self.run.run}`")
        return status

    def _loop(self, inbox: "Inbox", view: "View", answers: bool) -> Exit:
        from bailiwick.cli.follow import Arrived, Interrupted, Key, Over

        while True:
            try:
                item = inbox.get(timeout=None if self._deadline is None else max(0.0, self._deadline - time.monotonic()))
            except Empty:
                view.note(f"{self.run.run} has not ended yet; `bailiwick ps` shows what becomes of it")
                return Exit.INTERRUPTED
            match item:
                case Arrived(event=event):
                    self._heard(event, view, answers)
                case Key(character=character):
                    self._pressed(character, view)
                case Interrupted(signal=signal.SIGHUP) if self._interrupted:
                    pass  # a terminal that is gone is heard of more than once, and insists on nothing
                case Interrupted():
                    if self._interrupted:
                        view.note(f"not waiting for {self.run.run} to end; `bailiwick ps` shows what becomes of it")
                        return Exit.INTERRUPTED
                    self._interrupt(view)
                case Over(error=None):
                    return Exit.INTERRUPTED if self._interrupted else of_run(str(self._ended.get("cause", "")), self._ended.get("status"))
                case Over(error=error):
                    assert error is not None
                    raise error

    def _heard(self, event: dict[str, Any], view: "View", answers: bool) -> None:
        view.event(event)
        what, body = event["event"]["kind"], event["event"].get("body", {})
        if what == "run.ended":
            self._ended = body
        elif what == "run.workspace":
            self._changed = int(body.get("changed", 0))
        elif what == "hold.opened":
            self._show_hold(str(body.get("hold", "")), view, answers)
        elif what in ("hold.signed", "hold.closed", "hold.redeemed"):
            before = len(self._pending)
            self._pending = [hold for hold in self._pending if hold.hold != body.get("hold") or (what == "hold.signed" and hold.quorum > 1)]
            if self._pending and len(self._pending) != before:
                self._offer(view, answers)

    def _show_hold(self, name: str, view: "View", answers: bool) -> None:
        from bailiwick.governor.views import HoldView

        try:
            hold = self.api.get(f"/v1/holds/{name}", HoldView)
        except BailiwickError as error:
            view.note(f"{name} waits for sign-off and cannot be shown: {error}")
            return
        if hold.state == "pending":
            self._pending.append(hold)
            if len(self._pending) == 1 or not answers:
                self._offer(view, answers)

    def _offer(self, view: "View", answers: bool) -> None:
        view.hold(self._pending[0] if answers else self._pending[-1], answers)
        self._shown_at = time.monotonic()

    def _pressed(self, character: str, view: "View") -> None:
        if not self._pending or character not in "yYnN" or time.monotonic() - self._shown_at < _EARLY_KEY_SECONDS:
            return
        hold = self._pending.pop(0)
        granted = character in "yY"
        self._attempt(lambda: self._settle(hold.hold, granted), view, f"{hold.hold} is not settled")

    def _settle(self, hold: str, granted: bool) -> None:
        from bailiwick.governor.views import HoldView

        why = "approved at the terminal of the run" if granted else "denied at the terminal of the run"
        self.api.post(f"/v1/holds/{hold}/{'approve' if granted else 'deny'}", {"why": why}, HoldView)

    def _may_answer(self) -> bool:
        from bailiwick.governor.views import Operator

        me: Operator = self.api.get("/v1/operator", Operator)
        return bool(me.roles & {"approver", "admin"})

    def _interrupt(self, view: "View") -> None:
        """Asks once that the run end, and waits, bounded, until it has."""
        from bailiwick.governor.views import RunView

        self._interrupted = True
        self._deadline = time.monotonic() + END_SECONDS_MAX
        view.note("interrupted: ending the run; once more to leave without waiting")
        try:
            self.api.post(f"/v1/runs/{self.run.run}/kill", {"reason": "interrupted at the terminal"}, RunView)
        except Refused as refused:
            if refused.code != "conflict":  # a conflict: it is ending already
                view.note(f"{self.run.run} could not be ended: {refused}")
        except BailiwickError as error:
            view.note(f"{self.run.run} could not be ended: {error}")

    def _attempt(self, step: Callable[[], None], view: "View", failed: str) -> None:
        try:
            step()
        except BailiwickError as error:
            view.note(f"{failed}: {error}")
