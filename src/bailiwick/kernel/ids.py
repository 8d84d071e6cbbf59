"""Identifiers: sortable by time, safe in a path, a label and a URL, and different as types so that one is never passed for another."""

import secrets
import time
from typing import NewType

RunId = NewType("RunId", str)
ActionId = NewType("ActionId", str)
HoldId = NewType("HoldId", str)
EventId = NewType("EventId", str)
LeaseId = NewType("LeaseId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
_TIME_CHARACTERS = 9  # 45 bits of milliseconds: to the year 3084
_RANDOM_CHARACTERS = 8  # 40 bits


def _base32(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _sortable(prefix: str) -> str:
    moment = _base32(time.time_ns() // 1_000_000, _TIME_CHARACTERS)
    return f"{prefix}-{moment}{_base32(secrets.randbits(5 * _RANDOM_CHARACTERS), _RANDOM_CHARACTERS)}"


def new_run_id() -> RunId:
    return RunId(_sortable("run"))


def new_hold_id() -> HoldId:
    return HoldId(_sortable("hold"))


def new_lease_id() -> LeaseId:
    return LeaseId(_sortable("lease"))


class SequenceOfIds:
    """Action and event identifiers for one process on the data path: a random start, then a counter (no system call per identifier)."""

    def __init__(self) -> None:
        self._stem = _sortable("")[1:]
        self._next = 0

    def event(self) -> EventId:
        self._next += 1
        return EventId(f"{self._stem}.{self._next:x}")

    def action(self) -> ActionId:
        self._next += 1
        return ActionId(f"a-{self._stem}.{self._next:x}")
