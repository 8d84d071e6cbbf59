"""A run as its gateway worker holds it: what it may do, what it has used, what it has open. One run's things are never another's."""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from bailiwick.critic.action import Action
from bailiwick.critic.budget import Budget
from bailiwick.critic.decision import Decision, Retry
from bailiwick.critic.enforcement import ModelRoute, OpenRun, Usage
from bailiwick.gateway import events
from bailiwick.gateway.asked import Asked
from bailiwick.gateway.git import Repositories
from bailiwick.gateway.layers.tls import Front
from bailiwick.gateway.leases import LeaseShelf
from bailiwick.gateway.names import NameTable
from bailiwick.gateway.neighbours import House
from bailiwick.gateway.upstream import Upstreams
from bailiwick.gateway.waiting import Pending
from bailiwick.kernel import limits
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.ids import RunId
from bailiwick.record.event import Event

BUFFERED_BYTES_PER_RUN_MAX = 64 * limits.MIB  # of bodies read before their decision: four of the largest, or a thousand common ones
BUFFERED_BYTES_MAX = 256 * limits.MIB  # of all runs of a worker
REFUSALS_BURST = 64
REFUSALS_PER_SECOND = 4.0  # of attempt.refused in the record, per run: a flood is counted, not written
DENIALS_BURST = 256  # more than an agent that tries each of its tools once, and reads the answers
DENIALS_PER_SECOND = 50.0  # of denied or held actions, per run: each is recorded, some 30 KB/s of record for a run that does nothing else


class Decider(Protocol):
    """`critic.evaluate.Critic`."""

    def may_permit(self, action: str) -> bool: ...
    def decide(self, action: Action, *, signed_off: bool = False) -> Decision: ...


class Closable(Protocol):
    """What is cut when its run is closed."""

    def cut(self, reason: str) -> None: ...
    def sweep(self, now: float) -> None: ...
    def govern(self, governed: bool) -> None: ...


class Refused(Exception):
    """Ends an exchange with an answer that says why. `part` names what is dead, where something is."""

    def __init__(self, kind: str, status: int, reason: str, *, rules: tuple[str, ...] = (), retry: Retry = "never", hold: str | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.status = status
        self.reason = reason
        self.rules = rules
        self.retry = retry
        self.hold = hold


def dead(part: str, detail: str) -> Refused:
    """Fail closed, and say what failed."""
    return Refused("unavailable", 503, f"the {part} {detail}; nothing is allowed without it", rules=(f"bailiwick.{part}",), retry="after")


@dataclass(slots=True)
class Rate:
    """A token bucket; what does not pass is counted and told with the next that does."""

    burst: float
    per_second: float
    tokens: float
    at: float = 0.0
    suppressed: int = 0

    @classmethod
    def of(cls, burst: float, per_second: float) -> "Rate":
        return cls(burst, per_second, burst)

    def take(self, now: float, amount: float = 1.0) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < amount:
            self.suppressed += 1
            return False
        self.tokens -= amount
        return True

    def told(self) -> int:
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


class Pace:
    """Turns at a bounded rate: nothing is dropped, whoever takes too many waits. A turn comes even if nobody waits for its answer any more, so leaving
    early gains nothing; how long one may take is bounded by how many may wait, which is what `waiting` is for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, burst: float, per_second: float) -> None:
        self._loop = loop
        self._every = 1 / per_second
        self._slack = burst / per_second
        self._taken = 0.0  # until when turns are given out
        self._waiting: dict[Pending[None], asyncio.TimerHandle] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def turn(self) -> None:
        """For a coroutine of `waiting.drive`."""
        now = self._loop.time()
        self._taken = max(self._taken, now) + self._every
        wait = self._taken - now - self._slack
        if wait <= 0:
            return
        pending: Pending[None] = Pending()
        self._waiting[pending] = self._loop.call_later(wait, pending.settle, None)
        try:
            await pending
        finally:
            self._waiting.pop(pending).cancel()

    def release(self) -> None:
        """Everybody's turn is now."""
        for pending in tuple(self._waiting):
            pending.settle(None)


@dataclass(slots=True)
class _Counted:
    """A Usage that is added to in place: plain requests do so thousands of times a second."""

    calls: int = 0
    writes: int = 0
    tokens: int = 0
    microusd: int = 0
    egress_bytes: int = 0


class Run:
    """What one run is held to. `hold_to` may be called again: the governor said something new."""

    def __init__(self, house: House, order: OpenRun, critic: Decider, policy: str) -> None:
        self.house = house
        self.id = RunId(order.run)
        self.names = NameTable()
        self.upstreams = Upstreams(house.loop, house.contexts, resolver=house.resolver)
        self.front = Front(house.context_for)
        self.leases = LeaseShelf()
        self.budget = Budget(order.budget, order.used)
        self.connections: set[Closable] = set()
        self.unfinished: dict[str, Action] = {}
        self.unknown: list[str] = []  # actions whose outcome was recorded as that
        self.repositories = Repositories()
        self.authorities: dict[str, tuple[str, int | None]] = {}  # as written by the agent; see target
        self.asked: Asked[Any] = Asked()  # of repeats.Repeat
        self.parked = 0
        self.buffered = 0  # bytes of bodies that wait for their decision
        self._counted = _Counted()
        self.closed: str | None = None
        self.denials = Pace(house.loop, DENIALS_BURST, DENIALS_PER_SECOND)
        self._refusals = Rate.of(REFUSALS_BURST, REFUSALS_PER_SECOND)
        self.hold_to(order, critic, policy)

    def hold_to(self, order: OpenRun, critic: Decider, policy: str) -> None:
        if self._counted.calls:  # bounds may speak of it from now on
            self.budget.replace_limits(order.budget, self.used)
            self._counted = _Counted()
        self.asked.forget()
        self.names.tell(order.names)
        self.order = order
        self.agent = order.agent
        self.critic = critic
        self.policy = policy
        self.observe = order.observe
        self.leased = frozenset(order.leased)
        self.models: dict[str, ModelRoute] = {route.host: route for route in order.models}
        self.providers: dict[str, ModelRoute] = {route.provider: route for route in order.models}
        self.upstreams.pin(order.hosts)
        self.leases.clear()
        self.budget.replace_limits(order.budget, order.used)

    def check_alive(self) -> None:
        """Raises Refused when the run is over or a part without which nothing is allowed is dead."""
        if self.closed is not None:
            raise Refused("closed", 403, f"the run is closed: {self.closed}", rules=("bailiwick.run",))
        if not self.house.governor.fresh:
            raise dead("governor", "has not been heard from")
        if not self.house.recorder.healthy:
            raise dead("recorder", "does not take events")

    def hold_back(self, change: int) -> None:
        """Bytes of a body that waits for its decision, or no longer does."""
        self.buffered += change
        self.house.buffered += change

    def full_with(self, more: int) -> str | None:
        """Why no more may wait."""
        for whose, buffered, bound in (("this run", self.buffered, BUFFERED_BYTES_PER_RUN_MAX), ("all runs", self.house.buffered, BUFFERED_BYTES_MAX)):
            if buffered + more > bound:
                return f"the bodies of {whose} that wait for a decision exceed {bound} bytes; ask again when some were answered"
        return None

    def unbounded(self, effect: bool) -> bool:
        """Whether no bound of the budget speaks of a plain request: then it is only counted."""
        bounds = self.order.budget
        return bounds.calls is None and bounds.egress_bytes is None and (bounds.writes is None or not effect)

    def count(self, used: Usage) -> None:
        """What was used without being reserved."""
        counted = self._counted
        counted.calls += used.calls
        counted.writes += used.writes
        counted.tokens += used.tokens
        counted.microusd += used.microusd
        counted.egress_bytes += used.egress_bytes

    @property
    def used(self) -> Usage:
        """Everything so far, as it is reported."""
        used, counted = self.budget.used, self._counted
        return Usage(
            calls=used.calls + counted.calls,
            writes=used.writes + counted.writes,
            tokens=used.tokens + counted.tokens,
            microusd=used.microusd + counted.microusd,
            egress_bytes=used.egress_bytes + counted.egress_bytes,
        )

    def decide(self, action: Action, *, signed_off: bool = False) -> Decision:
        """The critic's word. Raises Refused when it has none to give."""
        try:
            return self.critic.decide(action, signed_off=signed_off)
        except Exception as error:  # whatever goes wrong in the deciding, the answer is no
            raise dead("critic", f"failed on this action ({type(error).__name__})") from error

    def refuse_attempt(self, what: str, where: str, why: str) -> None:
        """Records what was refused before it was an action, at a bounded rate."""
        if not self._refusals.take(self.house.loop.time()):
            return
        event = events.attempt_refused(self.house.ids.event(), self.id, self.agent, what=what, where=where, why=why, suppressed=self._refusals.told())
        self.record(event)

    def record(self, event: Event) -> bool:
        """For what is only told: an unreachable record loses it, and `check_alive` refuses what comes next."""
        try:
            self.house.recorder.append(event)
        except BailiwickError:
            return False
        return True

    def sweep(self, now: float) -> None:
        governed = self.house.governor.fresh
        for connection in tuple(self.connections):
            connection.govern(governed)
            connection.sweep(now)
        self.upstreams.sweep(now)
        self.leases.sweep(now)

    def close(self, reason: str) -> tuple[int, list[str]]:
        """Cuts every connection; how many there were, and the actions whose outcome is now unknown."""
        self.closed = reason
        self.asked.forget()
        known = len(self.unknown)
        connections = tuple(self.connections)
        for connection in connections:
            connection.cut(reason)  # ends its exchange, which records its outcome
        self.upstreams.close()
        self.denials.release()  # what waits to be recorded is
        self.leases.clear()
        return len(connections), self.unknown[known:]
