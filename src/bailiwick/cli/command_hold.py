"""`holds`, `approve`, `deny`: what waits for a person, and the person's answer."""

from typing import TYPE_CHECKING, Annotated

import typer

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Stop
from bailiwick.kernel.errors import CallerError

if TYPE_CHECKING:
    from bailiwick.cli.client import Client
    from bailiwick.governor.views import HoldView

Hold = Annotated[str, typer.Argument(metavar="HOLD", help="A hold's id, its beginning or end if only one has it, or `last`.")]

_SHORTEST = 8  # of an id that is acted on: a slip of the hand must not name another hold


commands = typer.Typer(rich_markup_mode=None)


@commands.command("holds", short_help="What waits for sign-off")
def holds(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that are settled, too.")] = False,
    show: Annotated[str | None, typer.Option("--show", metavar="HOLD", help="One hold, whole.")] = None,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Lists the actions that wait for sign-off.

    \b
    bailiwick holds
    bailiwick holds --show last
    bailiwick holds --json | jq -r '.[].hold'
    """
    import msgspec

    from bailiwick.cli.live import held
    from bailiwick.governor.views import HoldView

    api = options.client(state)
    found = [_meant(api, show)] if show is not None else api.get("/v1/holds", list[HoldView], state=None if everything else "pending")
    if json:
        terminal.as_json([msgspec.to_builtins(hold) for hold in found])
        return
    if not found:
        terminal.note("no hold" if everything else "nothing waits for sign-off")
    for hold in found:
        for line in held(hold):
            terminal.say(line)


@commands.command("approve", short_help="Let a held action happen, once")
def approve(
    hold: Hold,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="A word for the record.")] = "",
    yes: options.Yes = False,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Lets a held action happen: exactly the one shown, once, before it expires.

    Shows what it is and asks; without a terminal to ask at it needs --yes. An id may be shortened, to no less than 8 characters.

    \b
    bailiwick approve last
    bailiwick approve hold-01hv3k8m9c2x7q4tz --why "change 4711" --yes
    """
    _settle(options.client(state), hold, granted=True, why=why, yes=yes, json=json)


@commands.command("deny", short_help="Refuse a held action")
def deny(
    hold: Hold,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Told to the agent and kept in the record.")],
    yes: options.Yes = False,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Refuses a held action, and says why. What was approved and is not used yet is taken back.

    \b
    bailiwick deny last --why "not on a Friday"
    """
    if not why.strip():
        raise CallerError("--why is empty; say why, for the agent and for the record")
    _settle(options.client(state), hold, granted=False, why=why, yes=yes, json=json)


def _settle(api: "Client", named: str, *, granted: bool, why: str, yes: bool, json: bool) -> None:
    import msgspec

    from bailiwick.cli.live import held
    from bailiwick.governor.views import HoldView

    if named != options.LAST and 0 < len(named.removeprefix("hold-")) < _SHORTEST:
        raise CallerError(f"{named!r} is too short to settle a hold by; give at least {_SHORTEST} characters after `hold-`; `bailiwick holds` lists them")
    hold = _meant(api, named)
    if not json:
        for line in held(hold):
            terminal.note(line)
    if hold.state != "pending" and (granted or hold.state != "granted"):  # a grant may be taken back until it is used
        raise CallerError(f"{hold.hold} is {hold.state}; only a pending one can be settled", code="conflict")
    asked = not yes and (granted or terminal.interactive())  # to refuse takes no second thought where nobody can be asked
    if asked and not terminal.ask("let it happen, once?" if granted else "refuse it?"):
        terminal.note(f"{hold.hold} is left as it was")
        raise Stop(Exit.REFUSED)
    settled = api.post(f"/v1/holds/{hold.hold}/{'approve' if granted else 'deny'}", {"why": why}, HoldView)
    if json:
        terminal.as_json(msgspec.to_builtins(settled))
    elif settled.state == "pending":
        terminal.say(f"{settled.hold} has {len(settled.signed)} of {settled.quorum} signatures")
    else:
        terminal.say(f"{settled.hold} {settled.state}")


def _meant(api: "Client", named: str) -> "HoldView":
    from bailiwick.cli.client import segment
    from bailiwick.governor.views import HoldView

    if named.startswith("hold-") and len(named) == 22:
        return api.get(f"/v1/holds/{segment(named)}", HoldView)
    if not named:
        raise CallerError("no hold is named; `bailiwick holds` lists them")
    known = sorted(api.get("/v1/holds", list[HoldView], state="pending"), key=lambda hold: hold.opened, reverse=True)
    if named == options.LAST:
        meant = known[:1]
    else:
        meant = [hold for hold in known if hold.hold.removeprefix("hold-").startswith(named.removeprefix("hold-")) or hold.hold.endswith(named)]
    if len(meant) != 1:
        found = "no hold that waits" if not meant else f"{len(meant)} holds that wait"
        raise CallerError(f"{named!r} names {found}; `bailiwick holds` lists them", code="not-found")
    return meant[0]
