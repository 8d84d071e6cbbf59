"""Routes of the record: events as they are committed, the key that verifies it, and its export."""

from pathlib import Path
from typing import Annotated

from fastapi import Query, Response
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from bailiwick.api import stream
from bailiwick.api.declare import EXPORT, LINES, TEXT, Routes
from bailiwick.api.governance import FROM_THE_START, Governance
from bailiwick.kernel.ids import RunId
from bailiwick.record.event import KINDS

SEQUENCE_MAX = 2**53 - 1
After = Annotated[int, Query(ge=FROM_THE_START, le=SEQUENCE_MAX, description="events with a greater sequence number; -1 is from the start")]
RunQuery = Annotated[str | None, Query(pattern=r"^[a-z0-9-]{1,64}$", description="only this run's events, each proved to be in the record")]
KindQuery = Annotated[list[str] | None, Query(description="only events of these kinds", json_schema_extra={"items": {"enum": list(KINDS)}})]


class FileOnce(FileResponse):
    """A file that was made for this answer, gone when the answer is over."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


def routes(governance: Governance, followers: stream.Followers) -> Routes:
    part = Routes()

    @part.add("GET", "/events", "viewer", media=LINES)
    async def events(after: After = FROM_THE_START, follow: bool = False, kind: KindQuery = None) -> Response:
        """Every event, a JSON object a line; with `follow` as they are committed."""
        return stream.respond(governance, followers, run=None, after=after, follow=follow, kinds=kind or None)

    @part.add("GET", "/record/key", "viewer", media=TEXT)
    async def key() -> Response:
        """The public key that verifies checkpoints, as a C2SP vkey."""
        return Response(governance.record_key() + "\n", media_type=TEXT)

    @part.add("GET", "/record/export", "viewer", media=EXPORT)
    async def export(run: RunQuery = None) -> Response:
        """The record, or one run of it, as one file that is verified offline."""
        made = await governance.export(RunId(run) if run is not None else None)
        return FileOnce(made, media_type=EXPORT, filename=f"{run or 'record'}.bailiwick")

    return part
