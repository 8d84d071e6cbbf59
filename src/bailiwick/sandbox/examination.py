"""The launcher's side of one probe: forked while bubblewrap still lays the sandbox out, told whom to examine, heard, and gone before the agent begins.

It is not waited for between its answer and its end: that is a millisecond or two in which the listeners are handed over. But it is a copy of the
launcher in the agent's namespaces, so `gone` stands before every start.
"""

import contextlib
import os
import socket
from dataclasses import dataclass

import anyio
import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox import probe

_ANSWER_SECONDS_MAX = 10.0
_ANSWER_BYTES_MAX = 256 * 1024


@dataclass(slots=True)
class Examination:
    pid: int
    pidfd: int
    said: socket.socket
    waited_for: bool = False

    @classmethod
    def prepare(cls, expected: probe.Expected, *, separate: bool) -> "Examination":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            pid = probe.spawn(expected, theirs.fileno(), separate=separate)
        ours.setblocking(False)
        return cls(pid, os.pidfd_open(pid), ours)

    def begin(self, waiting: int) -> None:
        """`waiting` is a pidfd of the process that will become the agent."""
        with contextlib.suppress(OSError):  # a probe that died is heard of by its silence
            socket.send_fds(self.said, [b"\n"], [waiting])

    async def answer(self) -> probe.Examined:
        raw = bytearray()
        try:
            with anyio.fail_after(_ANSWER_SECONDS_MAX):
                while not raw.endswith(b"\n") and len(raw) < _ANSWER_BYTES_MAX:
                    await anyio.wait_readable(self.said)
                    with contextlib.suppress(BlockingIOError):
                        chunk = self.said.recv(_ANSWER_BYTES_MAX)
                        if not chunk:
                            break
                        raw += chunk
            return probe.examined.decode(bytes(raw))
        except TimeoutError:
            return probe.failed("did not answer in time")
        except (OSError, msgspec.DecodeError):
            return probe.failed("died without an answer")

    async def gone(self) -> None:
        """Returns when no process of it is left; BackendError when it outlives its time. May be called again."""
        if self.pid == 0:
            return
        self.waited_for = True
        try:
            with anyio.fail_after(limits.STOP_SECONDS_MAX):
                await anyio.wait_readable(self.pidfd)
        except TimeoutError as error:
            raise BackendError(f"probe did not end within {limits.STOP_SECONDS_MAX:g} s of its answer; the agent is not started beside it") from error
        finally:
            self.waited_for = False
            if self.pid == 0:  # seen to be gone meanwhile
                os.close(self.pidfd)
        self.is_gone()

    def dismiss(self) -> None:
        """Ends one that still waits to be asked. One that tries ends with the sandbox. It is not killed: its second process is in the sandbox's namespace
        of processes, which does not end before that one is reaped, and an orphan is reaped when the machine's init gets round to it."""
        with contextlib.suppress(OSError):
            self.said.shutdown(socket.SHUT_WR)

    def is_gone(self) -> bool:
        """A look; it is reaped by the one that finds it so."""
        if self.pid != 0 and os.waitpid(self.pid, os.WNOHANG)[0] != 0:
            self.pid = 0
            self.said.close()
            if not self.waited_for:  # its number is not given back before who waits knows
                os.close(self.pidfd)
        return self.pid == 0
