"""What a run asked before, by the door it came through and by its bytes. What is kept of it is said in `repeats`."""

from collections.abc import Hashable
from typing import Generic, TypeVar

DOORS_MAX = 64  # of one run
SIGHTINGS_MAX = 1_024

R = TypeVar("R")


class Sightings:
    """Which bytes came before, by their hash: what comes once is not worth the making of what would be remembered of it. Two with one hash (which
    nobody outside can aim at) cost that making, and no more."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: set[int] = set()

    def again(self, raw: bytes) -> bool:
        mark = hash(raw)
        if mark in self._marks:
            return True
        if len(self._marks) >= SIGHTINGS_MAX:
            self._marks.clear()
        self._marks.add(mark)
        return False


class Asked(Generic[R]):
    """Of one run."""

    def __init__(self) -> None:
        self.sightings = Sightings()
        self._doors: dict[Hashable, dict[bytes, R]] = {}

    def at(self, door: Hashable) -> dict[bytes, R] | None:
        """What was asked there; None at one door too many. Kept by the door's connections: `forget` empties it where it is."""
        heads = self._doors.get(door)
        if heads is None and len(self._doors) < DOORS_MAX:
            heads = self._doors[door] = {}
        return heads

    def everything(self) -> list[R]:
        return [repeat for heads in self._doors.values() for repeat in heads.values()]

    def forget(self) -> None:
        for heads in self._doors.values():
            heads.clear()
