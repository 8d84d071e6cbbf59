"""`kill`, `pause`, `resume`, `policy show`: stopping a run, and reading what an agent is held to."""

import time
from typing import Annotated

import typer

from bailiwick.cli import options, terminal
from bailiwick.kernel.errors import BackendError

END_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.03

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="A word for the record.")]


commands = typer.Typer(rich_markup_mode=None)
policy = typer.Typer(help="What an agent may do, as it is enforced.", no_args_is_help=True, rich_markup_mode=None)
commands.add_typer(policy, name="policy")


@commands.command("kill", short_help="End a run")
def kill(run: options.Run, reason: Reason = "", json: options.Json = False, state: options.State = None) -> None:
    """Ends a run: its way out is closed, its processes are killed, its leases are revoked. Returns when nothing of it is left.

    \b
    bailiwick kill last --reason "it loops"
    """
    _order(run, "kill", reason, json, state)


@commands.command("pause", short_help="Freeze a run")
def pause(run: options.Run, reason: Reason = "", json: options.Json = False, state: options.State = None) -> None:
    """Freezes a run's processes where they are.

    \b
    bailiwick pause last --reason "looking at it"
    """
    _order(run, "pause", reason, json, state)


@commands.command("resume", short_help="Let a paused run go on")
def resume(run: options.Run, reason: Reason = "", json: options.Json = False, state: options.State = None) -> None:
    """Lets a paused run go on.

    \b
    bailiwick resume last
    """
    _order(run, "resume", reason, json, state)


@policy.command("show", short_help="Print the compiled boundary of an agent")
def show(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="An agent of the configuration.")],
    config: options.Config = None,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Prints an agent's boundary as it is compiled: the Cedar policies that decide.

    Reads the configuration where one is named or stands here; else asks the installation that is up.

    \b
    bailiwick policy show deployer
    """
    chosen = options.configuration(config)
    if chosen is not None:
        from bailiwick.app.configuration import installation, load_configuration
        from bailiwick.critic.boundary import render_policy
        from bailiwick.governor.definition import compiled
        from bailiwick.kernel.errors import NotFound

        loaded = load_configuration(chosen)
        declared = loaded.agents.get(agent)
        if declared is None:
            raise NotFound(f"agent {agent!r} is not in {chosen}; known: {', '.join(sorted(loaded.agents)) or 'none'}")
        text = render_policy(compiled(agent, declared, installation(loaded, chosen.absolute().parent, trust_bundle="")))
    else:
        from bailiwick.cli.client import segment

        text = options.client(state).text(f"/v1/agents/{segment(agent)}/policy")
    if json:
        terminal.as_json({"agent": agent, "policy": text})
    else:
        terminal.say(terminal.shown(text.rstrip("\n"), lines=True))


def _order(run: str, order: str, reason: str, json: bool, state: options.State) -> None:
    import msgspec

    from bailiwick.governor.views import RunView

    api = options.client(state)
    name = options.run_id(api, run)
    after = api.post(f"/v1/runs/{name}/{order}", {"reason": reason}, RunView)
    if order == "kill":
        deadline = time.monotonic() + END_SECONDS_MAX
        with terminal.progress(f"ending {name}"):
            while after.state != "ended":
                if time.monotonic() > deadline:
                    raise BackendError(f"{name} is {after.state} after {END_SECONDS_MAX:g} s; its end goes on, `bailiwick trace {name}` shows how far it is")
                time.sleep(_POLL_SECONDS)
                after = api.get(f"/v1/runs/{name}", RunView)
    if json:
        terminal.as_json(msgspec.to_builtins(after))
    else:
        terminal.say(f"{after.run} is {after.state}")
