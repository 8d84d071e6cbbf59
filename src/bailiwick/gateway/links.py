"""The worker's ends of the channels to the broker and the governor, as the data path sees them (`neighbours`)."""

import asyncio

from bailiwick.broker.messages import BROKER, LeasesUsed, UseLease
from bailiwick.critic.enforcement import HoldOpened, OpenHold, RedeemHold
from bailiwick.gateway.waiting import Tasks
from bailiwick.kernel import limits
from bailiwick.kernel.channel import Channel, Message, connect
from bailiwick.kernel.errors import BailiwickError, PeerError


class BrokerLink:
    """Connects when it is asked for something, and again after the broker was away."""

    def __init__(self, path: str, tasks: Tasks) -> None:
        self._path = path
        self._tasks = tasks
        self._channel: Channel | None = None

    async def use(self, request: UseLease) -> LeasesUsed:
        channel = self._channel
        if channel is None or channel.closed:
            channel = self._channel = await connect(self._path, BROKER)
            self._tasks.start(_until_closed(channel))
        answer = (await channel.call(request)).message
        if not isinstance(answer, LeasesUsed):
            raise PeerError(f"broker answers UseLease with {type(answer).__name__}")
        return answer


async def _until_closed(channel: Channel) -> None:
    try:
        await channel.run()
    except* BailiwickError:
        channel.close()  # the next request connects anew, and hears what is wrong


class GovernorLink:
    """The governor connects to the worker; the newest connection that was heard from is the one spoken on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._channel: Channel | None = None
        self._heard = -limits.HEARTBEAT_STALE_SECONDS

    @property
    def fresh(self) -> bool:
        return self._loop.time() - self._heard < limits.HEARTBEAT_STALE_SECONDS

    def heard(self, channel: Channel) -> None:
        """A heartbeat, and nothing else, says that it lives."""
        self._channel = channel
        self._heard = self._loop.time()

    async def open_hold(self, request: OpenHold) -> HoldOpened:
        answer = await self._call(request)
        if not isinstance(answer, HoldOpened):
            raise PeerError(f"governor answers OpenHold with {type(answer).__name__}")
        return answer

    async def redeem(self, request: RedeemHold) -> None:
        await self._call(request)

    async def tell(self, message: Message) -> None:
        """Lost when the governor is away: what is told is told again."""
        if self._channel is not None and not self._channel.closed:
            try:
                await self._channel.tell(message)
            except PeerError:
                return

    async def _call(self, message: Message) -> Message:
        if self._channel is None or self._channel.closed:
            raise PeerError("governor is not connected")
        return (await self._channel.call(message)).message
