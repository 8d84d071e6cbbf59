"""Connections the governor keeps to the other processes: made again with back-off, with its heartbeat on them, and a hook for what must be said first."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from bailiwick.kernel import limits
from bailiwick.kernel.channel import Channel, Handler, Heartbeat, Message, Received, Reply, Service, connect
from bailiwick.kernel.errors import BackendError, BailiwickError, PeerError

_BACKOFF_SECONDS_FIRST = 0.02
_BACKOFF_SECONDS_MAX = 1.0


async def _nothing() -> None:
    return


def _first(group: BaseExceptionGroup) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@dataclass(slots=True)
class Link:
    """`greet` runs after each connection and before anybody else may call: what a process that was started anew must be told first."""

    name: str
    path: str
    service: Service
    handler: Handler | None = None
    heartbeats: bool = False
    greet: Callable[[], Awaitable[None]] = _nothing
    _channel: Channel | None = None
    _up: anyio.Event = field(default_factory=anyio.Event)
    _beats: int = 0

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def call(self, message: Message, *, seconds_max: float = limits.CALL_SECONDS_MAX) -> Message:
        """The answer, once the link is up. BackendError naming the process when it is not up in time."""
        with anyio.move_on_after(limits.CONNECT_SECONDS_MAX):
            await self._up.wait()
        if not self.up:
            raise BackendError(f"{self.name} is down; `bailiwick status` shows why", code="process-down")
        return await self.call_now(message, seconds_max=seconds_max)

    async def call_now(self, message: Message, *, seconds_max: float = limits.CALL_SECONDS_MAX) -> Message:
        """As `call`, on the connection there is: for `greet`."""
        if self._channel is None:
            raise BackendError(f"{self.name} is down; `bailiwick status` shows why", code="process-down")
        received = await self._channel.call(message, seconds_max=seconds_max)
        return received.message

    async def tell(self, message: Message) -> None:
        """Told when the link is up; dropped when it is not: only for what `greet` says again."""
        if self._channel is not None and self.up:
            await self._channel.tell(message)

    async def run(self) -> None:
        """For ever."""
        backoff = _BACKOFF_SECONDS_FIRST
        while True:
            try:
                channel = await connect(self.path, self.service, self._handle)
            except PeerError:
                await anyio.sleep(backoff)
                backoff = min(backoff * 2, _BACKOFF_SECONDS_MAX)
                continue
            try:
                await self._keep(channel)
                backoff = _BACKOFF_SECONDS_FIRST
            except* BailiwickError as group:  # what was to be said first could not be: it is said again on the next connection
                print(f"link to {self.name}: {_first(group)}", flush=True)  # noqa: T201  standard output is this process's log
            finally:
                self._channel = None
                if self.up:
                    self._up = anyio.Event()
            await anyio.sleep(backoff)
            backoff = min(backoff * 2, _BACKOFF_SECONDS_MAX)

    async def _keep(self, channel: Channel) -> None:
        self._channel = channel
        async with anyio.create_task_group() as tasks:
            if self.heartbeats:
                tasks.start_soon(self._beat, channel)
            tasks.start_soon(self._greet)
            await channel.run()
            tasks.cancel_scope.cancel()

    async def _greet(self) -> None:
        await self.greet()
        self._up.set()

    async def _beat(self, channel: Channel) -> None:
        while True:
            self._beats += 1
            await channel.tell(Heartbeat(number=self._beats))
            await anyio.sleep(limits.HEARTBEAT_SECONDS)

    async def _handle(self, channel: Channel, received: Received) -> Reply | None:
        if self.handler is None:
            return None
        return await self.handler(channel, received)
