"""The recorder's end of signer.sock, without waiting: a signer that is dead or hangs delays nothing, it is only not there.

At most one call is out at a time, each with a deadline; a connection that misses one is dropped and made anew later, with a growing pause.
"""

import contextlib
import selectors
import socket
from typing import Literal

from bailiwick.kernel.clock import Clock
from bailiwick.kernel.errors import BailiwickError, PeerError
from bailiwick.kernel.framing import Failure, Framer, Message
from bailiwick.record.signing import SIGNER, CheckpointSigned, DescribeKey, KeyDescribed, SignCheckpoint

ANSWER_SECONDS_MAX = 3.0
_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 0.05, 1.0
_READ_BYTES = 64 * 1024


class SignerLink:
    """`state` is closed, describing (asked for its key and the size it signed last), idle, or signing. `trouble` is what went wrong last, for people."""

    def __init__(self, path: str, selector: selectors.BaseSelector, clock: Clock) -> None:
        self._path = path
        self._selector = selector
        self._clock = clock
        self._sock: socket.socket | None = None
        self._framer = Framer(SIGNER)
        self._out = b""
        self._call = 0
        self._deadline = 0.0
        self._retry_at = 0.0
        self._pause = _PAUSE_SECONDS_MIN
        self.state: Literal["closed", "describing", "idle", "signing"] = "closed"
        self.verifier = ""
        self.size = 0
        self.trouble = "it was not asked yet"

    def ready(self) -> bool:
        """Whether `sign` may be called; connects and asks for the key first, if it is time to."""
        if self.state == "closed" and self._clock.monotonic() >= self._retry_at:
            self._connect()
        return self.state == "idle"

    def sign(self, asked: SignCheckpoint) -> None:
        assert self.state == "idle"
        self.state = "signing"
        self._send(asked)

    def wakes_at(self) -> float | None:
        """When `expire` has something to do, or `ready` may try again."""
        return {"closed": self._retry_at, "idle": None}.get(self.state, self._deadline)

    def expire(self) -> None:
        if self.state in ("describing", "signing") and self._clock.monotonic() >= self._deadline:
            self.drop(f"it did not answer within {ANSWER_SECONDS_MAX:g} s")

    def drop(self, trouble: str) -> None:
        """Gives the connection up and pauses."""
        if self._sock is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None
        self.state, self.trouble = "closed", trouble
        self._retry_at = self._clock.monotonic() + self._pause
        self._pause = min(self._pause * 2, _PAUSE_SECONDS_MAX)

    def happened(self, mask: int) -> CheckpointSigned | None:
        """What the selector saw; the signature, when it has come."""
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush()
            return self._receive() if mask & selectors.EVENT_READ else None
        except BailiwickError as error:
            self.drop(str(error))
        except OSError as error:
            self.drop(f"the connection broke: {error.strerror}")
        return None

    def _connect(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._sock.connect(self._path)
        except OSError as error:
            self._sock.close()
            self._sock = None
            self.drop(f"it is not reachable at {self._path}: {error.strerror}")
            return
        self._selector.register(self._sock, selectors.EVENT_READ, self)
        self._framer = Framer(SIGNER)
        self._out = self._framer.hello()
        self.state = "describing"
        try:
            self._send(DescribeKey())
        except OSError as error:
            self.drop(f"the connection broke: {error.strerror}")

    def _send(self, message: Message) -> None:
        self._call += 1
        self._deadline = self._clock.monotonic() + ANSWER_SECONDS_MAX
        self._out += self._framer.send("call", message, id=self._call)
        self._flush()

    def _flush(self) -> None:
        assert self._sock is not None
        with contextlib.suppress(BlockingIOError):
            self._out = self._out[self._sock.send(self._out) :] if self._out else b""
        self._selector.modify(self._sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0), self)

    def _receive(self) -> CheckpointSigned | None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise PeerError("it closed the connection")
        signed: CheckpointSigned | None = None
        for frame in self._framer.receive(data):
            if frame.id != self._call or self.state not in ("describing", "signing"):
                raise PeerError("it answers what was not asked")
            match self.state, frame.message:
                case _, Failure() as failure:
                    raise PeerError(f"it refuses: {failure.message}")
                case "describing", KeyDescribed() as key:
                    self.verifier, self.size = key.verifier, key.size
                case "signing", CheckpointSigned() as answer:
                    signed = answer
                    self.size, self._pause = signed.size, _PAUSE_SECONDS_MIN
                case _:
                    raise PeerError(f"it answers with {type(frame.message).__name__}")
            self.state = "idle"
        return signed
