"""Channels: both ends of a connection between our processes, on asyncio and on uvloop."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bailiwick.kernel import limits
from bailiwick.kernel.channel import Channel, Done, Message, Peer, Received, RemoteFailure, Reply, Service, connect, serve
from bailiwick.kernel.errors import BackendError, CallerError, Conflict, PeerError
from bailiwick.kernel.framing import Framer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


class Say(Message, frozen=True):
    text: str


TALK = Service("talk", 1, [Say], descriptors_max=4)
QUIET = Service("talk", 1, [Say])
Handle = Callable[[Channel, Received], Awaitable[Reply | None]]


async def echo(channel: Channel, received: Received) -> Reply:
    received.close()
    return Reply(received.message)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


@asynccontextmanager
async def pair(handler: Handle | None = echo, *, service: Service = TALK, back: Handle | None = None) -> AsyncIterator[tuple[Channel, Channel]]:
    """A client and the served end, both running."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    client, served = Channel(ours, service, back), Channel(theirs, service, handler)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run)
        tasks.start_soon(served.run)
        yield client, served
        tasks.cancel_scope.cancel()
    client.close()
    served.close()


class Listening:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.refusals: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)

    def refused(self, peer: Peer, why: str) -> None:
        self.refusals.append(why)


@asynccontextmanager
async def listening(path: Path, handler: Handle, *, admit: Callable[[Peer], bool] = lambda peer: True) -> AsyncIterator[Listening]:
    """A service on a socket; that it still answers at the end is part of every test here."""
    state = Listening(path)
    with state.listener:
        async with anyio.create_task_group() as tasks:

            async def serving() -> None:
                await serve(state.listener, TALK, handler, admit=admit, refused=state.refused)

            tasks.start_soon(serving)
            yield state
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def caller(state: Listening) -> AsyncIterator[Channel]:
    channel = await connect(state.path, TALK)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run)
        yield channel
        tasks.cancel_scope.cancel()


async def test_calls_are_answered_concurrently_and_by_number() -> None:
    """A slow answer does not hold a quick one up, and each goes to its asker."""
    gate = anyio.Event()

    async def handler(channel: Channel, received: Received) -> Reply:
        if received.message == Say(text="slow"):
            await gate.wait()
        return Reply(received.message)

    async with pair(handler) as (client, _):
        answers: list[Message] = []

        async def ask(text: str) -> None:
            answers.append((await client.call(Say(text=text))).message)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "slow")
            for number in range(100):
                tasks.start_soon(ask, str(number))
            await until(lambda: len(answers) == 100)
            gate.set()
        assert {answer.text for answer in answers if isinstance(answer, Say)} == {"slow", *map(str, range(100))}
        assert answers[-1] == Say(text="slow")


async def test_a_call_may_be_made_before_the_channel_runs() -> None:
    """Hello leaves first, whoever sends first."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    client, served = Channel(ours, TALK), Channel(theirs, TALK, echo)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.run)
        await client.tell(Say(text="early"))
        tasks.start_soon(client.run)
        assert (await client.call(Say(text="a"))).message == Say(text="a")
        tasks.cancel_scope.cancel()


async def test_both_ends_call_each_other_within_a_call() -> None:
    """A handler may ask its asker back."""

    async def asks_back(channel: Channel, received: Received) -> Reply:
        return Reply((await channel.call(Say(text="back"))).message)

    async with pair(asks_back, back=echo) as (client, _):
        assert (await client.call(Say(text="a"))).message == Say(text="back")


async def test_the_largest_message_passes_and_a_larger_one_is_the_caller_s_error() -> None:
    """Back-pressure of the socket is waited for; what cannot be sent leaves the connection whole."""
    async with pair() as (client, _):
        large = Say(text="x" * (limits.FRAME_BYTES_MAX - 200))
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(client.call, large)
        with pytest.raises(CallerError, match="must be at most") as caught:
            await client.call(Say(text="x" * limits.FRAME_BYTES_MAX))
        assert caught.value.code == "too-large"
        assert (await client.call(Say(text="a"))).message == Say(text="a")


async def test_an_answer_too_large_is_a_failure_answer() -> None:
    """The asker is told, and both ends go on."""

    async def handler(channel: Channel, received: Received) -> Reply:
        return Reply(Say(text="x" * limits.FRAME_BYTES_MAX)) if received.message == Say(text="much") else Reply()

    async with pair(handler) as (client, _):
        with pytest.raises(RemoteFailure) as caught:
            await client.call(Say(text="much"))
        assert caught.value.code == "too-large"
        assert (await client.call(Say(text="a"))).message == Done()


@pytest.mark.parametrize(("error", "raised"), [(Conflict("taken"), Conflict), (CallerError("bad"), CallerError), (BackendError("disk"), RemoteFailure)])
async def test_a_handler_s_error_is_the_caller_s(error: Exception, raised: type[Exception]) -> None:
    """By its code, with its text; the connection goes on."""

    async def handler(channel: Channel, received: Received) -> Reply:
        if received.message == Say(text="fail"):
            raise error
        return Reply()

    async with pair(handler) as (client, _):
        with pytest.raises(raised, match=str(error)):
            await client.call(Say(text="fail"))
        await client.tell(Say(text="fail"))
        assert (await client.call(Say(text="a"))).message == Done()


async def test_an_end_without_a_handler_takes_no_requests() -> None:
    """It says so, and closes what came along."""
    async with pair(None) as (client, _):
        with pytest.raises(CallerError, match="takes no requests"):
            await client.call(Say(text="a"))


async def test_our_own_mistake_closes_the_connection_and_not_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The asker hears `internal`, the log holds the traceback, other connections are served."""

    async def handler(channel: Channel, received: Received) -> Reply:
        if received.message == Say(text="bug"):
            raise KeyError("a mistake of ours")
        return Reply()

    async with listening(tmp_path / "s", handler) as state, caller(state) as other:
        async with caller(state) as client:
            with pytest.raises(RemoteFailure, match="its log says why") as caught:
                await client.call(Say(text="bug"))
            assert caught.value.code == "internal"
            await until(lambda: client.closed)
            with pytest.raises(PeerError):
                await client.call(Say(text="a"))
        assert (await other.call(Say(text="a"))).message == Done()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "talk failed on Say" in record.getMessage()


async def test_a_call_has_a_deadline_and_its_late_answer_is_dropped() -> None:
    """The next call is not given the last one's answer."""
    gate = anyio.Event()

    async def handler(channel: Channel, received: Received) -> Reply:
        if received.message == Say(text="slow"):
            await gate.wait()
        return Reply(received.message)

    async with pair(handler) as (client, _):
        with pytest.raises(PeerError, match=r"did not answer Say within 0\.01 s"):
            await client.call(Say(text="slow"), seconds_max=0.01)
        gate.set()
        assert (await client.call(Say(text="b"))).message == Say(text="b")


async def test_a_call_that_is_given_up_half_sent_closes_the_connection() -> None:
    """Half a frame is never followed by another one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    client = Channel(ours, TALK)
    with theirs, pytest.raises(PeerError):
        await client.call(Say(text="x" * 3_000_000), seconds_max=0.05)  # nobody reads
    assert client.closed
    with pytest.raises(PeerError, match="closed the connection"):
        await client.tell(Say(text="a"))


async def test_a_peer_that_closes_fails_what_waits() -> None:
    """In the middle of a call, at once, with a code of its own."""

    async def closes(channel: Channel, received: Received) -> Reply:
        channel.close()
        return Reply()

    async with pair(closes) as (client, _):
        with anyio.fail_after(5), pytest.raises(PeerError, match="closed the connection") as caught:
            await client.call(Say(text="a"), seconds_max=60)
        assert caught.value.code == "closed"


async def test_closing_from_another_task_ends_run_and_waiting_senders() -> None:
    """No task hangs on a closed socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    client = Channel(ours, TALK)
    ended: list[str] = []

    async def runs() -> None:
        await client.run()
        ended.append("run")

    async def sends() -> None:
        with pytest.raises(PeerError):
            await client.tell(Say(text="x" * 3_000_000))
        ended.append("send")

    with theirs, anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runs)
            tasks.start_soon(sends)
            await anyio.sleep(0.02)
            client.close()
    assert sorted(ended) == ["run", "send"]


async def test_a_number_used_again_at_once_is_not_taken_for_the_closed_socket() -> None:
    """The closed channel's reader, when it wakes, does not take away what waits on the new socket of the same number."""
    for _ in range(50):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        client = Channel(ours, TALK)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.run)
            await anyio.sleep(0)
            await anyio.sleep(0)
            client.close()
            theirs.close()
            again, other = socket.socketpair(socket.AF_UNIX)
            with again, other, anyio.fail_after(5):
                other.send(b"a")
                await anyio.wait_readable(again)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_descriptors_arrive_in_order_close_on_exec_and_are_the_handler_s() -> None:
    """Each message gets its own; none is inherited by what we start."""
    got: list[tuple[int, ...]] = []

    async def handler(channel: Channel, received: Received) -> Reply:
        got.append(received.descriptors)
        return Reply(Done(), received.descriptors[:1])

    before = open_descriptors()
    files = [os.memfd_create(f"f{number}") for number in range(3)]
    async with pair(handler) as (client, _):
        first = await client.call(Say(text="a"), descriptors=files[:2])
        second = await client.call(Say(text="b"), descriptors=files[2:])
        assert [[os.fstat(fd).st_ino for fd in fds] for fds in got] == [[os.fstat(fd).st_ino for fd in files[:2]], [os.fstat(files[2]).st_ino]]
        assert os.fstat(first.descriptors[0]).st_ino == os.fstat(files[0]).st_ino
        assert not any(os.get_inheritable(fd) for fds in (*got, first.descriptors, second.descriptors) for fd in fds)
        for fds in (*got, first.descriptors, second.descriptors, files):
            for fd in fds:
                os.close(fd)
    assert open_descriptors() == before


@contextlib.asynccontextmanager
async def raw_peer(service: Service = TALK, handler: Handle | None = echo) -> AsyncIterator[tuple[socket.socket, list[str]]]:
    """A served channel, and the other end as a bare socket that has said hello. The list gets what `run` raised."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    channel, raised = Channel(theirs, service, handler), list[str]()

    async def runs() -> None:
        try:
            await channel.run()
            raised.append("")
        except PeerError as error:
            raised.append(str(error))

    with ours:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runs)
            ours.send(Framer(service).hello())
            yield ours, raised
            await until(lambda: raised)
            tasks.cancel_scope.cancel()


async def test_descriptors_that_no_frame_announced_end_the_connection() -> None:
    """They are closed, not collected."""
    before = open_descriptors()
    async with raw_peer() as (sock, raised):
        socket.send_fds(sock, [Framer.send("tell", Say(text="a"), fds=1)], [0, 1])
    assert "descriptors that no frame announced" in raised[0]
    async with raw_peer() as (sock, raised):
        socket.send_fds(sock, [Framer.send("tell", Say(text="a"))], [0])
    assert "descriptors that no frame announced" in raised[0]
    assert open_descriptors() == before


async def test_announced_descriptors_that_do_not_come_end_the_connection() -> None:
    """A handler never sees fewer than it was told of."""
    before = open_descriptors()
    async with raw_peer() as (sock, raised):
        socket.send_fds(sock, [Framer.send("tell", Say(text="a"), fds=2)], [0])
    assert "announced 2 descriptors and sent 1" in raised[0]
    assert open_descriptors() == before


async def test_more_descriptors_than_may_be_end_the_connection() -> None:
    """In one message, and dripped into a frame that never ends."""
    before = open_descriptors()
    async with raw_peer() as (sock, raised):
        socket.send_fds(sock, [b"\0"], [0] * 6)
    assert "too many descriptors; must be at most 4" in raised[0]
    async with raw_peer() as (sock, raised):
        with contextlib.suppress(OSError):
            for _ in range(6):
                socket.send_fds(sock, [b"\0"], [0])
                await anyio.sleep(0.01)
    assert raised[0]
    async with raw_peer(QUIET) as (sock, raised):
        socket.send_fds(sock, [Framer.send("tell", Say(text="a"))], [0])
    assert "must be at most 0" in raised[0]
    assert open_descriptors() == before


async def test_a_service_without_descriptors_sends_none() -> None:
    """The sender's mistake is told to the sender."""
    async with pair(service=QUIET) as (client, _):
        with pytest.raises(CallerError, match="must be at most 0"):
            await client.call(Say(text="a"), descriptors=[0])
        assert (await client.call(Say(text="a"))).message == Say(text="a")


async def test_descriptors_for_an_answer_nobody_waits_for_are_closed() -> None:
    """A late answer, and one nobody asked for, leak nothing."""
    before = open_descriptors()
    async with raw_peer() as (sock, _):
        socket.send_fds(sock, [Framer.send("reply", Done(), id=99, fds=1)], [0])
        sock.shutdown(socket.SHUT_WR)
    assert open_descriptors() == before


async def test_descriptors_of_requests_that_were_not_begun_are_closed() -> None:
    """A burst that is followed by a breach of the protocol leaves nothing open."""
    before = open_descriptors()

    async def keeps(channel: Channel, received: Received) -> Reply:
        with contextlib.closing(received):
            await anyio.sleep_forever()
        return Reply()

    async with raw_peer(handler=keeps) as (sock, raised):
        for _ in range(20):
            socket.send_fds(sock, [Framer.send("tell", Say(text="a"), fds=1)], [0])
        sock.send(b"\xff" * 4)
    assert "must be at most" in raised[0]
    assert open_descriptors() == before


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x02{}", b"\xff" * 100, b"\0\0\0\x05hello"])
async def test_a_peer_that_speaks_something_else_is_refused_and_others_are_served(tmp_path: Path, garbage: bytes) -> None:
    """`refused` is told what was wrong; the service goes on."""
    async with listening(tmp_path / "s", echo) as state:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(state.path)
            stranger.send(garbage)
            await until(lambda: state.refusals)
        async with caller(state) as client:
            assert (await client.call(Say(text="a"))).message == Say(text="a")


async def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    """Both versions are in what is recorded."""
    async with listening(tmp_path / "s", echo) as state:
        channel = await connect(state.path, Service("talk", 2, [Say]))
        async with anyio.create_task_group() as tasks:

            async def runs() -> None:
                with contextlib.suppress(PeerError):
                    await channel.run()

            tasks.start_soon(runs)
            with pytest.raises(PeerError):
                await channel.call(Say(text="a"))
        await until(lambda: state.refusals)
        assert state.refusals == ["peer speaks 'talk' 2; must be talk 1"]


async def test_a_stranger_is_turned_away_before_it_says_anything(tmp_path: Path) -> None:
    """By its credentials; its descriptor is closed."""
    async with listening(tmp_path / "s", echo, admit=lambda peer: False) as state:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(state.path)
            await until(lambda: state.refusals)
            assert stranger.recv(1) == b""
        assert state.refusals == ["uid is not one of our processes"]


async def test_the_peer_is_who_the_kernel_says(tmp_path: Path) -> None:
    """pid, uid and gid, without a word of its own."""
    seen: list[Peer] = []

    async def handler(channel: Channel, received: Received) -> Reply:
        seen.append(channel.peer)
        return Reply()

    async with listening(tmp_path / "s", handler) as state, caller(state) as client:
        await client.call(Say(text="a"))
    assert seen == [Peer(os.getpid(), os.getuid(), os.getgid())]


async def test_one_uid_does_not_take_every_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its share a connection is refused; when one ends there is room again."""
    monkeypatch.setattr(limits, "CONNECTIONS_PER_UID_MAX", 2)
    async with listening(tmp_path / "s", echo) as state, caller(state) as first:
        async with caller(state) as second:
            for client in (first, second):
                await client.call(Say(text="a"))
            with socket.socket(socket.AF_UNIX) as third:
                third.connect(state.path)
                await until(lambda: state.refusals)
            assert state.refusals == ["uid has 2 connections; must be at most 2"]
        second.close()

        async def room() -> bool:
            async with caller(state) as again:
                try:
                    await again.call(Say(text="a"))
                except PeerError:
                    return False
                return True

        with anyio.fail_after(5):
            while not await room():
                await anyio.sleep(0.01)


async def test_a_peer_that_asks_too_much_at_once_is_told_to_ask_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded work for one connection; what is being served is served."""
    monkeypatch.setattr(limits, "REQUESTS_IN_FLIGHT_MAX", 3)
    gate = anyio.Event()

    async def waits(channel: Channel, received: Received) -> Reply:
        await gate.wait()
        return Reply()

    async with pair(waits) as (client, _):
        outcomes: list[str] = []

        async def ask() -> None:
            try:
                await client.call(Say(text="a"))
                outcomes.append("done")
            except RemoteFailure as error:
                outcomes.append(error.code)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await until(lambda: len(outcomes) == 2)
            gate.set()
        assert outcomes == ["busy", "busy", "done", "done", "done"]


async def test_a_listener_without_descriptors_left_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE is a pause, not an end."""

    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> Any:
            if Exhausted.failures:
                Exhausted.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    state = Listening(tmp_path / "s")
    exhausted = Exhausted(fileno=state.listener.detach())
    state.listener = exhausted
    with exhausted:
        async with anyio.create_task_group() as tasks:

            async def serving() -> None:
                await serve(exhausted, TALK, echo, admit=lambda peer: True, refused=state.refused)

            tasks.start_soon(serving)
            async with caller(state) as client:
                assert (await client.call(Say(text="a"))).message == Say(text="a")
            tasks.cancel_scope.cancel()
    assert Exhausted.failures == 0


async def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    """With the path, at once."""
    with pytest.raises(PeerError, match=r"talk is not reachable at .*/none: No such file") as caught:
        await connect(str(tmp_path / "none"), TALK)
    assert caught.value.code == "unreachable"


async def test_a_full_backlog_does_not_block_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that hangs is unreachable after a while, and the loop turns meanwhile."""
    monkeypatch.setattr(limits, "CONNECT_SECONDS_MAX", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "s"))
            with pytest.raises(PeerError, match="did not accept within"):
                await connect(str(tmp_path / "s"), TALK)
