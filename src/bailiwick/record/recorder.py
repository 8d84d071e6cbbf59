"""The recorder process: one thread, one loop, the only writer of the record.

Once round the loop: everything that is readable now is read; what was asked to be appended is committed in one transaction (one fsync); then it is
acknowledged; then the governor's subscription is served from the database, and a checkpoint is asked for if one is due. Nothing waits for a peer:
each has a bounded buffer, and is not read while it does not read.
"""

import contextlib
import logging
import selectors
import socket
from dataclasses import dataclass, field

from bailiwick.kernel import limits
from bailiwick.kernel.accounts import Accounts, Role
from bailiwick.kernel.channel import Peer
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BailiwickError, CallerError, Forbidden, PeerError
from bailiwick.kernel.framing import Done, Failure, Frame, Framer, Message
from bailiwick.kernel.ids import SequenceOfIds
from bailiwick.kernel.layout import Layout
from bailiwick.record.checkpointing import Checkpointing
from bailiwick.record.commit import Append, Committer, admitted
from bailiwick.record.event import Event, encode
from bailiwick.record.messages import RECORDER, AppendEvents, CheckpointTaken, EventsAppended, EventsCommitted, SubscribeEvents, TakeCheckpoint
from bailiwick.record.repository import FILE, StoreError

CONNECTIONS_MAX = 64
CONNECTIONS_PER_UID_MAX = 16  # where uids are separate: one process that was taken over does not shut the others out
OUT_BYTES_MAX = limits.MIB  # a peer that leaves this much unread is not read either
_READ_BYTES = 256 * limits.KIB
_LEAVES_PER_MESSAGE_MAX = 500
_LEAVES_BYTES_MAX = 512 * limits.KIB
_IDLE_SECONDS = 60.0
_RETRY_SECONDS = 1.0
_CLOSING_SECONDS_MAX = 5.0
_REFUSALS_SECONDS = 1.0  # at most one peer.refused in this time; it counts the others

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    peer: Peer
    roles: frozenset[Role]  # those it may still be: as an ordinary user all processes share a uid, and what one writes says which it is
    name: str | None  # of its account, where its uid tells
    framer: Framer = field(default_factory=lambda: Framer(RECORDER))
    mask: int = selectors.EVENT_READ
    out: bytearray = field(default_factory=bytearray)
    following: int | None = None  # the next sequence number its subscription is told
    closing_at: float | None = None  # being closed: what is in `out` is still sent until then

    def writer(self) -> str:
        if self.name is not None:
            return self.name
        (role,) = self.roles if len(self.roles) == 1 else ("process",)
        return f"{role}:{self.peer.pid}"

    def answer(self, frame: Frame, message: Message | BailiwickError) -> None:
        if isinstance(message, BailiwickError):
            self.out += self.framer.send("failure", Failure(message.code, str(message)), id=frame.id)
        else:
            self.out += self.framer.send("reply", message, id=frame.id)


@dataclass(slots=True)
class _Asked:
    connection: _Connection
    frame: Frame
    append: Append


class Recorder:
    """The process's state; `run` below is `turn` for ever. Raises StoreError when the record cannot be opened."""

    def __init__(self, *, listener: socket.socket, layout: Layout, accounts: Accounts, clock: Clock) -> None:
        self._clock = clock
        self._accounts = accounts
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._asked: list[_Asked] = []
        self._takes: list[tuple[_Connection, Frame]] = []
        self._ids = SequenceOfIds()
        self._refusals: list[tuple[Peer, str]] = []
        self._refusals_at = 0.0
        self._refused_uncounted = 0
        self._accepts_at: float | None = None  # out of descriptors: the listener is let be until then
        self._again_at: float | None = None
        self._committer = Committer(layout.record / FILE, clock)
        self._checkpoints: Checkpointing[tuple[_Connection, Frame]] = Checkpointing(layout.socket("signer"), self._selector, clock, self._committer)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def turn(self, seconds_max: float = _IDLE_SECONDS) -> None:
        """Waits until something is to be done (at most so long), and does all that is."""
        for key, mask in self._selector.select(self._wait(seconds_max)):
            if key.data is self._listener:
                self._accept()
            elif isinstance(key.data, _Connection):
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
            else:
                self._checkpoints.happened(mask)
        self._again_at = None
        if self._accepts_at is not None and self._clock.monotonic() >= self._accepts_at:
            self._accepts_at = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._listener)
        self._note_refusals()
        self._commit()
        for connection in [each for each in self._connections if each.following is not None]:
            self._tell(connection)
        takes, self._takes = self._takes, []
        for connection, frame in takes:
            try:
                self._checkpoints.take((connection, frame))
            except CallerError as error:
                connection.answer(frame, error)
        for (connection, frame), outcome in self._checkpoints.turn():
            connection.answer(frame, CheckpointTaken(outcome) if isinstance(outcome, str) else outcome)
        for connection in list(self._connections):
            self._flush(connection)

    def close(self) -> None:
        """Lets go of every connection and of the database; the listener is the caller's."""
        for connection in list(self._connections):
            self._drop(connection)
        self._checkpoints.close()
        self._committer.close()
        self._selector.close()

    def _wait(self, seconds_max: float) -> float:
        times = [self._checkpoints.wakes_at(), self._again_at, self._accepts_at]
        times += [connection.closing_at for connection in self._connections if connection.closing_at is not None]
        if self._refusals:
            times.append(self._refusals_at)
        due = min((time for time in times if time is not None), default=None)
        return seconds_max if due is None else max(0.0, min(seconds_max, due - self._clock.monotonic()))

    def _again(self, seconds: float) -> None:
        at = self._clock.monotonic() + seconds
        self._again_at = at if self._again_at is None else min(self._again_at, at)

    # Connections

    def _accept(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:  # out of descriptors or memory: the backlog waits
                _log.warning("cannot accept: %s", error.strerror)
                self._selector.unregister(self._listener)
                self._accepts_at = self._clock.monotonic() + _RETRY_SECONDS
                return
            sock.setblocking(False)
            try:
                peer = Peer.of(sock)
            except OSError:
                sock.close()
                continue
            roles = self._accounts.roles(peer.uid)
            if reason := self._inadmissible(peer, roles):
                sock.close()
                self._refuse(peer, reason)
                continue
            names = [member.name for member in self._accounts.members if member.uid == peer.uid]
            connection = _Connection(sock, peer, roles, names[0] if len(names) == 1 else None)
            connection.out += connection.framer.hello()
            self._connections.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _inadmissible(self, peer: Peer, roles: frozenset[Role]) -> str:
        if not roles:
            return "uid is not one of our processes"
        if len(self._connections) >= CONNECTIONS_MAX:
            return f"{CONNECTIONS_MAX} connections are open"
        if self._accounts.separate and sum(each.peer.uid == peer.uid for each in self._connections) >= CONNECTIONS_PER_UID_MAX:
            return f"{CONNECTIONS_PER_UID_MAX} connections of this uid are open"
        return ""

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        try:
            for frame in connection.framer.receive(data):
                self._serve(connection, frame)
        except PeerError as error:
            self._refuse(connection.peer, str(error))
            self._drop(connection)
        except Exception:  # noqa: BLE001 - a mistake of ours that one peer's bytes bring out must not cost the others their record
            _log.exception("cannot serve %s", connection.peer)
            self._drop(connection)

    def _serve(self, connection: _Connection, frame: Frame) -> None:
        """PeerError for what no process of ours sends; every other trouble is an answer."""
        if frame.fds or frame.kind != "call":
            raise PeerError(f"recorder takes calls without descriptors; this is a {frame.kind} with {frame.fds}")
        try:
            match frame.message:
                case AppendEvents(events=texts):
                    events, roles = admitted(texts, connection.roles)
                    connection.roles = connection.roles if connection.name is not None else roles
                    self._asked.append(_Asked(connection, frame, Append(events, [connection.writer()] * len(events))))
                case SubscribeEvents(sequence=sequence):
                    if Role.GOVERNOR not in connection.roles:
                        raise Forbidden("events are told to the governor only")
                    if connection.name is None:
                        connection.roles = frozenset({Role.GOVERNOR})
                    connection.following = max(1, sequence)
                    connection.answer(frame, Done())
                case TakeCheckpoint():
                    self._takes.append((connection, frame))  # of what was appended before it, too: after the commit
                case other:
                    raise CallerError(f"recorder does not answer {type(other).__name__}")
        except PeerError:
            raise
        except BailiwickError as error:
            connection.answer(frame, error)

    def _flush(self, connection: _Connection) -> None:
        try:
            if connection.out:
                with contextlib.suppress(BlockingIOError):
                    del connection.out[: connection.sock.send(connection.out)]
        except OSError:
            self._drop(connection)
            return
        if connection.closing_at is not None and (not connection.out or self._clock.monotonic() >= connection.closing_at):
            self._drop(connection)
            return
        if connection.following is not None and not connection.out and connection.following <= self._committer.size:
            self._again(0.0)
        reads = connection.closing_at is None and len(connection.out) <= OUT_BYTES_MAX
        mask = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if connection.out else 0)
        if connection.mask != mask:
            connection.mask = mask
            self._selector.modify(connection.sock, mask, connection)

    def _drop(self, connection: _Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection.sock)
            connection.sock.close()

    # The record

    def _commit(self) -> None:
        asked, self._asked = self._asked, []
        if not asked:
            return
        self._committer.commit([each.append for each in asked])
        for each in asked:
            refused = each.append.refused
            if refused is None:
                each.connection.answer(each.frame, EventsAppended(list(each.append.sequences)))
                continue
            each.connection.answer(each.frame, refused)
            if isinstance(refused, StoreError) and each.connection.closing_at is None:
                # What this writer sent after it must not be written before it: it connects again and sends all of it, in order.
                _log.warning("%s", refused)
                each.connection.closing_at = self._clock.monotonic() + _CLOSING_SECONDS_MAX

    def _tell(self, connection: _Connection) -> None:
        """The next events of a subscription, one message a turn, from the database: whoever reads slowly costs a number, not memory."""
        first = connection.following
        if first is None or first > self._committer.size or connection.out:
            return
        try:
            leaves = self._committer.store().leaves(first, limit=_LEAVES_PER_MESSAGE_MAX, bytes_max=_LEAVES_BYTES_MAX)
        except StoreError as error:
            _log.warning("subscription waits: %s", error)
            self._again(_RETRY_SECONDS)
            return
        if leaves:
            connection.out += connection.framer.send("tell", EventsCommitted(first, [leaf.decode() for leaf in leaves]))
            connection.following = first + len(leaves)

    def _refuse(self, peer: Peer, reason: str) -> None:
        self._refusals.append((peer, reason[:200]))
        if len(self._refusals) > 1:
            self._refusals.pop()
            self._refused_uncounted += 1

    def _note_refusals(self) -> None:
        now = self._clock.monotonic()
        if not self._refusals or now < self._refusals_at:
            return
        self._refusals_at = now + _REFUSALS_SECONDS
        ((peer, reason),), self._refusals = self._refusals, []
        body = {"service": RECORDER.name, "uid": peer.uid, "pid": peer.pid, "reason": reason, "others": self._refused_uncounted}
        self._refused_uncounted = 0
        event = Event(id=self._ids.event(), kind="peer.refused", time=timestamp(self._clock.now()), body=body)
        append = Append([(encode(event), event)], [Role.RECORDER.value])
        self._committer.commit([append])


def run(*, listener: socket.socket, layout: Layout, accounts: Accounts, clock: Clock) -> None:
    """Serves until the process is killed. Raises StoreError when the record cannot be opened: it is damaged, or a newer version wrote it."""
    recorder = Recorder(listener=listener, layout=layout, accounts=accounts, clock=clock)
    while True:
        recorder.turn()
