"""A run's budget, as arithmetic: a ceiling is reserved before the act and credited back after it, so that no order of calls can pass a bound.

What an act turns out to cost beyond its ceiling is counted all the same (a model may count its tokens otherwise): a bound is passed by at most what the
acts then in flight cost more than their ceilings, and nothing further is granted.
"""

from dataclasses import dataclass

import msgspec

from bailiwick.critic.decision import Deny
from bailiwick.critic.enforcement import BudgetLimits, Usage
from bailiwick.kernel.errors import CallerError

_FIELDS = ("calls", "writes", "tokens", "microusd", "egress_bytes")
_WORDS = {"calls": "calls", "writes": "writes", "tokens": "tokens", "microusd": "US dollars", "egress_bytes": "bytes sent"}


@dataclass(frozen=True, slots=True)
class Reservation:
    """A ceiling set aside; redeemed once, by `settle`."""

    number: int
    ceiling: Usage


class Budget:
    """Of one run. Pure: it knows no clock and no I/O; its owner says what is used, and tells it when that is known better."""

    def __init__(self, limits: BudgetLimits, used: Usage) -> None:
        self._limits = limits
        self._used = used
        self._reserved = Usage()
        self._open: dict[int, Usage] = {}
        self._next = 0

    @property
    def used(self) -> Usage:
        """What is settled; acts in flight are not in it."""
        return self._used

    @property
    def reserved(self) -> Usage:
        return self._reserved

    def left(self, field: str) -> int | None:
        """What may still be reserved of a bound; None where there is none."""
        limit = getattr(self._limits, field)
        return None if limit is None else max(0, int(limit) - getattr(self._used, field) - getattr(self._reserved, field))

    def replace_limits(self, limits: BudgetLimits, used: Usage) -> None:
        """A run opened again: bounds are the new ones, and what was used is never less than what is known here."""
        self._limits = limits
        self._used = Usage(**{field: max(getattr(used, field), getattr(self._used, field)) for field in _FIELDS})

    def reserve(self, *, calls: int = 0, writes: int = 0, tokens: int = 0, microusd: int = 0, egress_bytes: int = 0) -> Reservation | Deny:
        """Sets the ceiling aside, or says which bound forbids it; then nothing is set aside."""
        ceiling = Usage(calls=calls, writes=writes, tokens=tokens, microusd=microusd, egress_bytes=egress_bytes)
        _require_counts(ceiling)
        for field in _FIELDS:
            asked, left = getattr(ceiling, field), self.left(field)
            if asked and left is not None and asked > left:
                return Deny(rules=(f"budget/{field}",), reason=self._refusal(field, asked), retry="after" if self._comes_back(field, asked) else "never")
        self._next += 1
        self._open[self._next] = ceiling
        self._reserved = _sum(self._reserved, ceiling, 1)
        return Reservation(self._next, ceiling)

    def settle(self, reservation: Reservation, actual: Usage) -> None:
        """The act is over and this is what it took; the rest of its ceiling is free again. Conflict for one that was settled before."""
        _require_counts(actual)
        ceiling = self._open.pop(reservation.number, None)
        if ceiling is None:
            raise CallerError(f"reservation {reservation.number} is not open; each is settled once", code="conflict")
        self._reserved = _sum(self._reserved, ceiling, -1)
        self._used = _sum(self._used, actual, 1)

    def release(self, reservation: Reservation) -> None:
        """The act did not happen."""
        self.settle(reservation, Usage())

    def _comes_back(self, field: str, asked: int) -> bool:
        """Whether it would fit once the acts in flight have cost nothing: then it is worth asking again."""
        return int(getattr(self._limits, field)) - int(getattr(self._used, field)) >= asked

    def _refusal(self, field: str, asked: int) -> str:
        limit, used, held = (getattr(part, field) for part in (self._limits, self._used, self._reserved))
        flight = f" and {_amount(field, held)} set aside for calls in flight" if held else ""
        needs = f"; this call needs up to {_amount(field, asked)}" if asked > 1 else ""
        way_out = "try again when they have ended" if self._comes_back(field, asked) else "finish without it or ask the operator for a larger budget"
        return f"budget: {_amount(field, used)} of {_amount(field, limit)} {_WORDS[field]} used{flight}{needs}; {way_out}"


def _amount(field: str, value: int) -> str:
    return f"{value / 1_000_000:.6f}".rstrip("0").rstrip(".") if field == "microusd" else str(value)


def _sum(left: Usage, right: Usage, sign: int) -> Usage:
    return msgspec.structs.replace(left, **{field: getattr(left, field) + sign * getattr(right, field) for field in _FIELDS})


def _require_counts(usage: Usage) -> None:
    for field in _FIELDS:
        if getattr(usage, field) < 0:
            raise CallerError(f"{field} is {getattr(usage, field)}; must be 0 or more")
