"""Leases: for one run, its hosts, its verbs, its worker, its time, and nothing like them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bailiwick.broker.lease import LEASES_PER_RUN_MAX, TRANSITIONS, Lease, LeaseBook, LeaseEvent, LeaseState, Moment, Terms
from bailiwick.broker.template import Template
from bailiwick.critic.action import Verb
from bailiwick.kernel.errors import CallerError, Conflict, Forbidden
from bailiwick.kernel.ids import LeaseId, RunId

START = datetime(2026, 11, 24, tzinfo=UTC)
NOW = Moment(START, 100.0)
RUN, OTHER_RUN = RunId("run-1"), RunId("run-2")
WORKER = ["gateway-0"]


def later(seconds: float) -> Moment:
    return Moment(START + timedelta(seconds=seconds), 100.0 + seconds)


def terms(
    *,
    run: RunId = RUN,
    worker: str = "gateway-0",
    host: str = "a.example",
    verbs: tuple[Verb, ...] = (Verb.READ,),
    field: str = "Authorization",
    seconds: float = 60,
) -> Terms:
    return Terms(
        run=run,
        agent="deployer",
        worker=worker,
        credential="token",
        hosts=frozenset({host}),
        verbs=frozenset(verbs),
        template=Template.parse(f"{field}: {{value}}"),
        expires=START + timedelta(seconds=seconds),
    )


def granted(book: LeaseBook, id: str = "lease-1", of: Terms | None = None) -> Lease:
    lease = book.announce(LeaseId(id), of or terms(), NOW)
    book.grant(lease, NOW)
    return lease


def used(book: LeaseBook, *, run: RunId = RUN, workers: list[str] = WORKER, host: str = "a.example", verb: Verb = Verb.READ, now: Moment = NOW) -> list[str]:
    """Ids of what is given; none also where what there was has expired."""
    try:
        return [lease.id for lease in book.use(run, workers=workers, host=host, verb=verb, now=now)]
    except Conflict as expired:
        assert "expired" in str(expired)  # noqa: PT017  a helper, not an expectation of one test
        return []


def test_a_run_whose_lease_expired_is_told_so() -> None:
    """Nothing lent is one answer, lent and over is another: a request that was to carry a credential must not go out without it."""
    book = LeaseBook()
    granted(book)
    with pytest.raises(Conflict, match="expired"):
        book.use(RUN, workers=WORKER, host="a.example", verb=Verb.READ, now=later(61))
    book.sweep(later(62))
    with pytest.raises(Conflict, match="expired"):
        book.use(RUN, workers=WORKER, host="a.example", verb=Verb.READ, now=later(63))
    assert book.use(RUN, workers=WORKER, host="b.example", verb=Verb.READ, now=later(63)) == ()
    book.sweep(later(62 + 25 * 3600))
    assert len(book) == 0


def test_a_live_lease_is_extended_and_a_dead_one_is_not() -> None:
    """Under its own name and on the same terms; an earlier expiry shortens nothing."""
    book = LeaseBook()
    lease = granted(book)
    book.extend(lease, terms(seconds=200.0).expires, later(50))
    assert used(book, now=later(150)) == ["lease-1"]
    book.extend(lease, terms(seconds=160.0).expires, later(150))
    assert used(book, now=later(190)) == ["lease-1"]
    book.revoke(RUN)
    with pytest.raises(Conflict):
        book.extend(lease, terms(seconds=900.0).expires, later(191))


@pytest.mark.parametrize(("state", "event"), list(product(LeaseState, LeaseEvent)))
def test_every_pair_is_in_the_table_or_refused(state: LeaseState, event: LeaseEvent) -> None:
    """A lease moves as the table says; every other pair is a Conflict and moves nothing."""
    lease = Lease(LeaseId("lease-1"), terms(), 0.0, state=state)
    if event in TRANSITIONS[state]:
        assert lease.after(event) is TRANSITIONS[state][event] is lease.state
    else:
        with pytest.raises(Conflict, match=f"is {state} and takes no {event}"):
            lease.after(event)
        assert lease.state is state


def test_the_dead_stay_dead() -> None:
    """No event leads out of a death, and only a live lease is used."""
    dead = {LeaseState.EXPIRED, LeaseState.REVOKED}
    for state in dead:
        assert set(TRANSITIONS[state].values()) <= dead
    assert [state for state in LeaseState if LeaseEvent.USE in TRANSITIONS[state]] == [LeaseState.LIVE]
    assert set(TRANSITIONS) == set(LeaseState)


def test_a_lease_is_used_and_counted() -> None:
    """The book says which leases apply, and counts."""
    book = LeaseBook()
    lease = granted(book)
    assert used(book) == used(book) == ["lease-1"]
    assert lease.uses == 2


def test_an_announced_lease_is_not_used() -> None:
    """Before its grant is on file a lease gives nothing."""
    book = LeaseBook()
    book.announce(LeaseId("lease-1"), terms(), NOW)
    assert used(book) == []


NOT_THE_HOST = [
    "b.example",
    "a.example.evil",
    "evila.example",
    "x.a.example",
    "example",
    "a.exampl",
    "a.example.",
    "A.example",
    "",
    "a.example:443",
    "a.example\0",
    "*",
]


@pytest.mark.parametrize("host", NOT_THE_HOST)
def test_a_lease_for_one_host_is_never_given_for_another(host: str) -> None:
    """Hosts match whole: no suffix, no prefix, no pattern."""
    book = LeaseBook()
    granted(book)
    assert used(book, host=host) == []


@given(st.text(max_size=20))
@settings(max_examples=100)
def test_no_other_text_is_the_host(host: str) -> None:
    """Of all texts only the host itself is the host."""
    book = LeaseBook()
    granted(book)
    assert used(book, host=host) == (["lease-1"] if host == "a.example" else [])


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.READ])
def test_a_lease_is_given_for_its_verbs_only(verb: Verb) -> None:
    """A lease to read is no lease to write."""
    book = LeaseBook()
    granted(book)
    assert used(book, verb=verb) == []


def test_another_run_gets_nothing() -> None:
    """A run's lease is not another's, even at the same worker."""
    book = LeaseBook()
    granted(book)
    assert used(book, run=OTHER_RUN) == []


def test_another_worker_gets_nothing() -> None:
    """A worker that was taken over uses the leases of its own runs only."""
    book = LeaseBook()
    granted(book)
    for workers in (["gateway-1"], [], ["gateway-00"]):
        with pytest.raises(Forbidden):
            used(book, workers=workers)
    assert used(book, workers=["gateway-1", "gateway-0"]) == ["lease-1"]


@pytest.mark.parametrize(
    "now",
    [later(60), later(61), Moment(START + timedelta(hours=1), 101.0), Moment(START - timedelta(hours=1), 161.0)],
    ids=["at its end", "after", "clock set forward", "clock set back"],
)
def test_an_expired_lease_is_dead_by_either_clock(now: Moment) -> None:
    """A wall clock that is set back does not lengthen a lease, and once it is dead the clock does not bring it back."""
    book = LeaseBook()
    granted(book)
    assert used(book, now=later(59)) == ["lease-1"]
    assert used(book, now=now) == []
    assert used(book) == []


def test_a_revoked_lease_is_dead() -> None:
    """After revocation nothing of the run is given, and a second revocation finds nothing to do."""
    book = LeaseBook()
    granted(book)
    granted(book, "lease-2", terms(host="b.example"))
    granted(book, "lease-3", terms(run=OTHER_RUN))
    assert [lease.id for lease in book.revoke(RUN)] == ["lease-1", "lease-2"]
    assert used(book) == []
    assert book.revoke(RUN) == ()
    assert used(book, run=OTHER_RUN) == ["lease-3"]


def test_a_revocation_beats_a_grant_that_is_being_recorded() -> None:
    """A lease revoked between its announcement and its grant never lives."""
    book = LeaseBook()
    lease = book.announce(LeaseId("lease-1"), terms(), NOW)
    assert book.revoke(RUN) == (lease,)
    with pytest.raises(Conflict):
        book.grant(lease, NOW)
    assert used(book) == []


def test_a_dead_lease_is_not_granted_again() -> None:
    """A late or repeated grant does not bring a lease back."""
    book = LeaseBook()
    granted(book)
    book.revoke(RUN)
    with pytest.raises(Conflict, match="revoked"):
        book.announce(LeaseId("lease-1"), terms(), NOW)


def test_a_dead_lease_is_forgotten_only_when_it_could_not_come_back() -> None:
    """The book stays small, and what it has forgotten is refused for its expiry."""
    book = LeaseBook()
    granted(book)
    book.revoke(RUN)
    assert book.sweep(later(30)) == ()
    assert len(book) == 1
    assert book.sweep(Moment(START - timedelta(hours=1), 500.0)) == ()
    assert len(book) == 1
    assert book.sweep(later(60)) == ()
    assert len(book) == 0
    assert book.of(RUN) == ()
    with pytest.raises(CallerError, match="must expire in the future"):
        book.announce(LeaseId("lease-1"), terms(), later(60))


def test_an_expiry_is_told_once_however_it_was_noticed() -> None:
    """By a use or by the sweep, an expiry is reported by one sweep."""
    book = LeaseBook()
    lease = granted(book)
    assert used(book, now=later(61)) == []
    assert book.sweep(later(61)) == (lease,)
    assert book.sweep(later(62)) == ()


def test_granting_again_is_the_same_grant() -> None:
    """The governor may repeat itself; the count of uses goes on."""
    book = LeaseBook()
    first = granted(book)
    used(book)
    assert granted(book) is first
    assert first.uses == 1
    with pytest.raises(Conflict, match="other terms"):
        granted(book, of=terms(host="b.example"))


def test_two_leases_do_not_fill_one_field() -> None:
    """Which of two credentials is meant is refused at the grant, not guessed at the use."""
    book = LeaseBook()
    granted(book)
    with pytest.raises(Conflict, match="one credential for a field"):
        granted(book, "lease-2", terms(field="authorization"))
    granted(book, "lease-3", terms(field="X-Team"))
    granted(book, "lease-4", terms(verbs=(Verb.WRITE,)))
    granted(book, "lease-5", terms(host="b.example"))
    assert used(book) == ["lease-1", "lease-3"]


def test_leases_of_a_run_are_bounded() -> None:
    """A governor gone wrong does not fill the broker."""
    book = LeaseBook()
    for number in range(LEASES_PER_RUN_MAX):
        granted(book, f"lease-{number}", terms(host=f"h{number}.example"))
    with pytest.raises(CallerError, match="must be at most"):
        granted(book, "lease-x", terms(host="x.example"))


class LeasesLive(RuleBasedStateMachine):
    """Whatever is granted, used, revoked and waited for in any order: a use gives exactly what a plain list of facts allows."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.seconds = 0.0
        self.live: dict[str, Terms] = {}
        self.seen: set[str] = set()

    @rule(
        number=st.integers(0, 5), run=st.sampled_from([RUN, OTHER_RUN]), host=st.sampled_from(["a.example", "b.example"]), seconds=st.sampled_from([5.0, 50.0])
    )
    def grant(self, number: int, run: RunId, host: str, seconds: float) -> None:
        id = f"lease-{number}"
        wanted = terms(run=run, host=host, field=f"X-{number}", seconds=self.seconds + seconds)
        try:
            lease = self.book.announce(LeaseId(id), wanted, later(self.seconds))
            self.book.grant(lease, later(self.seconds))
            self.book.extend(lease, wanted.expires, later(self.seconds))
        except CallerError:
            assert id in self.seen
            return
        expires = max(wanted.expires, self.live[id].expires) if id in self.live else wanted.expires
        assert id not in self.seen or replace(self.live[id], expires=wanted.expires) == wanted
        self.seen.add(id)
        self.live[id] = replace(wanted, expires=expires)

    @rule(run=st.sampled_from([RUN, OTHER_RUN]))
    def revoke(self, run: RunId) -> None:
        self.book.revoke(run)
        self.live = {id: of for id, of in self.live.items() if of.run != run}

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    @rule()
    def sweep(self) -> None:
        self.book.sweep(later(self.seconds))
        self.seen &= {lease.id for run in (RUN, OTHER_RUN) for lease in self.book.of(run)}

    @invariant()
    def only_what_is_live_is_given(self) -> None:
        now = later(self.seconds)
        self.live = {id: of for id, of in self.live.items() if of.expires > now.wall}
        for run, host in product([RUN, OTHER_RUN], ["a.example", "b.example"]):
            assert set(used(self.book, run=run, host=host, now=now)) == {id for id, of in self.live.items() if of.run == run and host in of.hosts}


LeasesLive.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLeasesLive = LeasesLive.TestCase
