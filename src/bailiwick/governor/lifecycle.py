"""The life of a run as one table. Pure: what follows from a state and an event, never what is done about it.

ENDING is one state because the steps that end a run (close its gateway, collect its workspace, revoke, destroy) may each be repeated: a governor that
was killed in the middle does them all again.
"""

from dataclasses import dataclass
from enum import StrEnum

from bailiwick.kernel.errors import Conflict


class RunState(StrEnum):
    REQUESTED = "requested"
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A worker was chosen; sandbox, lease and listeners are being made."""


@dataclass(frozen=True, slots=True)
class Started:
    """The agent's command runs."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    """What was being made could not be; the agent never ran."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The launcher read back that every process stopped."""


@dataclass(frozen=True, slots=True)
class Thawed:
    """The launcher read back that the processes go on."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The agent's command is gone, by itself or by a signal."""


@dataclass(frozen=True, slots=True)
class KillOrdered:
    """An operator or a limit ended the run."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The sandbox is gone and nobody knows how the agent ended: its launcher died."""


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """Nothing is left: processes, listeners, leases, mounts, namespace."""


LifecycleEvent = Dispatched | Started | PreparationFailed | Frozen | Thawed | Exited | KillOrdered | Lost | CleanedUp

TRANSITIONS: dict[RunState, dict[type[LifecycleEvent], RunState]] = {
    RunState.REQUESTED: {
        Dispatched: RunState.PREPARING,
        PreparationFailed: RunState.ENDING,
        KillOrdered: RunState.ENDING,
        Lost: RunState.ENDING,
    },
    RunState.PREPARING: {
        Started: RunState.RUNNING,
        PreparationFailed: RunState.ENDING,
        KillOrdered: RunState.ENDING,
        Lost: RunState.ENDING,
    },
    RunState.RUNNING: {Frozen: RunState.PAUSED, Exited: RunState.ENDING, KillOrdered: RunState.ENDING, Lost: RunState.ENDING},
    RunState.PAUSED: {Thawed: RunState.RUNNING, Exited: RunState.ENDING, KillOrdered: RunState.ENDING, Lost: RunState.ENDING},
    # The first cause stands: what is heard later about a run that is ending changes nothing.
    RunState.ENDING: {Exited: RunState.ENDING, KillOrdered: RunState.ENDING, Lost: RunState.ENDING, CleanedUp: RunState.ENDED},
    RunState.ENDED: {},
}


def follow(state: RunState, event: LifecycleEvent) -> RunState:
    """The state after the event. Conflict, naming both, when the table has no such step."""
    following = TRANSITIONS[state].get(type(event))
    if following is None:
        allowed = ", ".join(kind.__name__ for kind in TRANSITIONS[state]) or "nothing"
        raise Conflict(f"a run that is {state} does not take {type(event).__name__}; it takes {allowed}")
    return following
