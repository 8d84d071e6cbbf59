"""The broker's process: who may ask what, what is recorded before it answers, and that no value is anywhere else."""

import base64
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from bailiwick.broker.messages import BROKER, GrantLease, LeasesRevoked, LeasesUsed, RevokeLeases, UseLease
from bailiwick.broker.server import Broker
from bailiwick.broker.sources.port import CredentialSource, SourceError, accepted
from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.channel import Channel, Done, Message, Peer, Received, Reply, connect, serve
from bailiwick.kernel.clock import SystemClock, timestamp
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, Conflict, Forbidden, NotFound
from bailiwick.kernel.secret import Secret
from bailiwick.record.client import RecorderDown
from bailiwick.record.event import KINDS, Event, encode

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


GOVERNOR, GATEWAY_0, GATEWAY_1, RECORDER, STRANGER = 2001, 2002, 2003, 2004, 2999
ACCOUNTS = Accounts(
    (
        Account("governor", Role.GOVERNOR, GOVERNOR, GOVERNOR),
        Account("gateway-0", Role.GATEWAY, GATEWAY_0, GATEWAY_0),
        Account("gateway-1", Role.GATEWAY, GATEWAY_1, GATEWAY_1),
        Account("recorder", Role.RECORDER, RECORDER, RECORDER),
    ),
    separate=True,
)
SECRET = b"planted-s3cret-value"


class SetClock(SystemClock):
    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self):  # type: ignore[no-untyped-def]
        return super().now() + timedelta(seconds=self.ahead)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class FakeRecord:
    """Takes what the real one would: events that can be encoded, of the broker's kinds. `down` fails as a dead recorder does; `pause` holds a commit."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.down = False
        self.pause: anyio.Event | None = None
        self.waiting = 0

    def append(self, event: Event) -> None:
        if self.down:
            raise RecorderDown("recorder is down")
        assert Role.BROKER in KINDS[event.kind].writers
        encode(event)
        self.events.append(event)

    async def append_durably(self, event: Event, *, seconds_max: float) -> int:
        await anyio.sleep(0)
        if self.pause is not None:
            self.waiting += 1
            await self.pause.wait()
        self.append(event)
        return len(self.events)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class FakeSource:
    def __init__(self, value: bytes | None) -> None:
        self.value = value
        self.pause: anyio.Event | None = None
        self.waiting = 0

    async def fetch(self) -> Secret:
        if self.pause is not None:
            self.waiting += 1
            await self.pause.wait()
        if self.value is None:
            raise SourceError("credential 'token': the fake has no value; set one")
        return accepted(self.value, credential="token", place="the fake")


class House:
    def __init__(self) -> None:
        self.clock = SetClock()
        self.record = FakeRecord()
        self.source = FakeSource(SECRET)
        self.sources: dict[str, CredentialSource] = {"token": self.source, "other": FakeSource(b"other-s3cret")}
        self.broker = self.new_broker()

    def new_broker(self) -> Broker:
        return Broker(accounts=ACCOUNTS, clock=self.clock, sources=self.sources, record=self.record)

    async def ask(self, message: Message, uid: int) -> Message:
        channel = cast(Channel, type("Peered", (), {"peer": Peer(1, uid, uid)})())
        return (await self.broker.handle(channel, Received(message))).message

    def grant(self, **changed: Any) -> GrantLease:
        expires = timestamp(SystemClock().now() + timedelta(minutes=15))
        terms: dict[str, Any] = {
            "lease": "lease-1", "run": "run-1", "agent": "deployer", "worker": "gateway-0", "credential": "token", "hosts": ["config.internal"],
            "verbs": ["read", "write"], "template": "Authorization: Bearer {value}", "expires": expires,
        }  # fmt: skip
        return GrantLease(**(terms | changed))

    async def use(self, uid: int = GATEWAY_0, **changed: str) -> list[bytes]:
        asked = UseLease(**({"run": "run-1", "action": "a-1", "host": "config.internal", "verb": "read"} | changed))
        answer = await self.ask(asked, uid)
        assert isinstance(answer, LeasesUsed)
        return [base64.b64decode(use.value) for use in answer.uses]


@pytest.fixture
def house() -> House:
    return House()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


async def test_a_lease_is_granted_used_and_revoked_and_all_is_on_file(house: House) -> None:
    """The life of one lease, and the event of each step."""
    assert await house.ask(house.grant(), GOVERNOR) == Done()
    assert await house.use() == await house.use(host="CONFIG.internal.") == [b"Bearer " + SECRET]
    assert await house.ask(RevokeLeases(run="run-1", reason="the run ended"), GOVERNOR) == LeasesRevoked(["lease-1"])
    assert await house.use() == []
    assert house.record.kinds() == ["lease.granted", "lease.used", "lease.used", "lease.revoked"]
    granted, used, _, revoked = house.record.events
    assert (granted.run, granted.agent, granted.credential) == ("run-1", "deployer", "token")
    assert (used.action, used.verb, used.body) == ("a-1", "read", {"lease": "lease-1", "host": "config.internal", "use": 1})
    assert revoked.body == {"lease": "lease-1", "reason": "the run ended", "uses": 2}


async def test_only_the_governor_grants_and_revokes_and_only_a_worker_uses(house: House) -> None:
    """A message from the wrong process is Forbidden, whoever sends it."""
    await house.ask(house.grant(), GOVERNOR)
    for uid in (GATEWAY_0, RECORDER, STRANGER):
        with pytest.raises(Forbidden):
            await house.ask(house.grant(lease="lease-2"), uid)
        with pytest.raises(Forbidden):
            await house.ask(RevokeLeases(run="run-1", reason="x"), uid)
    for uid in (GOVERNOR, RECORDER, STRANGER):
        with pytest.raises(Forbidden):
            await house.use(uid=uid)
    assert [house.broker.admits(Peer(1, uid, uid)) for uid in (GOVERNOR, GATEWAY_0, RECORDER, STRANGER)] == [True, True, False, False]


async def test_a_worker_uses_the_leases_of_its_own_runs_only(house: House) -> None:
    """Another worker's run is Forbidden to a worker that was taken over."""
    await house.ask(house.grant(), GOVERNOR)
    with pytest.raises(Forbidden):
        await house.use(uid=GATEWAY_1)
    assert house.record.kinds() == ["lease.granted"]


async def test_another_host_or_verb_gets_nothing(house: House) -> None:
    """No lease applies: an empty answer, and no event."""
    await house.ask(house.grant(), GOVERNOR)
    for changed in ({"host": "config.internal.evil"}, {"host": "internal"}, {"verb": "delete"}, {"run": "run-2"}):
        assert await house.use(**changed) == []
    assert house.record.kinds() == ["lease.granted"]


async def test_the_grant_is_on_file_before_it_is_answered_and_before_it_lives(house: House) -> None:
    """While the recorder has not committed, the lease gives nothing."""
    house.record.pause = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.ask, house.grant(), GOVERNOR)
        await until(lambda: house.record.waiting == 1)
        assert await house.use() == []
        house.record.pause.set()
    assert await house.use() == [b"Bearer " + SECRET]


async def test_without_a_recorder_nothing_is_granted_and_no_value_leaves(house: House) -> None:
    """A dead recorder fails both closed; a revocation takes effect all the same and is recorded when it can be."""
    house.record.down = True
    asked = house.grant()
    with pytest.raises(RecorderDown):
        await house.ask(asked, GOVERNOR)
    assert await house.use() == []
    house.record.down = False
    await house.ask(asked, GOVERNOR)
    house.record.down = True
    with pytest.raises(RecorderDown):
        await house.use()
    with pytest.raises(RecorderDown):
        await house.ask(RevokeLeases(run="run-1", reason="contained"), GOVERNOR)
    assert await house.use() == []
    house.record.down = False
    assert await house.ask(RevokeLeases(run="run-1", reason="again"), GOVERNOR) == LeasesRevoked(["lease-1"])
    await house.broker.sweep()
    assert house.record.kinds() == ["lease.granted", "lease.revoked"]
    assert house.record.events[-1].body["reason"] == "contained"


async def test_a_revocation_overtakes_a_grant_that_is_being_recorded(house: House) -> None:
    """Revoked while the recorder commits: the grant fails and nothing lives."""
    house.record.pause = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def granted() -> None:
            with pytest.raises(Conflict):
                await house.ask(house.grant(), GOVERNOR)

        tasks.start_soon(granted)
        await until(lambda: house.record.waiting == 1)
        tasks.start_soon(house.ask, RevokeLeases(run="run-1", reason="contained"), GOVERNOR)
        await until(lambda: house.record.waiting == 2)
        house.record.pause.set()
    assert await house.use() == []


async def test_a_lease_that_dies_while_its_value_is_fetched_gives_nothing(house: House) -> None:
    """A slow source does not outrun a revocation."""
    await house.ask(house.grant(), GOVERNOR)
    house.source.pause = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def used() -> None:
            with pytest.raises(Conflict, match="died while"):
                await house.use()

        tasks.start_soon(used)
        await until(lambda: house.source.waiting == 1)
        await house.ask(RevokeLeases(run="run-1", reason="contained"), GOVERNOR)
        house.source.pause.set()
    assert "lease.used" not in house.record.kinds()


async def test_an_expired_lease_is_dead_and_its_death_is_on_file(house: House) -> None:
    """By the sweep, without anybody asking."""
    await house.ask(house.grant(), GOVERNOR)
    house.clock.ahead = 15 * 60 + 1
    with pytest.raises(Conflict, match="expired"):
        await house.use()
    await house.broker.sweep()
    await house.broker.sweep()
    assert house.record.kinds() == ["lease.granted", "lease.revoked"]
    assert house.record.events[-1].body == {"lease": "lease-1", "reason": "expired", "uses": 0}


async def test_a_live_lease_is_extended_once_that_is_on_file(house: House) -> None:
    """The same grant with a later expiry: recorded again, and alive past its first end; the same expiry again is no event."""
    await house.ask(house.grant(), GOVERNOR)
    house.clock.ahead = 10 * 60
    later = house.grant(expires=timestamp(house.clock.now() + timedelta(minutes=15)))
    await house.ask(later, GOVERNOR)
    await house.ask(later, GOVERNOR)
    assert house.record.kinds() == ["lease.granted", "lease.granted"]
    house.clock.ahead = 20 * 60
    assert len(await house.use()) == 1


async def test_an_answer_is_kept_no_longer_than_the_lease_lives(house: House) -> None:
    """What a worker may keep ends with the lease."""
    await house.ask(house.grant(), GOVERNOR)
    answer = await house.ask(UseLease(run="run-1", action="a", host="config.internal", verb="read"), GATEWAY_0)
    assert isinstance(answer, LeasesUsed)
    assert answer.seconds_max == 5.0
    house.clock.ahead = 15 * 60 - 2
    answer = await house.ask(UseLease(run="run-1", action="a", host="config.internal", verb="read"), GATEWAY_0)
    assert isinstance(answer, LeasesUsed)
    assert 0 < answer.seconds_max <= 2


async def test_granting_again_is_the_same_grant(house: House) -> None:
    """A governor that is not sure says it again; a broker that was started anew is told again, and holds nothing before."""
    asked = house.grant()
    await house.ask(asked, GOVERNOR)
    await house.ask(asked, GOVERNOR)
    assert house.record.kinds() == ["lease.granted"]
    house.broker = house.new_broker()
    assert await house.use() == []
    await house.ask(asked, GOVERNOR)
    assert await house.use() == [b"Bearer " + SECRET]


async def test_the_value_is_that_of_the_moment(house: House) -> None:
    """A rotated credential is lent with its new value, by the lease there is."""
    await house.ask(house.grant(), GOVERNOR)
    house.source.value = b"rotated"
    assert await house.use() == [b"Bearer rotated"]
    house.source.value = None
    with pytest.raises(SourceError):
        await house.use()


async def test_several_credentials_of_one_host_come_together(house: House) -> None:
    """Each fills its own field."""
    await house.ask(house.grant(), GOVERNOR)
    await house.ask(house.grant(lease="lease-2", credential="other", template="Cookie: s={value}"), GOVERNOR)
    assert await house.use() == [b"Bearer " + SECRET, b"s=other-s3cret"]
    with pytest.raises(Conflict, match="one credential for a field"):
        await house.ask(house.grant(lease="lease-3", credential="other"), GOVERNOR)


BAD = [
    ({"credential": "unknown"}, NotFound, "is not in the configuration; known: other, token"),
    ({"worker": "gateway-9"}, CallerError, "must be one of gateway-0, gateway-1"),
    ({"hosts": []}, CallerError, "1 to 64 hosts"),
    ({"hosts": ["h"] * 65}, CallerError, "1 to 64 hosts"),
    ({"hosts": [""]}, CallerError, "host '' is not taken"),
    ({"hosts": ["a\nb"]}, CallerError, "printable"),
    ({"verbs": []}, CallerError, "at least one verb"),
    ({"verbs": ["look"]}, CallerError, "verb 'look' is unknown"),
    ({"template": "Host: {value}"}, CallerError, "field Host"),
    ({"expires": "tomorrow"}, CallerError, "RFC 3339"),
    ({"expires": "2030-01-01T00:00:00"}, CallerError, "RFC 3339"),
    ({"expires": "2020-01-01T00:00:00Z"}, CallerError, "in the future"),
    ({"expires": "2999-01-01T00:00:00Z"}, CallerError, "a lease is short"),
    ({"run": "x" * 600}, CallerError, "512 printable"),
    ({"lease": "\x1b[2J"}, CallerError, "printable"),
]


@pytest.mark.parametrize(("changed", "kind", "said"), BAD)
async def test_a_bad_grant_is_refused_and_leaves_nothing(house: House, changed: dict[str, Any], kind: type[BailiwickError], said: str) -> None:
    """Value, expectation, way out; and nothing lives or is on file."""
    with pytest.raises(kind, match=said):
        await house.ask(house.grant(**changed), GOVERNOR)
    assert house.record.events == []
    assert await house.use() == []


async def test_a_value_that_cannot_be_injected_is_refused_at_the_grant(house: House) -> None:
    """Better no run than one whose first action fails; the error holds no value."""
    house.source.value = b"planted-s3cret\r\nHost: evil"
    with pytest.raises(BackendError, match="cannot stand in the field") as caught:
        await house.ask(house.grant(), GOVERNOR)
    assert "s3cret" not in str(caught.value)


async def test_no_value_in_events_errors_or_text(house: House) -> None:
    """Everything the broker says or writes besides the answer to a use is searched for the planted value, as it is and in base64."""
    await house.ask(house.grant(), GOVERNOR)
    answer = await house.ask(UseLease(run="run-1", action="a", host="config.internal", verb="read"), GATEWAY_0)
    await house.ask(RevokeLeases(run="run-1", reason="x"), GOVERNOR)
    written = b"".join(encode(event) for event in house.record.events) + repr([answer, house.broker, house.broker._book]).encode()
    for form in (SECRET, base64.b64encode(SECRET), base64.b64encode(b"Bearer " + SECRET)):
        assert form not in written


async def test_strangers_do_not_fill_the_record(house: House) -> None:
    """One event a second at most, which counts the others."""
    for _ in range(100):
        house.broker.refused(Peer(1, STRANGER, STRANGER), "uid is not one of our processes")
    house.clock.ahead = 2
    house.broker.refused(Peer(1, STRANGER, STRANGER), "again")
    assert [event.body["besides"] for event in house.record.events] == [0, 99]


async def test_descriptors_that_come_along_are_closed(house: House) -> None:
    """The broker takes none and keeps none."""
    read, write = os.pipe()
    channel = cast(Channel, type("Peered", (), {"peer": Peer(1, STRANGER, STRANGER)})())
    with pytest.raises(Forbidden):
        await house.broker.handle(channel, Received(house.grant(), (read,)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)
    os.close(write)


@asynccontextmanager
async def served(house: House, path: Path) -> AsyncIterator[Channel]:
    """The broker on a real socket, where every process is this one."""
    uid, gid = os.getuid(), os.getgid()
    house.broker._accounts = Accounts((Account("governor", Role.GOVERNOR, uid, gid), Account("gateway-0", Role.GATEWAY, uid, gid)), separate=False)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    async def serving() -> None:
        await serve(listener, BROKER, house.broker.handle, admit=house.broker.admits, refused=house.broker.refused)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serving)
        channel = await connect(str(path), BROKER)
        tasks.start_soon(channel.run)
        yield channel
        tasks.cancel_scope.cancel()
    listener.close()


async def test_ten_thousand_requests_at_once_do_not_break_it(house: House, tmp_path: Path) -> None:
    """Over a socket, all at once: every one is answered, and the broker goes on."""
    async with served(house, tmp_path / "broker.sock") as channel:
        await channel.call(house.grant())
        answers = {"value": 0, "busy": 0}

        async def use() -> None:
            try:
                answer = (await channel.call(UseLease(run="run-1", action="a", host="config.internal", verb="read"), seconds_max=60)).message
            except BailiwickError as error:
                answers[error.code] += 1
            else:
                assert isinstance(answer, LeasesUsed)
                assert len(answer.uses) == 1
                answers["value"] += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(10_000):
                tasks.start_soon(use)
        assert answers["value"] + answers["busy"] == 10_000
        assert answers["value"] >= 1_000
        assert (await channel.call(RevokeLeases(run="run-1", reason="done"))).message == LeasesRevoked(["lease-1"])


async def test_an_unexpected_message_is_an_answer_not_an_end(house: House) -> None:
    """What is not a request to the broker is a CallerError."""
    with pytest.raises(CallerError, match="must be GrantLease"):
        await house.ask(Done(), GOVERNOR)
    assert isinstance(Reply().message, Done)
