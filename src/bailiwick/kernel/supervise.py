"""A group of processes forked from one parent, each started again with back-off when it ends out of turn.

The parent holds the listening sockets, so that a process that was started again is handed the same ones and nobody's connection attempt is lost. It
reads nothing from anybody: signals and exit statuses are all it knows. What it knows it writes to one small file, whole, for the governor to show.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bailiwick.kernel import confine, limits
from bailiwick.kernel.accounts import Account

_BACKOFF_SECONDS_FIRST = 0.1
_BACKOFF_SECONDS_MAX = 5.0
_STEADY_SECONDS = 10.0  # a process that lived this long starts again without delay
_LOG_BYTES_MAX = 8 * limits.MIB
_REPORT_RETRY_SECONDS = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FINISHED = 0
"""The exit status by which a `leading` process ends the whole group in order."""


@dataclass(frozen=True, slots=True)
class Program:
    """`prepare` runs in the child with the starter's rights, before `account` is taken on; `main` after, and does not return while all is well.
    `descriptors` are the only ones the child keeps besides 0, 1, 2. `leading`: when it ends with FINISHED, the group is done."""

    name: str
    account: Account
    main: Callable[[object], None]
    prepare: Callable[[], object] = lambda: None
    descriptors: tuple[int, ...] = ()
    leading: bool = False


@dataclass(slots=True)
class _Member:
    program: Program
    pid: int | None = None
    started: float = 0.0
    restarts: int = 0
    backoff_seconds: float = 0.0
    due: float = 0.0
    detail: str = ""


@dataclass(slots=True)
class Group:
    """`programs` in starting order; they are stopped in the opposite one. `report` is where the state is written after each change."""

    programs: Sequence[Program]
    report: Path
    logs: Path
    ready: Callable[[], None] = lambda: None
    _members: list[_Member] = field(default_factory=list)
    _stopping: bool = False
    _unreported: bool = False  # the disk did not take the last state

    def run(self) -> int:
        """Until a stop signal arrives or the leading process is finished. Returns 0 after an orderly stop."""
        self._members = [_Member(program) for program in self.programs]
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGCHLD))
        try:
            for member in self._members:
                self._start(member)
            self._write_report()
            self.ready()
            while not self._stopping:
                pending = [member.due - time.monotonic() for member in self._members if member.pid is None]
                pending += [_REPORT_RETRY_SECONDS] if self._unreported else []
                received = signal.sigtimedwait((*_STOP_SIGNALS, signal.SIGCHLD), max(0.0, min(pending, default=3600.0)))
                if received is not None and received.si_signo in _STOP_SIGNALS:
                    self._stopping = True
                self._reap()
                if not self._stopping:
                    self._restart_due()
                if self._unreported:
                    self._write_report()
        finally:
            self._stop()
            with contextlib.suppress(FileNotFoundError):
                self.report.unlink()
        return 0

    def _start(self, member: _Member) -> None:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _become(member.program, parent, self.logs)
        member.pid, member.started = pid, time.monotonic()

    def _reap(self) -> None:
        changed = False
        for member in self._members:
            if member.pid is None:
                continue
            done, status = os.waitpid(member.pid, os.WNOHANG)
            if not done:
                continue
            changed = True
            code = os.waitstatus_to_exitcode(status)
            if member.program.leading and code == FINISHED:
                self._stopping = True
            lived = time.monotonic() - member.started
            member.pid = None
            member.restarts += 1
            member.detail = f"ended with {'signal ' + str(-code) if code < 0 else 'status ' + str(code)}"
            member.backoff_seconds = 0.0 if lived > _STEADY_SECONDS else min(_BACKOFF_SECONDS_MAX, member.backoff_seconds * 2 or _BACKOFF_SECONDS_FIRST)
            member.due = time.monotonic() + (member.backoff_seconds if member.restarts > 1 else 0.0)
        if changed:
            self._write_report()

    def _restart_due(self) -> None:
        due = [member for member in self._members if member.pid is None and member.due <= time.monotonic()]
        for member in due:
            try:
                self._start(member)
            except OSError as error:  # no memory or no process number left: the others live, and this one is tried again
                member.detail, member.due = f"cannot be started: {error.strerror}", time.monotonic() + _BACKOFF_SECONDS_MAX
        if due:
            self._write_report()

    def _stop(self) -> None:
        """In the opposite order, each given its time, then SIGKILL: the governor first, so that runs end while everything they need is there."""
        for member in reversed(self._members):
            if member.pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGTERM)
            if not _wait_gone(member.pid, limits.STOP_SECONDS_MAX * (3 if member.program.leading else 1)):
                os.kill(member.pid, signal.SIGKILL)
                os.waitpid(member.pid, 0)
            member.pid = None

    def _write_report(self) -> None:
        state = [
            {
                "name": member.program.name,
                "pid": member.pid,
                "uid": member.program.account.uid,
                "restarts": member.restarts,
                "detail": member.detail,
            }
            for member in self._members
        ]
        draft = self.report.with_suffix(".new")
        try:
            draft.write_text(json.dumps(state))
            draft.chmod(0o644)
            draft.replace(self.report)
        except OSError as error:  # a full disk must not end the processes that live without it
            if not self._unreported:
                print(f"state of the processes is not written: {error.strerror}; it is tried again", file=sys.stderr, flush=True)  # noqa: T201
            self._unreported = True
        else:
            self._unreported = False


def _wait_gone(pid: int, seconds_max: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        gone, _, _ = select.select([descriptor], [], [], seconds_max)
    finally:
        os.close(descriptor)
    if gone:
        os.waitpid(pid, 0)
    return bool(gone)


def _become(program: Program, parent: int, logs: Path) -> None:
    """In the child: never returns. The order is confine's: what needs rights, then the account, then the promises, then the work."""
    status = 1
    try:
        confine.die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGCHLD))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the parent's to pass on, in order
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        log = _open_log(logs / f"{program.name}.log")
        os.dup2(log, 1)
        os.dup2(log, 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        _close_others({0, 1, 2, *program.descriptors})
        prepared = program.prepare()
        confine.become(program.account)
        confine.die_with_parent(parent)  # once more: a change of uid cleared it
        confine.harden()
        program.main(prepared)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001  the last frame of the process: say why in its log, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, flags, 0o640)


def _close_others(keep: set[int]) -> None:
    previous = -1
    for descriptor in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        if descriptor > previous + 1:  # an empty range from 0 would reach the system call as one without an end
            os.closerange(previous + 1, descriptor)
        previous = descriptor
