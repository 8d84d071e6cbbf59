"""The lifecycle table, over every pair of state and event."""

import itertools
from typing import get_args

import pytest

from bailiwick.governor.lifecycle import TRANSITIONS, CleanedUp, Exited, KillOrdered, LifecycleEvent, Lost, RunState, Started, follow
from bailiwick.kernel.errors import Conflict

EVENTS = get_args(LifecycleEvent)
PAIRS = list(itertools.product(RunState, EVENTS))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_pair_is_decided(state: RunState, event: type[LifecycleEvent]) -> None:
    """A pair either has a following state in the table or is refused, naming both."""
    if (following := TRANSITIONS[state].get(event)) is not None:
        assert follow(state, event()) is following
        return
    with pytest.raises(Conflict) as refused:
        follow(state, event())
    assert state.value in str(refused.value)
    assert event.__name__ in str(refused.value)


def test_every_state_but_the_last_can_be_ended() -> None:
    """A kill and a lost sandbox are taken in every state of a run that is not over."""
    for state in set(RunState) - {RunState.ENDED}:
        for event in (KillOrdered(), Lost()):
            assert follow(state, event) is RunState.ENDING


def test_the_end_is_final_and_comes_only_after_cleaning_up() -> None:
    """ENDED is reached from ENDING alone, by CleanedUp alone, and left by nothing."""
    assert TRANSITIONS[RunState.ENDED] == {}
    into = [(state, event) for state, steps in TRANSITIONS.items() for event, following in steps.items() if following is RunState.ENDED]
    assert into == [(RunState.ENDING, CleanedUp)]


def test_an_agent_never_runs_before_it_was_prepared() -> None:
    """Started is taken in PREPARING only, Exited never before it."""
    assert [state for state in RunState if Started in TRANSITIONS[state]] == [RunState.PREPARING]
    assert Exited not in TRANSITIONS[RunState.REQUESTED]
    assert Exited not in TRANSITIONS[RunState.PREPARING]
