"""Runs in the governor's database. Every change of state names the state it was decided in, so that of two who decide one wins."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bailiwick.critic.enforcement import Usage
from bailiwick.governor.definition import RunDefinition
from bailiwick.governor.lifecycle import RunState
from bailiwick.governor.live import Ending
from bailiwick.kernel.errors import Conflict, NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.store import queries
from bailiwick.store.connection import open_writer, transaction

_ROOM = "bailiwick.governor"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    run: RunId
    agent: str
    task: str
    state: RunState
    operator: str
    observe: bool
    definition: RunDefinition
    requested: str
    worker: str
    started: str | None = None
    ended: str | None = None
    cause: str = ""
    detail: str = ""
    status: int | None = None
    elapsed_seconds: float = 0.0
    usage: Usage | None = None
    changes: dict[str, Any] | None = None
    archive: str | None = None
    applied: str | None = None
    held: int = 0
    denied: int = 0


class Runs:
    def __init__(self, path: Path) -> None:
        self._connection = open_writer(path, _ROOM)
        self._connection.row_factory = sqlite3.Row
        self._queries = queries.load(_ROOM)

    def close(self) -> None:
        self._connection.close()

    def insert(self, row: RunRow) -> None:
        self._write(
            "insert_run",
            run=row.run,
            agent=row.agent,
            task=row.task,
            state=row.state.value,
            operator=row.operator,
            observe=int(row.observe),
            definition=msgspec.json.encode(row.definition),
            requested=row.requested,
            worker=row.worker,
        )

    def get(self, run: str) -> RunRow:
        """Raises NotFound."""
        found = self._connection.execute(self._queries["select_run"], {"run": run}).fetchone()
        if found is None:
            raise NotFound(f"run {run!r} is unknown; `bailiwick ps --all` lists them")
        return _row(found)

    def select(self, *, state: str | None, agent: str | None, limit: int) -> list[RunRow]:
        return [_row(found) for found in self._connection.execute(self._queries["select_runs"], {"state": state, "agent": agent, "limit": limit})]

    def unfinished(self) -> list[RunRow]:
        return [_row(found) for found in self._connection.execute(self._queries["select_unfinished"])]

    def move(self, run: str, before: RunState, after: RunState) -> None:
        """Raises Conflict when the run is not in `before` any more."""
        if self._write("move_run", run=run, from_state=before.value, state=after.value) != 1:
            raise Conflict(f"run {run} is not {before} any more; look at it again with `bailiwick ps --all`")

    def note_started(self, run: str, started: str) -> None:
        self._write("note_started", run=run, started=started)

    def note_ending(self, run: str, ending: Ending) -> None:
        self._write("note_ending", run=run, cause=ending.cause, detail=ending.detail, status=ending.status)

    def note_ended(self, run: str, ended: str, used: Usage, refusals: tuple[int, int]) -> None:
        """`refusals` are how many actions were held, and how many denied."""
        held, denied = refusals
        self._write("note_ended", run=run, ended=ended, usage=msgspec.json.encode(used), held=held, denied=denied)

    def note_elapsed(self, run: str, elapsed_seconds: float) -> None:
        self._write("note_elapsed", run=run, elapsed_seconds=elapsed_seconds)

    def note_changes(self, run: str, changes: bytes, archive: str | None) -> None:
        self._write("note_changes", run=run, changes=changes, archive=archive)

    def note_applied(self, run: str, applied: str) -> None:
        self._write("note_applied", run=run, applied=applied)

    def _write(self, query: str, **values: Any) -> int:
        with transaction(self._connection):
            return self._connection.execute(self._queries[query], values).rowcount


def _row(found: sqlite3.Row) -> RunRow:
    values = dict(found)
    return RunRow(
        **values
        | {
            "run": RunId(values["run"]),
            "state": RunState(values["state"]),
            "observe": bool(values["observe"]),
            "definition": msgspec.json.decode(values["definition"], type=RunDefinition),
            "usage": msgspec.json.decode(values["usage"], type=Usage) if values["usage"] is not None else None,
            "changes": msgspec.json.decode(values["changes"]) if values["changes"] is not None else None,
        }
    )
