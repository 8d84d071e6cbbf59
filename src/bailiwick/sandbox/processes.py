"""The processes of one sandbox found from its first one, for machines where no control group may be written.

All of them are its descendants: whoever loses its parent inside is adopted by the sandbox's own first process, and none can leave.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_STOPPED = frozenset("TtZX")  # stopped, traced, and those that no longer run anything
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Seen:
    pid: int
    state: str
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Look:
    """Every process of the machine at one moment."""

    taken: float
    seen: dict[int, Seen]
    children: dict[int, list[int]]


_last = Look(0.0, {}, {})


def look(*, seconds_old_max: float = 0.0) -> Look:
    """A look at /proc; one that is no older than this serves everybody who measures."""
    global _last
    now = time.monotonic()
    if now - _last.taken <= seconds_old_max:
        return _last
    taken = Look(now, {}, {})
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            raw = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # gone meanwhile
        fields = raw[raw.rindex(")") + 2 :].split()
        pid = int(entry.name)
        taken.children.setdefault(int(fields[1]), []).append(pid)
        taken.seen[pid] = Seen(pid, fields[0], sum(int(field) for field in fields[11:15]) / _TICKS, int(fields[21]) * _PAGE)
    _last = taken
    return taken


def below(first: int, *, seconds_old_max: float = 0.0) -> list[Seen]:
    """The process and its descendants, as they are now or were that long ago."""
    taken = look(seconds_old_max=seconds_old_max)
    reached, waiting = [], [first]
    while waiting:
        pid = waiting.pop()
        if pid in taken.seen:
            reached.append(taken.seen[pid])
            waiting += taken.children.get(pid, [])
    return reached


def stop(first: int) -> bool:
    """SIGSTOP to each that still runs. True when a whole look found none that does; to be called again until then."""
    still = [seen for seen in below(first) if seen.state not in _STOPPED]
    for seen in still:
        _signal(seen.pid, signal.SIGSTOP)
    return not still


def go_on(first: int) -> None:
    for seen in below(first):
        _signal(seen.pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
