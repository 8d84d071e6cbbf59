"""What the data path needs of the processes around it, as it needs it. Each may be dead at any moment; each then says so and nothing is allowed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from bailiwick.broker.messages import LeasesUsed, UseLease
from bailiwick.critic.enforcement import HoldOpened, OpenHold, RedeemHold
from bailiwick.gateway.layers.tls import ContextFor
from bailiwick.gateway.upstream import Resolver, TlsContexts
from bailiwick.gateway.waiting import Tasks
from bailiwick.kernel.clock import Clock
from bailiwick.kernel.ids import SequenceOfIds
from bailiwick.record.event import Event


class Recorder(Protocol):
    """`record.client.RecordClient`. Both raise BackendError when the record cannot take more."""

    @property
    def healthy(self) -> bool: ...

    @property
    def behind(self) -> bool:
        """Much is unacknowledged; new requests wait for `when_caught_up`."""
        ...

    def when_caught_up(self, call: Callable[[], None]) -> None: ...

    def append(self, event: Event) -> None:
        """Written in time; lost only with this process."""
        ...

    def append_encoded(self, text: str) -> None:
        """The same for an event as `record.event.encode` writes it."""
        ...

    async def append_durably(self, event: Event) -> int:
        """Returns after the commit."""
        ...


class Broker(Protocol):
    async def use(self, request: UseLease) -> LeasesUsed:
        """Raises BailiwickError when the broker is away or refuses."""
        ...


class Governor(Protocol):
    """`fresh` is whether its heartbeat was heard within limits.HEARTBEAT_STALE_SECONDS."""

    @property
    def fresh(self) -> bool: ...

    async def open_hold(self, request: OpenHold) -> HoldOpened: ...

    async def redeem(self, request: RedeemHold) -> None:
        """Once for each grant; raises BailiwickError that says why not."""
        ...


@dataclass(slots=True)
class House:
    """What all runs of one worker share."""

    loop: asyncio.AbstractEventLoop
    clock: Clock
    recorder: Recorder
    broker: Broker
    governor: Governor
    context_for: ContextFor  # towards agents: a server context with the certificate of a name
    tasks: Tasks
    contexts: TlsContexts = field(default_factory=TlsContexts)
    ids: SequenceOfIds = field(default_factory=SequenceOfIds)
    resolver: Resolver | None = None
    buffered: int = 0  # bytes of bodies that wait for their decision, of all runs
