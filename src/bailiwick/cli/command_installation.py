"""`status`, `doctor`, `demo`, `version`: the installation and the machine under it."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Stop, Unreachable
from bailiwick.kernel.errors import BailiwickError

if TYPE_CHECKING:
    from bailiwick.kernel.layout import Layout


commands = typer.Typer(rich_markup_mode=None)


@commands.command("status", short_help="What is up")
def status(json: options.Json = False, state: options.State = None) -> None:
    """Shows what is up: the processes, the live runs, what waits for sign-off, the record.

    \b
    bailiwick status
    bailiwick status --json | jq .record_size
    """
    import msgspec

    from bailiwick.governor.views import StatusView

    found = options.client(state).get("/v1/status", StatusView)
    if json:
        terminal.as_json(msgspec.to_builtins(found))
        return
    terminal.say(f"bailiwick {found.version}, up since {found.started}")
    terminal.say(f"  configuration  {terminal.shown(found.configuration or 'none')}")
    terminal.say(f"  state          {terminal.shown(found.state_directory)}")
    waits = f", {found.holds_pending} waiting for sign-off: bailiwick holds" if found.holds_pending else ""
    terminal.say(f"  runs           {found.runs_live} live{waits}")
    terminal.say(f"  record         {found.record_size:,} events, root {found.record_root}")
    rows = [
        [each.name, each.state, str(each.pid or "-"), str(each.uid if each.uid is not None else "-"), str(each.restarts), terminal.shown(each.detail)]
        for each in found.processes
    ]
    styles = [["", "green" if each.state == "up" else "red", "", "", "", "dim"] for each in found.processes]
    terminal.table(["PROCESS", "STATE", "PID", "UID", "RESTARTS", ""], rows, styles=styles)


@commands.command("doctor", short_help="What this machine can guarantee")
def doctor(json: options.Json = False, state: options.State = None) -> None:
    """Says what this machine can guarantee (namespaces, cgroups, seccomp, bubblewrap), what is missing, and how to get it.

    The exit status is 5 when something is missing without which no run can start.

    \b
    bailiwick doctor
    bailiwick doctor --json | jq '.[] | select(.ok | not)'
    """
    from bailiwick.sandbox.capabilities import survey

    with terminal.progress("looking at this machine"):
        facts = [{"name": fact.name, "ok": fact.ok, "detail": fact.detail, "way_out": fact.way_out, "required": fact.required} for fact in survey()]
    facts += _own_facts(options.layout(state))
    if json:
        terminal.as_json(facts)
    else:
        for fact in facts:
            _tell(fact)
    if any(not fact["ok"] and fact["required"] for fact in facts):
        raise Stop(Exit.BROKEN)


@commands.command("demo", short_help="The whole story on this machine", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def demo(context: typer.Context) -> None:
    """Shows the whole story on this machine: an agent that is allowed, held, denied and governed all the same. No key, no network, no daemon.

    \b
    bailiwick demo
    """
    from bailiwick.cli.demo.command import main

    raise typer.Exit(main(context.args))


@commands.command("version", short_help="Print the version")
def version(json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False) -> None:
    """Prints the version."""
    import bailiwick

    if json:
        terminal.as_json({"version": bailiwick.__version__, "python": sys.version.split()[0]})
    else:
        terminal.say(f"bailiwick {bailiwick.__version__}")


def _tell(fact: dict[str, Any]) -> None:
    sign, style = ("✓", "green") if fact["ok"] else ("✗", "red") if fact["required"] else ("·", "yellow")
    terminal.say(f"{terminal.styled(sign, style)} {terminal.shown(fact['name'])}: {terminal.shown(fact['detail'])}")
    if not fact["ok"] and fact["way_out"]:
        terminal.say(f"    {terminal.shown(fact['way_out'])}")


def _own_facts(layout: "Layout") -> list[dict[str, Any]]:
    """The interpreter, the state directory, and the processes where they are up."""
    import os

    current = ".".join(map(str, sys.version_info[:3]))
    facts = [_fact("python", (3, 11) <= sys.version_info[:2] < (3, 15), current, "use Python 3.11 to 3.14")]
    existing = next(path for path in (layout.root, *layout.root.parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    free = os.statvfs(existing)
    facts.append(_fact("state directory", writable, f"{layout.root}{'' if writable else ' is not writable'}", "name another with --state or BAILIWICK_STATE"))
    space = free.f_bavail * free.f_frsize
    facts.append(_fact("disk space", space > 1 << 30, f"{terminal.size(space)} free", "make room: the record and the workspaces lie there"))
    return facts + _process_facts(layout)


def _process_facts(layout: "Layout") -> list[dict[str, Any]]:
    from bailiwick.cli.client import Client
    from bailiwick.governor.views import StatusView

    try:
        found = Client(layout).get("/v1/status", StatusView)
    except Unreachable:
        return [_fact("processes", True, "none is up", "", required=False)]
    except BailiwickError as error:
        return [_fact("processes", False, str(error), "`bailiwick status` says more", required=False)]
    ill = [process.name for process in found.processes if process.state != "up"]
    uids = {process.uid for process in found.processes}
    apart = len(uids) > 1
    return [
        _fact("processes", not ill, "all up" if not ill else f"not up: {', '.join(ill)}", f"{layout.logs} says why", required=False),
        _fact("processes apart", apart, "each has a uid of its own" if apart else "all share one uid", "start as root to give each its own", required=False),
    ]


def _fact(name: str, ok: bool, detail: str, way_out: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail, "way_out": way_out, "required": required}
