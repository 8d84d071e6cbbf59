"""A run as it happens: events, keys and signals arrive in one inbox, in the order they came, and nothing is lost when the governor is started anew."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType

from bailiwick.cli.client import Client
from bailiwick.cli.events import Event
from bailiwick.cli.exits import Refused, Unreachable
from bailiwick.kernel.errors import BailiwickError

RECONNECT_SECONDS_MAX = 30.0

_PAUSE_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Arrived:
    event: Event


@dataclass(frozen=True, slots=True)
class Over:
    """No more events: the run has ended, or, with an error, nobody can say."""

    error: BailiwickError | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    signal: int


@dataclass(frozen=True, slots=True)
class Key:
    character: str


Item = Arrived | Over | Interrupted | Key
Inbox = SimpleQueue[Item]


def follow(api: Client, run: str, inbox: Inbox, *, after: int = -1) -> None:
    """Fills the inbox from a thread of its own, which ends with the program."""
    threading.Thread(target=_pump, args=(api, run, inbox, after), daemon=True, name="events").start()


@contextlib.contextmanager
def signals(inbox: Inbox) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal become items; whoever reads the inbox decides. Under nohup a closed terminal stays nothing."""

    def caught(number: int, _: FrameType | None) -> None:
        inbox.put(Interrupted(number))  # SimpleQueue.put is reentrant

    heard = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, caught) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keys(inbox: Inbox, descriptor: int = 0) -> Iterator[None]:
    """Single key presses of a terminal, unechoed; what was typed before is thrown away. A terminal that is gone is an interrupt."""
    import select
    import termios
    import tty

    try:
        before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor, termios.TCSAFLUSH)
    except termios.error:
        inbox.put(Interrupted(signal.SIGHUP))
        yield
        return
    wake_read, wake_write = os.pipe()

    def read() -> None:
        while True:
            ready, _, _ = select.select([descriptor, wake_read], [], [])
            if wake_read in ready:
                return
            try:
                pressed = os.read(descriptor, 64)
            except OSError:
                pressed = b""
            if not pressed:
                inbox.put(Interrupted(signal.SIGHUP))
                return
            for character in pressed.decode("utf-8", "replace"):
                inbox.put(Key(character))

    reader = threading.Thread(target=read, daemon=True, name="keys")
    reader.start()
    try:
        yield
    finally:
        os.write(wake_write, b".")
        reader.join(1.0)
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        os.close(wake_read)
        os.close(wake_write)


def _pump(api: Client, run: str, inbox: Inbox, after: int) -> None:
    heard = time.monotonic()
    while True:
        error: BailiwickError = Unreachable(f"the stream of {run} ended before the run did")
        try:
            for event in api.lines(f"/v1/runs/{run}/events", after=after, follow=True):
                after, heard = event["sequence"], time.monotonic()
                inbox.put(Arrived(event))
                if event["event"]["kind"] == "run.ended":
                    inbox.put(Over())
                    return
        except Unreachable as failed:
            error = failed
        except Refused as refused:
            if refused.status < 500:
                inbox.put(Over(refused))
                return
            error = refused
        except BailiwickError as failed:
            inbox.put(Over(failed))
            return
        if time.monotonic() - heard > RECONNECT_SECONDS_MAX:
            inbox.put(Over(error))
            return
        time.sleep(_PAUSE_SECONDS)
