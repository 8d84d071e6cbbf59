"""Identifiers: sorted by time, never the same twice, safe wherever they stand."""

import re
import time

import pytest

from bailiwick.kernel import ids
from bailiwick.kernel.ids import SequenceOfIds, new_hold_id, new_lease_id, new_run_id


def test_they_say_what_they_name_and_are_safe() -> None:
    """In a path, a label, a URL, a DNS name and a cgroup's name."""
    for made, prefix in ((new_run_id(), "run"), (new_hold_id(), "hold"), (new_lease_id(), "lease")):
        assert re.fullmatch(rf"{prefix}-[0-9a-hjkmnp-tv-z]{{17}}", made)
    sequence = SequenceOfIds()
    assert re.fullmatch(r"[0-9a-z]{17}\.1", sequence.event())
    assert re.fullmatch(r"a-[0-9a-z]{17}\.2", sequence.action())


def test_later_sorts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text order is time order, from 1970 to far beyond."""
    made = []
    for milliseconds in (0, 1, 31, 32, 10**12, int(time.time() * 1000), 2**44, 2**45 - 1):
        monkeypatch.setattr(ids.time, "time_ns", lambda at=milliseconds: at * 1_000_000)
        made.append(new_run_id())
    assert made == sorted(made)


def test_no_two_are_the_same() -> None:
    """Within one process's sequence, between processes, and within one millisecond."""
    assert len({new_run_id() for _ in range(20_000)}) == 20_000
    sequences = [SequenceOfIds() for _ in range(100)]
    made = [each for sequence in sequences for _ in range(50) for each in (sequence.event(), sequence.action())]
    assert len(set(made)) == len(made)


def test_a_forked_process_makes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stem comes from the kernel's randomness, not from a generator that a fork copies."""
    monkeypatch.setattr(ids.time, "time_ns", lambda: 0)
    assert new_run_id() != new_run_id()
    assert SequenceOfIds().event() != SequenceOfIds().event()
