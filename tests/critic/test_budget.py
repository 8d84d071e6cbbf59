import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from bailiwick.critic.budget import Budget, Reservation
from bailiwick.critic.decision import Deny
from bailiwick.critic.enforcement import BudgetLimits, Usage
from bailiwick.kernel.errors import CallerError

FIELDS = ("calls", "writes", "tokens", "microusd", "egress_bytes")
AMOUNTS = st.fixed_dictionaries({field: st.integers(0, 6) for field in FIELDS})


class BudgetMachine(RuleBasedStateMachine):
    """Reserve, settle, release in any order: what is used and set aside never passes a bound by more than acts cost beyond their ceilings."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.limits = BudgetLimits(calls=20, writes=5, tokens=30, microusd=None, egress_bytes=0)
        self.budget = Budget(self.limits, Usage(calls=1))
        self.open: dict[int, Usage] = {}
        self.used = dict.fromkeys(FIELDS, 0) | {"calls": 1}
        self.beyond = dict.fromkeys(FIELDS, 0)

    @rule(target=reservations, asked=AMOUNTS)
    def reserve(self, asked: dict[str, int]) -> Reservation | None:
        got = self.budget.reserve(**asked)
        fits = all(
            limit is None or not asked[field] or self.used[field] + sum(getattr(part, field) for part in self.open.values()) + asked[field] <= limit
            for field in FIELDS
            for limit in [getattr(self.limits, field)]
        )
        assert isinstance(got, Reservation) == fits
        if isinstance(got, Deny):
            assert got.reason.startswith("budget: ")
            return None
        self.open[got.number] = got.ceiling
        return got

    @rule(reservation=consumes(reservations), actual=AMOUNTS)
    def settle(self, reservation: Reservation | None, actual: dict[str, int]) -> None:
        if reservation is None:
            return
        self.budget.settle(reservation, Usage(**actual))
        ceiling = self.open.pop(reservation.number)
        for field in FIELDS:
            self.used[field] += actual[field]
            self.beyond[field] += max(0, actual[field] - getattr(ceiling, field))

    @rule(reservation=consumes(reservations))
    def release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            self.budget.release(reservation)
            del self.open[reservation.number]

    @invariant()
    def adds_up(self) -> None:
        assert msgspec.structs.asdict(self.budget.used) == self.used
        for field in FIELDS:
            held = sum(getattr(part, field) for part in self.open.values())
            assert getattr(self.budget.reserved, field) == held
            limit = getattr(self.limits, field)
            if limit is not None:
                assert self.used[field] + held <= limit + self.beyond[field]
                assert self.budget.left(field) == max(0, limit - self.used[field] - held)


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_refusal_says_what_is_used_and_what_to_do() -> None:
    """The agent reads which bound it met, how much of it is gone, and whether asking again can help."""
    budget = Budget(BudgetLimits(writes=50, microusd=5_000_000), Usage(writes=50, microusd=4_900_000))
    spent = budget.reserve(writes=1)
    assert spent == Deny(
        rules=("budget/writes",), reason="budget: 50 of 50 writes used; finish without it or ask the operator for a larger budget", retry="never"
    )
    dear = budget.reserve(microusd=200_000)
    assert isinstance(dear, Deny)
    assert dear.reason.startswith("budget: 4.9 of 5 US dollars used; this call needs up to 0.2;")


def test_what_is_only_set_aside_may_come_back() -> None:
    """A bound that is taken up by calls in flight refuses with `after`, and grants once they cost less than their ceiling."""
    budget = Budget(BudgetLimits(tokens=100), Usage())
    first = budget.reserve(tokens=80)
    assert isinstance(first, Reservation)
    refused = budget.reserve(tokens=50)
    assert isinstance(refused, Deny)
    assert refused.retry == "after"
    assert "80 set aside for calls in flight" in refused.reason
    budget.settle(first, Usage(tokens=10))
    assert isinstance(budget.reserve(tokens=50), Reservation)


def test_a_reservation_is_settled_once() -> None:
    """Settling twice would credit a ceiling back twice."""
    budget = Budget(BudgetLimits(calls=2), Usage())
    reservation = budget.reserve(calls=1)
    assert isinstance(reservation, Reservation)
    budget.settle(reservation, Usage(calls=1))
    with pytest.raises(CallerError, match="settled once"):
        budget.settle(reservation, Usage())
    assert budget.left("calls") == 1


@pytest.mark.parametrize("field", FIELDS)
def test_a_negative_amount_is_refused(field: str) -> None:
    """Nothing is gained by asking for less than nothing, or by having used it."""
    budget = Budget(BudgetLimits(), Usage())
    with pytest.raises(CallerError, match="must be 0 or more"):
        budget.reserve(**{field: -1})
    reservation = budget.reserve(calls=1)
    assert isinstance(reservation, Reservation)
    with pytest.raises(CallerError, match="must be 0 or more"):
        budget.settle(reservation, Usage(**{field: -1}))
    assert budget.reserved.calls == 1


def test_no_bound_is_no_bound_and_zero_is_none_at_all() -> None:
    """None never refuses; 0 refuses the first."""
    assert isinstance(Budget(BudgetLimits(), Usage()).reserve(calls=10**12, writes=1, tokens=10**12), Reservation)
    assert isinstance(Budget(BudgetLimits(writes=0), Usage()).reserve(writes=1), Deny)


def test_a_run_opened_again_does_not_forget() -> None:
    """New bounds, and never less used than is known here."""
    budget = Budget(BudgetLimits(calls=5), Usage(calls=4))
    budget.replace_limits(BudgetLimits(calls=6), Usage(calls=2, writes=3))
    assert budget.used == Usage(calls=4, writes=3)
    assert budget.left("calls") == 2
