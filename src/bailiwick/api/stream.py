"""Events as lines of JSON (NDJSON), up to now or as they are committed. An empty line every so often says that the stream is alive."""

from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bailiwick.api import problem
from bailiwick.api.declare import LINES
from bailiwick.api.doorman import FOLLOWED
from bailiwick.api.governance import Governance
from bailiwick.governor.views import RecordedEvent
from bailiwick.kernel.ids import RunId

KEEP_ALIVE_SECONDS = 10.0
FOLLOWERS_MAX = 256  # each holds one connection and no thread

_PAGE = 500
_LAST_OF_A_RUN = "run.ended"

_encode = msgspec.json.Encoder().encode


class Followers:
    """How many follow at this moment, bounded."""

    def __init__(self) -> None:
        self._count = 0

    def enter(self) -> None:
        if self._count >= FOLLOWERS_MAX:
            raise problem.Busy(f"{self._count} streams are followed already; at most {FOLLOWERS_MAX} may be, end one first")
        self._count += 1

    def leave(self) -> None:
        self._count -= 1


class _Followed(StreamingResponse):
    """Calls `left` when the answer is over, however it ended."""

    def __init__(self, lines: AsyncIterator[bytes], left: Callable[[], None]) -> None:
        super().__init__(lines, media_type=LINES)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][FOLLOWED] = True
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def respond(governance: Governance, followers: Followers, *, run: RunId | None, after: int, follow: bool, kinds: Sequence[str] | None = None) -> Response:
    """Without `follow`: what is committed now. With it: on and on, or, for a run, until the run's last event."""
    first = governance.events(run=run, after=after, limit=_PAGE, kinds=kinds)  # an error here still has a status of its own
    if not follow:
        return StreamingResponse(_lines(governance, first, run=run, follow=False, after=after, kinds=kinds), media_type=LINES)
    if run is not None:
        governance.run(run)
    followers.enter()
    return _Followed(_lines(governance, first, run=run, follow=True, after=after, kinds=kinds), followers.leave)


async def _lines(
    governance: Governance, page: list[RecordedEvent], *, run: RunId | None, follow: bool, after: int, kinds: Sequence[str] | None
) -> AsyncIterator[bytes]:
    seen = after
    try:
        while True:
            if page:
                yield b"".join(_encode(event) + b"\n" for event in page)
                after = page[-1].sequence
                if follow and run is not None and any(event.event.get("kind") == _LAST_OF_A_RUN for event in page):
                    return
            elif not follow or (run is not None and _is_over(governance, run, after)):
                return
            else:
                newest = await governance.wait_events(max(seen, after), KEEP_ALIVE_SECONDS)
                if newest <= max(seen, after):
                    yield b"\n"
                seen = newest
            page = governance.events(run=run, after=after, limit=_PAGE, kinds=kinds)
    except Exception as error:  # noqa: BLE001  the status is sent: the last line says what happened, and the log the rest
        yield _encode({"problem": problem.of(error)}) + b"\n"


def _is_over(governance: Governance, run: RunId, after: int) -> bool:
    """Whether nothing will follow: the run ended, and its last event is behind `after`."""
    return governance.run(run).state == "ended" and not governance.events(run=run, after=after, limit=1, kinds=None)
