"""Leases: which run may have which credential's value, for which hosts and verbs, through which worker, until when. Pure state, no I/O, no clock.

A lease is announced before its grant is on file, and lives only after: a revocation that arrives in between finds it. While it lives it may be
extended, under its own name and on the same terms. Revoked leases are kept until they would have expired anyway, so that a late or repeated grant does
not bring one back; expired ones for a day more, so that a run is told that its lease expired and not that it never had one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from bailiwick.broker.template import Template
from bailiwick.critic.action import Verb
from bailiwick.kernel.errors import CallerError, Conflict, Forbidden
from bailiwick.kernel.ids import LeaseId, RunId

LEASES_MAX = 50_000  # dead ones included; at 15 minutes each, 55 new ones a second
LEASES_PER_RUN_MAX = 64
EXPIRED_REMEMBERED_SECONDS = 24 * 3600.0


class LeaseState(StrEnum):
    ANNOUNCED = "announced"
    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


class LeaseEvent(StrEnum):
    ANNOUNCE = "announce"
    GRANT = "grant"
    USE = "use"
    EXPIRE = "expire"
    REVOKE = "revoke"


# What is not here is refused. A dead lease takes its death again and nothing else.
TRANSITIONS: dict[LeaseState, dict[LeaseEvent, LeaseState]] = {
    LeaseState.ANNOUNCED: {
        LeaseEvent.ANNOUNCE: LeaseState.ANNOUNCED,
        LeaseEvent.GRANT: LeaseState.LIVE,
        LeaseEvent.EXPIRE: LeaseState.EXPIRED,
        LeaseEvent.REVOKE: LeaseState.REVOKED,
    },
    LeaseState.LIVE: {
        LeaseEvent.ANNOUNCE: LeaseState.LIVE,
        LeaseEvent.GRANT: LeaseState.LIVE,
        LeaseEvent.USE: LeaseState.LIVE,
        LeaseEvent.EXPIRE: LeaseState.EXPIRED,
        LeaseEvent.REVOKE: LeaseState.REVOKED,
    },
    LeaseState.EXPIRED: {LeaseEvent.EXPIRE: LeaseState.EXPIRED, LeaseEvent.REVOKE: LeaseState.EXPIRED},
    LeaseState.REVOKED: {LeaseEvent.EXPIRE: LeaseState.REVOKED, LeaseEvent.REVOKE: LeaseState.REVOKED},
}


class Moment(NamedTuple):
    """Both clocks: a wall clock that is set back must not lengthen a lease, nor one set forward outlive it."""

    wall: datetime
    monotonic: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is lent. Hosts are canonical (`configuration.canonical_host`) and matched whole."""

    run: RunId
    agent: str
    worker: str
    credential: str
    hosts: frozenset[str]
    verbs: frozenset[Verb]
    template: Template
    expires: datetime


@dataclass(slots=True)
class Lease:
    id: LeaseId
    terms: Terms
    ends: float  # monotonic
    state: LeaseState = LeaseState.ANNOUNCED
    uses: int = 0

    def after(self, event: LeaseEvent) -> LeaseState:
        """Moves, and returns the state moved to. Raises Conflict where the table has nothing."""
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise Conflict(f"lease {self.id} is {self.state} and takes no {event}; ask for a lease of its own")
        self.state = following
        return following


@dataclass(slots=True)
class LeaseBook:
    _leases: dict[LeaseId, Lease] = field(default_factory=dict)
    _by_run: dict[RunId, dict[LeaseId, Lease]] = field(default_factory=dict)
    _expired: list[Lease] = field(default_factory=list)  # since the last sweep

    def __len__(self) -> int:
        return len(self._leases)

    def announce(self, id: LeaseId, terms: Terms, now: Moment) -> Lease:
        """The lease, not to be used before `grant`. The same terms again, whatever their expiry, are the same lease (`extend` moves it); others under its
        name, or its name after its death, are a Conflict. CallerError for terms that are over already, and when there are too many."""
        lease = self._leases.get(id)
        if lease is not None:
            self._expire([lease], now)
            lease.after(LeaseEvent.ANNOUNCE)
            if replace(terms, expires=lease.terms.expires) != lease.terms:
                raise Conflict(f"lease {id} is granted on other terms; ask for a lease of its own")
            return lease
        seconds = (terms.expires - now.wall).total_seconds()
        if seconds <= 0:
            raise CallerError(f"lease {id} would have expired at {terms.expires.isoformat()}; must expire in the future")
        siblings = self.of(terms.run)
        if len(siblings) >= LEASES_PER_RUN_MAX:
            raise CallerError(f"run {terms.run} has {len(siblings)} leases; must be at most {LEASES_PER_RUN_MAX}", code="too-many")
        if len(self._leases) >= LEASES_MAX:
            raise CallerError(f"there are {len(self._leases)} leases; must be at most {LEASES_MAX}, wait until some have expired", code="too-many")
        _refuse_second_for_a_field(id, terms, siblings)
        lease = Lease(id, terms, now.monotonic + seconds)
        self._leases[id] = lease
        self._by_run.setdefault(terms.run, {})[id] = lease
        return lease

    def grant(self, lease: Lease, now: Moment) -> None:
        """It lives: its grant is on file. Conflict when it died meanwhile."""
        self._expire([lease], now)
        lease.after(LeaseEvent.GRANT)

    def extend(self, lease: Lease, expires: datetime, now: Moment) -> None:
        """It lives until then: its extension is on file. Conflict when it died meanwhile; an earlier expiry changes nothing."""
        self._expire([lease], now)
        lease.after(LeaseEvent.GRANT)
        if expires > lease.terms.expires:
            lease.terms = replace(lease.terms, expires=expires)
            lease.ends = now.monotonic + (expires - now.wall).total_seconds()

    def use(self, run: RunId, *, workers: Collection[str], host: str, verb: Verb, now: Moment) -> tuple[Lease, ...]:
        """The live leases of the run for exactly this host and verb, counted as used; none is a common answer, but Conflict where there was one and it
        expired. Forbidden when the run's leases are for a worker that the caller is not (`workers` are the names its uid may act as)."""
        leases = self.of(run)
        if any(lease.terms.worker not in workers for lease in leases):
            raise Forbidden(f"run {run} is not served by this worker")
        self._expire(leases, now)
        meant = [lease for lease in leases if host in lease.terms.hosts and verb in lease.terms.verbs]
        found = [lease for lease in meant if lease.state is LeaseState.LIVE]
        if not found and (over := [lease for lease in meant if lease.state is LeaseState.EXPIRED]):
            raise Conflict(f"lease {over[-1].id} of {over[-1].terms.credential} for {host} expired; the governor extends it while the run lives")
        for lease in found:
            lease.after(LeaseEvent.USE)
            lease.uses += 1
        return tuple(found)

    def revoke(self, run: RunId) -> tuple[Lease, ...]:
        """Those that died by this. After it every lease of the run is dead, announced ones too."""
        alive = [lease for lease in self.of(run) if lease.state in (LeaseState.ANNOUNCED, LeaseState.LIVE)]
        for lease in alive:
            lease.after(LeaseEvent.REVOKE)
        return tuple(alive)

    def of(self, run: RunId) -> tuple[Lease, ...]:
        return tuple(self._by_run.get(run, {}).values())

    def sweep(self, now: Moment) -> tuple[Lease, ...]:
        """Those that expired since the last sweep. Forgets the revoked whose name cannot come back, their expiry being past by both clocks, and what
        expired a day ago."""
        self._expire(self._leases.values(), now)
        for lease in [lease for lease in self._leases.values() if _forgotten(lease, now)]:
            del self._leases[lease.id]
            siblings = self._by_run[lease.terms.run]
            del siblings[lease.id]
            if not siblings:
                del self._by_run[lease.terms.run]
        expired, self._expired = tuple(self._expired), []
        return expired

    def _expire(self, leases: Iterable[Lease], now: Moment) -> None:
        for lease in leases:
            over = lease.ends <= now.monotonic or lease.terms.expires <= now.wall
            if over and lease.state in (LeaseState.ANNOUNCED, LeaseState.LIVE):
                lease.after(LeaseEvent.EXPIRE)
                self._expired.append(lease)


def _forgotten(lease: Lease, now: Moment) -> bool:
    if lease.state is LeaseState.EXPIRED:
        return lease.ends + EXPIRED_REMEMBERED_SECONDS <= now.monotonic
    return lease.ends <= now.monotonic and lease.terms.expires <= now.wall


def _refuse_second_for_a_field(id: LeaseId, terms: Terms, others: Iterable[Lease]) -> None:
    """Which of two credentials is meant is not guessed at the time of use."""
    for other in others:
        alive = other.state in (LeaseState.ANNOUNCED, LeaseState.LIVE)
        if alive and other.terms.template.field.lower() == terms.template.field.lower() and other.terms.hosts & terms.hosts and other.terms.verbs & terms.verbs:
            raise Conflict(
                f"lease {id} fills the field {terms.template.field} of {', '.join(sorted(other.terms.hosts & terms.hosts))} as lease {other.id} does; "
                "an agent may use one credential for a field of a host"
            )
