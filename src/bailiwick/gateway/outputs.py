"""What an agent's command writes to its standard output and error, as events. A command that writes faster than a run may fill the record waits: its pipe
fills, and nothing is dropped."""

import asyncio
import os

from bailiwick.gateway import events
from bailiwick.gateway.runs import Run
from bailiwick.kernel import limits

CHUNK_BYTES_MAX = 32 * limits.KIB  # six times that, escaped, is within limits.EVENT_BYTES_MAX
BYTES_BURST = 1 * limits.MIB
BYTES_PER_SECOND = 256 * limits.KIB
READS_AT_END_MAX = 64  # twice what the largest pipe of pipe(7) holds
_GATHER_SECONDS = 0.05  # between two events of a stream: a command that writes in single characters is read in larger pieces
_RETRY_SECONDS = 1.0  # while the recorder is away


class OutputReader:
    """One pipe. `stream` is stdout or stderr."""

    def __init__(self, run: Run, descriptor: int, stream: str) -> None:
        self._run = run
        self._loop = run.house.loop
        self._descriptor = descriptor
        self._stream = stream
        self._held = b""  # the beginning of a character, or what the recorder did not take
        self._tokens = float(BYTES_BURST)
        self._at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

    def close(self) -> None:
        """Reads what is there, and closes."""
        if self._ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(READS_AT_END_MAX):
            if not self._read():
                break
        self._end()

    def _readable(self) -> None:
        if not self._read():
            return
        self._loop.remove_reader(self._descriptor)
        now = self._loop.time()
        self._tokens = min(BYTES_BURST, self._tokens + (now - self._at) * BYTES_PER_SECOND)
        self._at = now
        wait = _RETRY_SECONDS if len(self._held) > 3 else max(_GATHER_SECONDS, -self._tokens / BYTES_PER_SECOND)
        self._timer = self._loop.call_later(wait, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if len(self._held) > 3:
            held, self._held = self._held, b""
            self._write(held)
            if len(self._held) > 3:
                self._timer = self._loop.call_later(_RETRY_SECONDS, self._resume)
                return
        self._loop.add_reader(self._descriptor, self._readable)

    def _read(self) -> bool:
        """Whether something was read; at the end of the stream it closes."""
        if len(self._held) > 3:
            return False
        try:
            data = os.read(self._descriptor, CHUNK_BYTES_MAX - 3)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        self._tokens -= len(data)
        self._write(self._held + data)
        return True

    def _write(self, data: bytes) -> None:
        keep = _unfinished(data)
        whole, rest = data[: len(data) - keep], data[len(data) - keep :]
        event = events.output(self._run.house.ids.event(), self._run.id, self._run.agent, stream=self._stream, raw=whole)
        self._held = rest if not whole or self._run.record(event) else data

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._held:
            self._run.record(events.output(self._run.house.ids.event(), self._run.id, self._run.agent, stream=self._stream, raw=self._held))
            self._held = b""


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not all there."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return back if length > back else 0
    return 0
