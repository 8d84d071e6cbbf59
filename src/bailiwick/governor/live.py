"""A run that is not over, as the governor holds it in memory: its row's state, what is measured, and what its keeper waits for."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import anyio

from bailiwick.critic.boundary import CompiledBoundary
from bailiwick.critic.enforcement import OpenRun, Usage
from bailiwick.governor.definition import RunDefinition
from bailiwick.governor.lifecycle import RunState
from bailiwick.kernel.ids import RunId
from bailiwick.sandbox.messages import AgentExited


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run ends. `cause` is one of exited, killed, wall, memory, pids, disk, refused, sandbox, lost; `detail` is for people."""

    cause: str
    detail: str = ""
    status: int | None = None


@dataclass
class Live:
    run: RunId
    agent: str
    task: str
    operator: str
    definition: RunDefinition
    state: RunState
    worker: str
    elapsed_seconds: float = 0.0
    parked: int = 0  # actions that wait for sign-off: the wall clock stands still
    used: Usage = field(default_factory=Usage)
    opened: bool = False  # the worker was told OpenRun
    leases: dict[str, str] = field(default_factory=dict)  # lease id: expiry, as granted
    ending: Ending | None = None
    finished: anyio.Event = field(default_factory=anyio.Event)  # `ending` is set
    exited: AgentExited | None = None
    parked_seconds: float = 0.0  # for how long in all the wall clock stood still for sign-off
    unrecorded: dict[str, Any] | None = None  # an order to end the run that the record did not take yet

    @cached_property
    def boundary(self) -> CompiledBoundary:
        return CompiledBoundary.from_json(self.definition.boundary)

    def finish(self, ending: Ending) -> None:
        """The first cause stands."""
        if self.ending is None:
            self.ending = ending
        self.finished.set()

    def open_run(self, used: Usage, names: list[str] | None = None) -> OpenRun:
        return OpenRun(
            run=self.run,
            agent=self.agent,
            boundary=self.definition.boundary,
            observe=self.definition.observe,
            hosts=self.definition.hosts,
            models=self.definition.models,
            budget=self.definition.budget,
            used=used,
            names=names or [],
            leased=sorted({host for terms in self.definition.leases for host in terms.hosts}),
        )
