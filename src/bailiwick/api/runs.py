"""Routes of runs: ask for one, watch it, stop it, and what it changed in its workspace."""

from typing import Annotated

import msgspec
from fastapi import Query, Request, Response
from starlette.responses import FileResponse

from bailiwick.api import stream
from bailiwick.api.declare import LINES, TAR, Routes, RunPath, answer, body_of, operator_of
from bailiwick.api.governance import FROM_THE_START, Governance
from bailiwick.api.record import After
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.views import ChangesView, RunRequest, RunView
from bailiwick.kernel.errors import CallerError, NotFound
from bailiwick.kernel.ids import RunId

RUNS_MAX = 1_000

Limit = Annotated[int, Query(ge=1, le=RUNS_MAX, description="at most so many, newest first")]
AgentQuery = Annotated[str | None, Query(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="only this agent's runs")]

_ONE_OF_THEM = {
    "oneOf": [
        {"required": ["agent"], "properties": {"agent": {"type": "string"}, "command": {"maxItems": 0}}},
        {"required": ["command"], "properties": {"agent": {"type": "null"}, "command": {"minItems": 1}}},
    ]
}


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=2_000)] = ""


class Applied(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The directory the run's changes were applied to, as the operator's machine names it."""

    directory: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]


def routes(governance: Governance, followers: stream.Followers) -> Routes:
    part = Routes()
    _reading(part, governance, followers)
    _acting(part, governance)
    return part


def _reading(part: Routes, governance: Governance, followers: stream.Followers) -> None:
    @part.add("GET", "/runs", "viewer", answer=list[RunView])
    async def runs(state: RunState | None = None, agent: AgentQuery = None, limit: Limit = 100) -> Response:
        """Runs, newest first."""
        return answer(governance.runs(state=state.value if state else None, agent=agent, limit=limit))

    @part.add("GET", "/runs/{run}", "viewer", answer=RunView)
    async def run(run: RunPath) -> Response:
        """One run: its state, its totals, and why it ended."""
        return answer(governance.run(RunId(run)))

    @part.add("GET", "/runs/{run}/events", "viewer", media=LINES)
    async def events(run: RunPath, after: After = FROM_THE_START, follow: bool = False) -> Response:
        """The run's events, a JSON object a line; with `follow` as they are committed, until the run has ended."""
        governance.run(RunId(run))
        return stream.respond(governance, followers, run=RunId(run), after=after, follow=follow)

    @part.add("GET", "/runs/{run}/changes", "viewer", answer=ChangesView)
    async def changes(run: RunPath) -> Response:
        """What the run changed in its workspace."""
        return answer(governance.changes(RunId(run)))

    @part.add("GET", "/runs/{run}/changes.tar", "viewer", media=TAR)
    async def archive(run: RunPath) -> Response:
        """The files the run added and modified, as a tar."""
        found = governance.changes_archive(RunId(run))
        if found is None:
            raise NotFound(f"run {run} brought no files back; its list of changes says what it did")
        return FileResponse(found, media_type=TAR, filename=f"{run}.tar")


def _acting(part: Routes, governance: Governance) -> None:
    @part.add("POST", "/runs", "operator", answer=RunView, takes=RunRequest, narrowed=_ONE_OF_THEM, status=201)
    async def request(request: Request) -> Response:
        """Asks for a run: of an agent on a task, or of a command of your own."""
        wanted = await body_of(request, RunRequest)
        if (wanted.agent is None) == (not wanted.command):
            raise CallerError("a run is of an `agent` or of a `command`; give one of them", code="invalid")
        return answer(await governance.request_run(wanted, operator_of(request)), 201)

    @part.add("POST", "/runs/{run}/kill", "operator", answer=RunView, takes=Reason)
    async def kill(run: RunPath, request: Request) -> Response:
        """Ends the run: its gateway is closed, its processes are killed, its leases are revoked."""
        return answer(await governance.kill_run(RunId(run), operator_of(request), (await body_of(request, Reason)).reason))

    @part.add("POST", "/runs/{run}/pause", "operator", answer=RunView, takes=Reason)
    async def pause(run: RunPath, request: Request) -> Response:
        """Freezes the run's processes where they are."""
        return answer(await governance.pause_run(RunId(run), operator_of(request), (await body_of(request, Reason)).reason))

    @part.add("POST", "/runs/{run}/resume", "operator", answer=RunView, takes=Reason)
    async def resume(run: RunPath, request: Request) -> Response:
        """Lets a paused run go on."""
        return answer(await governance.resume_run(RunId(run), operator_of(request), (await body_of(request, Reason)).reason))

    @part.add("POST", "/runs/{run}/applied", "operator", status=204, takes=Applied)
    async def applied(run: RunPath, request: Request) -> Response:
        """Notes that the run's changes were applied to a directory."""
        body = await body_of(request, Applied)
        await governance.mark_applied(RunId(run), operator_of(request), body.directory)
        return Response(status_code=204)
