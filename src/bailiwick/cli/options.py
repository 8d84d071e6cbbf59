"""Options that several commands share, and the run a person means."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.layout import Layout

if TYPE_CHECKING:
    from bailiwick.cli.client import Client

CONFIGURATION = "bailiwick.yaml"
LAST = "last"

State = Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Where the installation keeps its state [BAILIWICK_STATE].")]
Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="The configuration [BAILIWICK_CONFIG, or bailiwick.yaml here].")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning or end if only one has it, or `last`.")]


def layout(state: Path | None) -> Layout:
    return Layout(state.absolute()) if state is not None else Layout.default()


def client(state: Path | None) -> "Client":
    from bailiwick.cli.client import Client

    return Client(layout(state))


def configuration(chosen: Path | None) -> Path | None:
    """The file that is meant; None when none was named and there is none here."""
    if chosen is not None:
        return chosen
    if named := os.environ.get("BAILIWICK_CONFIG"):
        return Path(named)
    here = Path(CONFIGURATION)
    return here if here.exists() else None


def run_id(api: "Client", named: str) -> str:
    """The id of the run a person named. CallerError when none or several are meant."""
    if not named:
        raise CallerError("no run is named; `bailiwick ps --all` lists them")
    if named.startswith("run-") and len(named) == 21:
        return named
    from bailiwick.governor.views import RunView

    known = [run.run for run in api.get("/v1/runs", list[RunView], limit=1 if named == LAST else 1000)]
    if named == LAST:
        if not known:
            raise CallerError("there is no run yet; start one with `bailiwick run`")
        return known[0]
    meant = [run for run in known if run == named or run.removeprefix("run-").startswith(named.removeprefix("run-")) or run.endswith(named)]
    if len(meant) != 1:
        found = "no run" if not meant else f"{len(meant)} runs"
        raise CallerError(f"{named!r} names {found}; `bailiwick ps --all` lists them", code="not-found")
    return meant[0]
