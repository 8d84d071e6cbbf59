"""The recorder's loop, turned by hand: who may do what, and what garbage does to it."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bailiwick.kernel.accounts import Account, Accounts, Role
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import PeerError
from bailiwick.kernel.framing import Done, Failure, Frame, Framer, Message
from bailiwick.kernel.layout import Layout
from bailiwick.record import recorder as recorder_module
from bailiwick.record.event import Event, encode
from bailiwick.record.leaf import disassemble
from bailiwick.record.messages import RECORDER, AppendEvents, EventsAppended, EventsCommitted, SubscribeEvents, TakeCheckpoint
from bailiwick.record.recorder import Recorder
from bailiwick.record.repository import RecordReader, RecordWriter, StoreError

ME = os.getuid()


class Peer:
    """A peer's end, and the recorder turned until it has answered."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, recorder: Recorder, layout: Layout) -> None:
        self.recorder = recorder
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(layout.socket("recorder"))
        self.sock.setblocking(False)
        self.opened.append(self.sock)
        self.framer = Framer(RECORDER)
        self.sock.send(self.framer.hello())
        self.number = 0
        self.told: list[Frame] = []

    def call(self, message: Message) -> Message | Failure | None:
        """The answer; None when the recorder has closed instead."""
        self.number += 1
        with contextlib.suppress(BrokenPipeError):
            self.sock.send(self.framer.send("call", message, id=self.number))
        for _ in range(50):
            self.recorder.turn(0.01)
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionError:
                return None
            if not data:
                return None
            frames = self.framer.receive(data)
            self.told += [frame for frame in frames if frame.kind == "tell"]
            if answers := [frame.message for frame in frames if frame.id == self.number]:
                return answers[0]
        raise AssertionError("no answer")


@pytest.fixture
def make(layout: Layout) -> Iterator[Callable[..., Recorder]]:
    layout.sockets.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(layout.socket("recorder"))
        listener.listen(64)
        recorders: list[Recorder] = []

        def made(*members: Account, separate: bool = True) -> Recorder:
            recorders.append(Recorder(listener=listener, layout=layout, accounts=Accounts(members, separate=separate), clock=SystemClock()))
            return recorders[-1]

        yield made
        for each in recorders:
            each.close()
        for sock in Peer.opened:
            sock.close()
        Peer.opened.clear()


def shared() -> list[Account]:
    return [Account(role.value, role, ME, ME) for role in (Role.RECORDER, Role.BROKER, Role.GOVERNOR, Role.GATEWAY)]


def test_the_writer_is_who_the_kernel_says(
    make: Callable[..., Recorder], layout: Layout, read: Callable[[], RecordReader], event: Callable[..., Event]
) -> None:
    """A writer's name is that of its account; what its role may not write or ask for is refused."""
    recorder = make(Account("gateway-3", Role.GATEWAY, ME, ME))
    peer = Peer(recorder, layout)
    assert peer.call(AppendEvents([encode(event()).decode()])) == EventsAppended([1])
    for message in (AppendEvents([encode(event(kind="run.ended")).decode()]), SubscribeEvents(1)):
        answer = peer.call(message)
        assert isinstance(answer, Failure)
        assert answer.code == "forbidden"
    assert read().event(1).writer == "gateway-3"


def test_where_uids_are_shared_a_connection_has_one_role(
    make: Callable[..., Recorder], layout: Layout, read: Callable[[], RecordReader], event: Callable[..., Event]
) -> None:
    """As an ordinary user a connection is what it wrote first, and nothing else after; its writer is told by role and process."""
    recorder = make(*shared(), separate=False)
    peer = Peer(recorder, layout)
    assert peer.call(AppendEvents([encode(event(kind="peer.refused")).decode(), encode(event()).decode()])) == EventsAppended([1, 2])
    answer = peer.call(AppendEvents([encode(event(kind="run.ended")).decode()]))
    assert isinstance(answer, Failure)
    assert "this writer is gateway" in answer.message
    assert isinstance(peer.call(SubscribeEvents(1)), Failure)
    assert Peer(recorder, layout).call(AppendEvents([encode(event(kind="run.ended")).decode()])) == EventsAppended([3])
    reader = read()
    assert [each.writer for each in reader.events()] == [f"gateway:{os.getpid()}"] * 2 + [f"governor:{os.getpid()}"]


def test_a_stranger_is_turned_away(make: Callable[..., Recorder], layout: Layout, read: Callable[[], RecordReader]) -> None:
    """A uid that is none of ours gets nothing, and the record says who it was."""
    recorder = make(Account("gateway-0", Role.GATEWAY, ME + 1, ME))
    peer = Peer(recorder, layout)
    assert peer.call(AppendEvents([])) is None
    recorder.turn(0)
    (refused,) = read().events()
    assert refused.event.body == {"service": "recorder", "uid": ME, "pid": os.getpid(), "reason": "uid is not one of our processes", "others": 0}
    assert refused.writer == "recorder"


def test_connections_are_bounded(make: Callable[..., Recorder], layout: Layout, event: Callable[..., Event]) -> None:
    """One uid cannot take all connections; who is there already goes on."""
    recorder = make(Account("gateway-0", Role.GATEWAY, ME, ME))
    peers = [Peer(recorder, layout) for _ in range(recorder_module.CONNECTIONS_PER_UID_MAX + 5)]
    recorder.turn(0)
    assert peers[0].call(AppendEvents([encode(event()).decode()])) is not None
    assert peers[-1].call(AppendEvents([])) is None
    peers[1].sock.close()
    recorder.turn(0.01)
    assert Peer(recorder, layout).call(AppendEvents([])) == EventsAppended([])


def test_previous_leads_from_event_to_event_of_a_run(
    make: Callable[..., Recorder], layout: Layout, read: Callable[[], RecordReader], event: Callable[..., Event]
) -> None:
    """Each leaf names the run's event before it, also across batches, a restart, and a writer's second sending; others name none."""
    recorder = make(*shared(), separate=False)
    runs = ["a", "b", None, "a", "a", "b", None, "b"]
    texts = [encode(event(kind="peer.refused", run=run)).decode() for run in runs]
    Peer(recorder, layout).call(AppendEvents(texts[:4]))
    assert Peer(recorder, layout).call(AppendEvents(texts[2:6])) == EventsAppended([3, 4, 5, 6])
    recorder._committer.recover()
    Peer(recorder, layout).call(AppendEvents(texts))
    leaves = [disassemble(each.leaf) for each in read().events()]
    assert [leaf.previous for leaf in leaves] == [0, 0, None, 1, 4, 2, None, 6]
    assert [leaf.seq for leaf in leaves] == list(range(1, 9))


def test_one_id_is_one_event(make: Callable[..., Recorder], layout: Layout, event: Callable[..., Event]) -> None:
    """An id twice in one message with one content is one event; with two it is refused, and nothing of the message is written."""
    recorder = make(*shared(), separate=False)
    peer = Peer(recorder, layout)
    text = encode(event(kind="peer.refused")).decode()
    assert peer.call(AppendEvents([text, text])) == EventsAppended([1, 1])
    other = encode(event(kind="peer.refused")).decode()
    answer = peer.call(AppendEvents([other, other.replace("run-1", "run-2")]))
    assert isinstance(answer, Failure)
    assert answer.code == "conflict"
    assert peer.call(AppendEvents([other])) == EventsAppended([2])


def test_a_failing_database_refuses_and_recovers(
    make: Callable[..., Recorder], layout: Layout, read: Callable[[], RecordReader], event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that fails at the commit is refused as the machine's fault, its writer's connection is closed, and nothing of it counts."""
    recorder = make(*shared(), separate=False)
    first = encode(event(kind="peer.refused")).decode()
    Peer(recorder, layout).call(AppendEvents([first]))
    text = encode(event(kind="peer.refused")).decode()
    with monkeypatch.context() as broken:

        def append(self: RecordWriter, *_: Any) -> None:
            raise StoreError("disk I/O error")

        broken.setattr(RecordWriter, "append", append)
        peer = Peer(recorder, layout)
        answer = peer.call(AppendEvents([text]))
        assert isinstance(answer, Failure)
        assert (answer.code, "disk I/O error" in answer.message) == ("backend", True)
        assert peer.call(AppendEvents([text])) is None
        broken.setattr(RecordWriter, "tree", append)
        assert isinstance(Peer(recorder, layout).call(AppendEvents([text])), Failure)
    assert Peer(recorder, layout).call(AppendEvents([text])) == EventsAppended([2])
    head = read().head()
    assert (head.size, head.root) == (2, recorder._committer.root.hex())


def test_a_mistake_of_ours_costs_one_peer(make: Callable[..., Recorder], layout: Layout, event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw, while serving or while committing: that peer is cut off, nothing of it is written, the others are served."""
    recorder = make(*shared(), separate=False)
    good = Peer(recorder, layout)
    text = encode(event(kind="peer.refused")).decode()

    def broken(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patched:
        patched.setattr(recorder_module, "admitted", broken)
        assert Peer(recorder, layout).call(AppendEvents([text])) is None
    with monkeypatch.context() as patched:
        patched.setattr(RecordWriter, "append", broken)
        assert isinstance(Peer(recorder, layout).call(AppendEvents([text])), Failure)
    assert good.call(AppendEvents([text])) == EventsAppended([1])


def test_a_checkpoint_of_nothing_is_refused(make: Callable[..., Recorder], layout: Layout) -> None:
    """An empty record has no head to sign."""
    answer = Peer(make(*shared(), separate=False), layout).call(TakeCheckpoint())
    assert isinstance(answer, Failure)
    assert "empty" in answer.message


@pytest.mark.parametrize("kind", ["tell", "reply"])
def test_only_calls_are_taken(kind: Any, make: Callable[..., Recorder], layout: Layout) -> None:
    """What no process of ours sends ends the connection."""
    recorder = make(*shared(), separate=False)
    peer = Peer(recorder, layout)
    peer.sock.send(peer.framer.send(kind, Done(), id=1))
    assert peer.call(AppendEvents([])) is None


def test_other_requests_are_answered_with_a_failure(make: Callable[..., Recorder], layout: Layout) -> None:
    """A message of the service that is not for this end."""
    assert isinstance(Peer(make(*shared(), separate=False), layout).call(EventsCommitted(1, [])), Failure)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_stop_the_loop(data: st.DataObject, fuzzed: tuple[Recorder, Layout, Peer]) -> None:
    """After any bytes, before or after a hello, whole frames or changed ones, the recorder serves the others."""
    recorder, layout, good = fuzzed
    frames = Framer.send("call", AppendEvents(["{}", "x"]), id=3) + Framer.send("call", SubscribeEvents(-1), id=4) + Framer.send("call", TakeCheckpoint(), id=0)
    raw = bytearray((Framer(RECORDER).hello() if data.draw(st.booleans()) else b"") + frames)
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    raw += data.draw(st.binary(max_size=40))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(layout.socket("recorder"))
        sock.send(raw)
        recorder.turn(0)
        recorder.turn(0)
        recorder.turn(0)
    assert good.call(AppendEvents([])) == EventsAppended([])


@pytest.fixture
def fuzzed(make: Callable[..., Recorder], layout: Layout) -> tuple[Recorder, Layout, Peer]:
    recorder = make(*shared(), separate=False)
    return recorder, layout, Peer(recorder, layout)


def test_a_frame_too_large_is_refused(make: Callable[..., Recorder], layout: Layout) -> None:
    """The length alone is enough to be cut off."""
    recorder = make(*shared(), separate=False)
    peer = Peer(recorder, layout)
    peer.sock.send(b"\xff\xff\xff\xff")
    assert peer.call(AppendEvents([])) is None
    with pytest.raises(PeerError):
        Framer(RECORDER).receive(b"\xff\xff\xff\xff")
