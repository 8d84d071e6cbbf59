import asyncio
import contextlib
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tests.fakes.neighbourhood import Neighbourhood, neighbourhood

from bailiwick.critic.boundary import CompiledBoundary, compile_boundary
from bailiwick.critic.enforcement import ENFORCEMENT, BudgetLimits, CloseRun, OpenRun, ReportUsage, RunClosed, Usage
from bailiwick.critic.evaluate import Critic
from bailiwick.critic.rules import Rule
from bailiwick.gateway import worker
from bailiwick.gateway.links import GovernorLink
from bailiwick.gateway.runs import Run
from bailiwick.gateway.worker import Worker
from bailiwick.kernel.channel import Channel, Heartbeat, Message, Received, Reply, connect, serve
from bailiwick.kernel.errors import BailiwickError, CallerError, NotFound
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # as the worker runs


class Process:
    """A worker with both its channels, served in this process; the governor's and the launcher's ends are the test's."""

    def __init__(self, place: Neighbourhood) -> None:
        self.place = place
        self.link = GovernorLink(place.house.loop)
        place.house.governor = self.link
        self.worker = Worker(place.house, self.link, place.authority)
        self.told: list[Message] = []

    async def hear(self, _channel: Channel, received: Received) -> Reply | None:
        self.told.append(received.message)
        return None

    def order(self, run: str = "run-1") -> OpenRun:
        compiled = compile_boundary("deployer", [Rule.model_validate({"allow": ["read"], "http": "config.internal"})], None, {})
        return OpenRun(
            run=run, agent="deployer", boundary=compiled.to_json(), observe=False, hosts=self.place.hosts, models=[], budget=BudgetLimits(), used=Usage(),
            leased=[],
        )  # fmt: skip


@contextlib.asynccontextmanager
async def process(directory: Path) -> AsyncIterator[tuple[Process, Channel, Channel]]:
    async with neighbourhood(directory) as place, anyio.create_task_group() as group:
        built = Process(place)
        ends = [socket.socketpair(), socket.socketpair()]
        governor, launcher = Channel(ends[0][0], ENFORCEMENT, built.hear), Channel(ends[1][0], ADOPTION)
        for channel in (governor, launcher, Channel(ends[0][1], ENFORCEMENT, built.worker.enforce), Channel(ends[1][1], ADOPTION, built.worker.adopt)):
            group.start_soon(channel.run)
        yield built, governor, launcher
        built.worker.close("the test is over")
        governor.close()
        launcher.close()


def listener() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


async def ask(port: int, raw: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(raw)
        with anyio.fail_after(10):
            return await stream.receive()


@pytest.mark.anyio
async def test_a_run_is_opened_adopted_served_and_closed(tmp_path: Path) -> None:
    """The launcher's listener serves the governor's run; closing it refuses new connections and reports what was used."""
    async with process(tmp_path) as (built, governor, launcher):
        await built.place.pin("config.internal")
        await governor.tell(Heartbeat(number=1))
        await governor.call(built.order())
        sock, port = listener()
        read, write = os.pipe()
        await launcher.call(AdoptRun(run="run-1", names=["tcp:80", "stdout"]), descriptors=[sock.fileno(), read])
        sock.close()
        os.close(read)
        os.write(write, "hellö\n".encode())
        answer = await ask(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
        assert answer.startswith(b"HTTP/1.1 403 ")  # the dialled address is what it is: loopback, which no rule allows
        recorder = built.place.recorder
        await built.place.until(lambda: bool(recorder.of("run.output")))
        assert recorder.of("run.output")[0].body == {"stream": "stdout", "text": "hellö\n"}
        closed = (await governor.call(CloseRun(run="run-1", reason="over"))).message
        assert isinstance(closed, RunClosed)
        assert closed.unfinished == []
        with pytest.raises(OSError, match="attempts failed"):
            await anyio.connect_tcp("127.0.0.1", port)
        await built.place.until(lambda: any(isinstance(message, ReportUsage) for message in built.told))
        os.close(write)


@pytest.mark.anyio
async def test_a_restarted_worker_knows_the_names_the_agent_remembers(tmp_path: Path) -> None:
    """Told in the order of their addresses, as the record has them: what the agent resolved before still leads where it led, what it asks now comes after."""
    async with neighbourhood(tmp_path, {"allow": ["read"], "http": "config.internal"}) as place:
        upstream = await place.pin("config.internal")
        critic = Critic(CompiledBoundary.from_json(place.order().boundary))
        order = msgspec.structs.replace(place.order(), names=["other.example", "config.internal"])
        place.run = Run(place.house, order, critic, critic.digest)
        assert place.run.names.address_of("third.example") == "198.18.1.2"
        wire = await place.dial("198.18.1.1", 80)
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert (answer.status, len(upstream.requests)) == (200, 1)
        with pytest.raises(CallerError):
            place.run.hold_to(msgspec.structs.replace(order, names=["config.internal"], agent="another"), critic, critic.digest)
        assert place.run.agent == "deployer"


@pytest.mark.anyio
async def test_descriptors_of_an_unknown_run_or_name_are_closed(tmp_path: Path) -> None:
    """What is not served is not kept."""
    async with process(tmp_path) as (built, governor, launcher):
        sock, _port = listener()
        with pytest.raises(NotFound):
            await launcher.call(AdoptRun(run="run-9", names=["tcp:80"]), descriptors=[sock.fileno()])
        await governor.call(built.order())
        for names in (["tcp:80", "tap"], ["sctp:9"], ["udp:54"]):
            with pytest.raises(CallerError):
                await launcher.call(AdoptRun(run="run-1", names=names), descriptors=[sock.fileno()])
        sock.close()


@pytest.mark.anyio
async def test_a_silent_governor_denies_everything_and_keeps_the_listeners(tmp_path: Path) -> None:
    """Without a heartbeat the answer is 503 and names the governor; with one the same connection is served again."""
    async with neighbourhood(tmp_path, {"allow": ["read"], "http": "config.internal"}) as place:
        await place.pin("config.internal")
        place.governor.fresh = False
        wire = await place.dial("config.internal", 80)
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert answer.status == 503
        assert b"bailiwick.governor" in answer.body
        place.governor.fresh = True
        answer = await wire.ask(b"GET / HTTP/1.1\r\nHost: config.internal\r\n\r\n")
        assert answer.status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["", "{", '{"agent": 3}', None])
async def test_a_boundary_that_is_not_understood_refuses_its_run_only(tmp_path: Path, broken: str | None) -> None:
    """The governor hears which run and why; the channel, the worker and the other runs are as they were; a run that was open is held to what it was."""
    async with process(tmp_path) as (built, governor, launcher):
        await governor.tell(Heartbeat(number=1))
        good = built.order("run-1")
        await governor.call(good)
        if broken is None:  # well-formed, of policies that are none
            broken = good.boundary.replace("permit", "prevent")
            assert broken != good.boundary
        for run in ("run-1", "run-2"):
            with pytest.raises(CallerError, match=f"run {run} of deployer is not opened: compiled boundary"):
                await governor.call(msgspec.structs.replace(good, run=run, boundary=broken))
        sock, port = listener()
        with pytest.raises(NotFound):
            await launcher.call(AdoptRun(run="run-2", names=["tcp:80"]), descriptors=[sock.fileno()])
        await launcher.call(AdoptRun(run="run-1", names=["tcp:80"]), descriptors=[sock.fileno()])
        sock.close()
        assert (await ask(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)).startswith(b"HTTP/1.1 403 ")
        assert built.worker._runs["run-1"].order.boundary == good.boundary


@pytest.mark.anyio
async def test_runs_under_one_boundary_share_a_critic(tmp_path: Path) -> None:
    """Policies are parsed once for a boundary, and forgotten with its last run."""
    async with process(tmp_path) as (built, governor, _launcher):
        for run in ("run-1", "run-2"):
            await governor.call(built.order(run))
        await governor.call(built.order("run-1"))
        runs = built.worker._runs
        assert runs["run-1"].critic is runs["run-2"].critic
        assert len(built.worker._critics) == 1
        for run in ("run-1", "run-2"):
            await governor.call(CloseRun(run=run, reason="over"))
        del runs
        gc.collect()
        assert len(built.worker._critics) == 0


@pytest.mark.anyio
async def test_a_mistake_in_a_handler_costs_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The worker goes on: the governor connects again, and the run it opened before is still served."""
    path = str(tmp_path / "gateway.sock")
    async with neighbourhood(tmp_path) as place, anyio.create_task_group() as group:
        built = Process(place)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            group.start_soon(partial(serve, sock, ENFORCEMENT, built.worker.enforce, admit=lambda _: True, refused=built.worker.turned_away))

            async def wrong(self: Worker, name: str, reason: str) -> RunClosed:
                raise RuntimeError("a mistake")

            first = await connect(path, ENFORCEMENT, built.hear)
            group.start_soon(first.run)
            await first.call(built.order())
            with monkeypatch.context() as patch:
                patch.setattr(Worker, "_close", wrong)
                with pytest.raises(BailiwickError, match="failed on CloseRun"):
                    await first.call(CloseRun(run="run-1", reason="over"))
            await place.until(lambda: first.closed)
            second = await connect(path, ENFORCEMENT, built.hear)
            group.start_soon(second.run)
            assert "run-1" in built.worker._runs
            assert isinstance((await second.call(CloseRun(run="run-1", reason="over"))).message, RunClosed)
            group.cancel_scope.cancel()
    assert "a mistake" in caplog.text


@pytest.mark.anyio
async def test_a_mistake_about_one_run_closes_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are swept and reported all the same."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.01)
    seen: list[str] = []
    async with process(tmp_path) as (built, governor, _launcher):
        await governor.tell(Heartbeat(number=1))
        for run in ("run-1", "run-2"):
            await governor.call(built.order(run))
        runs = built.worker._runs

        def sweep(now: float) -> None:
            raise RuntimeError("a mistake")

        monkeypatch.setattr(runs["run-1"], "sweep", sweep)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context["message"]))
        async with anyio.create_task_group() as group:
            group.start_soon(built.worker.tick)
            await built.place.until(lambda: {"run-1", "run-2"} <= {message.run for message in built.told if isinstance(message, ReportUsage)})
            group.cancel_scope.cancel()
        asyncio.get_running_loop().set_exception_handler(None)
        assert (runs["run-1"].closed, runs["run-2"].closed) == ("the gateway failed on it", None)
        assert seen == ["sweep of run run-1 failed"]


@pytest.mark.anyio
async def test_a_governor_that_does_not_listen_delays_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pauses a run when nobody governs it does not wait for that very governor."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.01)
    swept: list[float] = []

    async def deaf(_message: Message) -> None:
        await anyio.sleep_forever()

    async with process(tmp_path) as (built, governor, _launcher):
        await governor.call(built.order())
        monkeypatch.setattr(built.link, "tell", deaf)
        monkeypatch.setattr(built.worker._runs["run-1"], "sweep", swept.append)
        async with anyio.create_task_group() as group:
            group.start_soon(built.worker.tick)
            await built.place.until(lambda: len(swept) >= 3)
            group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_process_serves_both_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` serves until it is told to stop, on uvloop."""
    seen: dict[str, Any] = {}

    async def stop(self: Worker) -> None:
        import asyncio

        seen["loop"] = type(asyncio.get_running_loop()).__module__
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "tick", stop)
    monkeypatch.setattr(worker.Complaints, "install", lambda self: None)  # it is for a process of its own; see test_complaints
    from bailiwick.kernel.accounts import Accounts
    from bailiwick.kernel.clock import SystemClock
    from bailiwick.kernel.layout import Layout
    from bailiwick.trust.interception import InterceptionAuthority

    sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for number, sock in enumerate(sockets):
        sock.bind(str(tmp_path / str(number)))
        sock.listen()

    def work() -> None:
        with contextlib.suppress(BaseExceptionGroup, KeyboardInterrupt):
            worker.run(
                name="gateway-0",
                listener=sockets[0],
                adopt_listener=sockets[1],
                layout=Layout(tmp_path),
                accounts=Accounts.for_machine(uid=os.getuid() or 1000, gid=0, workers=1),
                authority=InterceptionAuthority.create(SystemClock()),
            )

    thread = threading.Thread(target=work)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    for sock in sockets:
        sock.close()
    assert seen["loop"].startswith("uvloop")
