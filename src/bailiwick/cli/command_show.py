"""`ps`, `logs`, `trace`: what runs, what a run said, what a run did."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bailiwick.cli import events, options, terminal
from bailiwick.kernel.errors import BailiwickError

if TYPE_CHECKING:
    from bailiwick.cli.client import Client
    from bailiwick.governor.views import RunView

_STYLES = {"running": "green", "paused": "yellow", "ending": "yellow"}


commands = typer.Typer(rich_markup_mode=None)


@commands.command("ps", short_help="List runs")
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only this agent's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many, newest first.")] = 50,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Lists the runs that have not ended, newest first.

    \b
    bailiwick ps
    bailiwick ps --all --agent deployer
    bailiwick ps --all --json | jq '.[] | select(.denied > 0) | .run'
    """
    import msgspec

    from bailiwick.governor.lifecycle import RunState
    from bailiwick.governor.views import RunView

    api = options.client(state)
    states = [None] if everything else [state for state in RunState if state is not RunState.ENDED]
    found = {run.run: run for each in states for run in api.get("/v1/runs", list[RunView], state=each, agent=agent, limit=limit)}
    runs = sorted(found.values(), key=lambda run: run.run, reverse=True)[:limit]
    if json:
        terminal.as_json([msgspec.to_builtins(run) for run in runs])
        return
    if not runs:
        terminal.note("no run" if everything else "no run is live; `bailiwick ps --all` lists those that have ended")
        return
    now = datetime.now(UTC).isoformat()
    rows = [[run.run, run.agent, how(run), _ago(run.requested, now), str(run.calls), str(run.writes), terminal.one_line(run.task)] for run in runs]
    styles = [["bold", "", _STYLES.get(run.state, "" if run.status == 0 else "red"), "", "", "", "dim"] for run in runs]
    terminal.table(["RUN", "AGENT", "STATE", "AGE", "CALLS", "WRITES", "TASK"], rows, styles=styles)


@commands.command("logs", short_help="What an agent wrote")
def logs(
    run: options.Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Each piece of output as a line of JSON.")] = False,
    state: options.State = None,
) -> None:
    """Prints what the agent of a run wrote: its standard output here, its standard error there.

    \b
    bailiwick logs last
    bailiwick logs run-01hv3k8m9c2x7q4tz --follow
    """
    from bailiwick.cli.live import write_output

    api = options.client(state)
    for event in stream(api, options.run_id(api, run), follow=follow):
        if event["event"]["kind"] == "run.output":
            if json:
                terminal.json_line(event)
            else:
                write_output(event)


@commands.command("trace", short_help="What a run did, step by step")
def trace(
    run: options.Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    output: Annotated[bool, typer.Option("--output", help="What the agent wrote, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The recorded events, a line of JSON each.")] = False,
    state: options.State = None,
) -> None:
    """Tells what a run did, step by step: each action, its decision and the rules behind it, its outcome, who signed.

    \b
    bailiwick trace last
    bailiwick trace last --json | jq 'select(.event.decision == "deny")'
    """
    from bailiwick.governor.views import RunView

    api = options.client(state)
    name = options.run_id(api, run)
    found = api.get(f"/v1/runs/{name}", RunView)
    if json:
        for event in stream(api, name, follow=follow):
            terminal.json_line(event)
        return
    columns = terminal.width()
    terminal.say(terminal.styled(f"{found.run} · {terminal.shown(found.agent)} · {how(found)}", "bold"))
    if found.task:
        terminal.say(terminal.cut_to(terminal.one_line(found.task), 4 * columns))
    terminal.say(f"requested {found.requested} by {terminal.shown(found.operator)}{', observe mode' if found.observe else ''}")
    for since, line in events.lines(stream(api, name, follow=follow), output=output):
        terminal.say(events.rendered(since, line, columns))
        if follow:
            sys.stdout.flush()
    end = api.get(f"/v1/runs/{name}", RunView)
    terminal.say(terminal.styled(totals(end), "bold"))


def how(run: "RunView") -> str:
    """A run's state, and once it has ended, how."""
    if run.state != "ended":
        return run.state
    if run.cause == "exited":
        return f"exited {run.status}"
    return terminal.shown(run.cause or "ended")


def totals(run: "RunView") -> str:
    facts = [f"{run.calls:,} calls", f"{run.writes:,} writes", f"{run.denied:,} denied", f"{run.held:,} held"]
    if run.tokens:
        facts.append(f"{run.tokens:,} tokens")
    if run.microusd:
        facts.append(terminal.dollars(run.microusd))
    if run.started and run.ended:
        facts.append(terminal.seconds(events.between(run.started, run.ended)))
    return " · ".join(facts)


def stream(api: "Client", run: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The run's events; with `follow` until its end, whatever becomes of the connection."""
    if not follow:
        yield from api.lines(f"/v1/runs/{run}/events")
        return
    from queue import SimpleQueue

    from bailiwick.cli.follow import Arrived, Inbox, Over
    from bailiwick.cli.follow import follow as fill

    inbox: Inbox = SimpleQueue()
    fill(api, run, inbox)
    while True:
        match inbox.get():
            case Arrived(event=event):
                yield event
            case Over(error=BailiwickError() as error):
                raise error
            case _:
                return


def _ago(then: str, now: str) -> str:
    passed = max(0.0, events.between(then, now))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if passed >= length:
            return f"{int(passed // length)}{unit}"
    return f"{int(passed)}s"
