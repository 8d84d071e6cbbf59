"""What the API asks of the governor. The governor implements it; this room knows no more of it than this."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bailiwick.governor.views import ChangesView, HoldView, Operator, RecordedEvent, RunRequest, RunView, StatusView
from bailiwick.kernel.ids import HoldId, RunId

FROM_THE_START = -1


class Governance(Protocol):
    """Any of it may raise a `kernel.errors.BailiwickError`: NotFound for an unknown id, Conflict for a state that forbids it, Forbidden for an operator
    who may not, BackendError when a part of ours is down. Roles that a route demands were checked before; approver groups and four eyes are checked
    here. All of it is called on one event loop."""

    def agents(self) -> list[str]: ...

    def status(self) -> StatusView: ...

    async def request_run(self, request: RunRequest, operator: Operator) -> RunView: ...

    def runs(self, *, state: str | None, agent: str | None, limit: int) -> list[RunView]:
        """Newest first."""
        ...

    def run(self, run: RunId) -> RunView: ...

    async def kill_run(self, run: RunId, operator: Operator, reason: str) -> RunView: ...

    async def pause_run(self, run: RunId, operator: Operator, reason: str) -> RunView: ...

    async def resume_run(self, run: RunId, operator: Operator, reason: str) -> RunView: ...

    def holds(self, *, state: str | None) -> list[HoldView]: ...

    def hold(self, hold: HoldId) -> HoldView: ...

    async def settle_hold(self, hold: HoldId, operator: Operator, *, granted: bool, why: str) -> HoldView: ...

    def events(self, *, run: RunId | None, after: int, limit: int, kinds: Sequence[str] | None = None) -> list[RecordedEvent]:
        """In order, those with a sequence number greater than `after`; FROM_THE_START is before the first."""
        ...

    async def wait_events(self, after: int, seconds_max: float) -> int:
        """The newest sequence number, as soon as it is greater than `after`, or when the time is up."""
        ...

    def changes(self, run: RunId) -> ChangesView: ...

    def changes_archive(self, run: RunId) -> Path | None:
        """A tar of what the run added and modified; None when there is nothing in it."""
        ...

    async def mark_applied(self, run: RunId, operator: Operator, directory: str) -> None: ...

    async def export(self, run: RunId | None) -> Path:
        """A file made for this call, which the caller deletes."""
        ...

    def record_key(self) -> str:
        """The public key that verifies checkpoints, as a C2SP vkey."""
        ...

    def policy(self, agent: str) -> str:
        """The agent's boundary as compiled: Cedar text."""
        ...

    async def shutdown(self, operator: Operator) -> None: ...
