"""A run as operators see it: its row, with what a live run has used so far."""

from bailiwick.critic.enforcement import Usage
from bailiwick.governor.live import Live
from bailiwick.governor.repository import RunRow
from bailiwick.governor.views import RunView


def view_of(row: RunRow, live: Live | None, *, identity: str, refusals: tuple[int, int]) -> RunView:
    """`refusals` are how many actions were held, and how many denied."""
    used = row.usage or (live.used if live else Usage())
    held, denied = refusals
    return RunView(
        run=row.run,
        agent=row.agent,
        task=row.task,
        state=row.state.value,
        operator=row.operator,
        observe=row.observe,
        requested=row.requested,
        started=row.started,
        ended=row.ended,
        cause=row.cause,
        detail=row.detail,
        status=row.status,
        worker=row.worker,
        spiffe_id=identity,
        calls=used.calls,
        writes=used.writes,
        tokens=used.tokens,
        microusd=used.microusd,
        held=held,
        denied=denied,
    )
