"""Seccomp filters: which system calls a process may make from here on, as programs the kernel runs before each of them.

`agent_filter` is an allow-list: what the table does not name is refused with EPERM, what the table has never heard of with ENOSYS, another
architecture's calls kill. `own_filter` is a deny-list for processes of ours. Both are made from `kernel.syscalls` and from nothing else.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from bailiwick.kernel import bpf
from bailiwick.kernel.bpf import AND_K, JEQ, JGE, JGT, JSET, LD_W_ABS, RET, Label, ProgramHeader, Step
from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.syscalls import ALLOWED, CONDITIONAL, DENIED_TO_OUR_OWN, UNKNOWN, numbers

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000  # the third ABI of x86-64: the same call under another number

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments; the low half is first on both architectures. The kernel takes what is
# checked here as 32-bit integers, or (clone) knows the flags in question in the low half.
_NUMBER, _ARCHITECTURE = 0, 4

CLONE_NEW = 0x7E020080  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_FAMILY_UNIX, _FAMILY_INET, _FAMILY_INET6 = 1, 2, 10
_TYPE_MASK, _STREAM, _DATAGRAM, _SEQUENTIAL = 0xF, 1, 2, 5
_IP_PROTOCOLS = (0, 6, 17)  # default, TCP, UDP: no ICMP, SCTP, DCCP, MPTCP, UDP-Lite
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI types into, TIOCLINUX pastes into, the terminal of whoever started us
_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32-bit Linux, both with uname 2.6, "tell me"

Filter = Callable[[], bytes]  # made when asked for: an architecture without a table is an error of whoever needs one

_SECCOMP_SET_MODE_FILTER = 1
_FILTER_FLAG_TSYNC = 1
_PR_SET_NO_NEW_PRIVS = 38


def _refuse(number: int) -> int:
    return _ERRNO | number


def _argument(index: int) -> int:
    return 16 + 8 * index


@cache
def agent_filter(architecture: str | None = None) -> bytes:
    """The program for everything that runs inside a sandbox. BackendError for an architecture we have no table for."""
    architecture = architecture or platform.machine()
    table = _table(architecture)
    program: list[Step | Label] = [*_prelude(architecture)]
    for name in sorted(CONDITIONAL & table.keys()):
        program += _only_for(table[name], name, _CONDITIONS[name]())
    program += _ranges({table[name] for name in ALLOWED & table.keys()})
    for name in sorted(UNKNOWN & table.keys()):
        program += [Step(JEQ, table[name], otherwise=f"not {name}"), Step(RET, _refuse(errno.ENOSYS)), Label(f"not {name}")]
    program += [Step(JGT, max(table.values()), otherwise="known"), Step(RET, _refuse(errno.ENOSYS)), Label("known"), Step(RET, _refuse(errno.EPERM))]
    return bpf.assemble(program)


@cache
def own_filter(architecture: str | None = None) -> bytes:
    """The program for the gateway, the recorder, the broker and the governor, which start nothing and enter nothing once they serve."""
    architecture = architecture or platform.machine()
    table = _table(architecture)
    program: list[Step | Label] = [*_prelude(architecture)]
    program += _only_for(table["clone"], "clone", _clone())
    for name in sorted(DENIED_TO_OUR_OWN & table.keys()):
        program += [Step(JEQ, table[name], otherwise=f"not {name}"), Step(RET, _refuse(errno.EPERM)), Label(f"not {name}")]
    program += [Step(JEQ, table["clone3"], otherwise="allowed"), Step(RET, _refuse(errno.ENOSYS)), Label("allowed"), Step(RET, _ALLOW)]
    return bpf.assemble(program)


OWN_PROCESS: Filter = own_filter
AGENT: Filter = agent_filter


def install(chosen: Filter) -> None:
    """Puts every thread of this process under the filter, for good, with no new privileges. BackendError when the kernel refuses."""
    program = chosen()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise BackendError(f"no_new_privs refused: {os.strerror(ctypes.get_errno())}")
    header = ProgramHeader.of(program)
    number = _table(platform.machine())["seccomp"]
    result = libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _FILTER_FLAG_TSYNC, ctypes.byref(header))
    if result != 0:  # a positive result is the thread that could not follow
        reason = os.strerror(ctypes.get_errno()) if result < 0 else f"thread {result} is under another filter"
        raise BackendError(f"seccomp filter of {bpf.length(program)} instructions refused: {reason}")


def _table(architecture: str) -> Mapping[str, int]:
    if architecture not in _AUDIT_ARCHITECTURES:
        raise BackendError(f"no system call table for {architecture!r}; must be one of {', '.join(_AUDIT_ARCHITECTURES)}")
    return numbers(architecture)


def _prelude(architecture: str) -> Iterator[Step | Label]:
    yield Step(LD_W_ABS, _ARCHITECTURE)
    yield Step(JEQ, _AUDIT_ARCHITECTURES[architecture], then="ours")
    yield Step(RET, _KILL_PROCESS)
    yield Label("ours")
    yield Step(LD_W_ABS, _NUMBER)
    if architecture == "x86_64":
        yield Step(JGE, _X32_BIT, otherwise="native")
        yield Step(RET, _KILL_PROCESS)
        yield Label("native")


def _only_for(number: int, name: str, body: list[Step | Label]) -> list[Step | Label]:
    """`body` decides by arguments and always returns; for any other call it is jumped over."""
    return [Step(JEQ, number, otherwise=f"not {name}"), *body, Label(f"not {name}")]


def _ranges(allowed: set[int]) -> Iterator[Step | Label]:
    """Four instructions a run of consecutive numbers; the accumulator holds the number. (The kernel caches what is always allowed.)"""
    for first, last in _runs(sorted(allowed)):
        yield Step(JGT, last, then=f"above {last}")
        yield Step(JGE, first, otherwise=f"above {last}")
        yield Step(RET, _ALLOW)
        yield Label(f"above {last}")


def _runs(ordered: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in ordered:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _one_of(values: Iterable[int], label: str) -> list[Step | Label]:
    return [Step(JEQ, value, then=label) for value in values]


def _socket() -> list[Step | Label]:
    return [
        Step(LD_W_ABS, _argument(0)),
        Step(JEQ, _FAMILY_UNIX, then="socket unix"),
        *_one_of((_FAMILY_INET, _FAMILY_INET6), "socket ip"),
        Step(RET, _refuse(errno.EAFNOSUPPORT)),
        Label("socket ip"),
        Step(LD_W_ABS, _argument(2)),
        *_one_of(_IP_PROTOCOLS, "socket type"),
        Step(RET, _refuse(errno.EPERM)),
        Label("socket type"),
        Step(LD_W_ABS, _argument(1)),
        Step(AND_K, _TYPE_MASK),
        *_one_of((_STREAM, _DATAGRAM), "socket allowed"),
        Step(RET, _refuse(errno.EPERM)),
        Label("socket unix"),
        Step(LD_W_ABS, _argument(1)),
        Step(AND_K, _TYPE_MASK),
        *_one_of((_STREAM, _DATAGRAM, _SEQUENTIAL), "socket allowed"),
        Step(RET, _refuse(errno.EPERM)),
        Label("socket allowed"),
        Step(RET, _ALLOW),
    ]


def _socketpair() -> list[Step | Label]:
    return [
        Step(LD_W_ABS, _argument(0)),
        Step(JEQ, _FAMILY_UNIX, then="pair allowed"),
        Step(RET, _refuse(errno.EAFNOSUPPORT)),
        Label("pair allowed"),
        Step(RET, _ALLOW),
    ]


def _clone() -> list[Step | Label]:
    return [
        Step(LD_W_ABS, _argument(0)),
        Step(JSET, CLONE_NEW, otherwise="clone allowed"),
        Step(RET, _refuse(errno.EPERM)),
        Label("clone allowed"),
        Step(RET, _ALLOW),
    ]


def _ioctl() -> list[Step | Label]:
    return [
        Step(LD_W_ABS, _argument(1)),
        *_one_of(_TERMINAL_INJECTION, "ioctl refused"),
        Step(RET, _ALLOW),
        Label("ioctl refused"),
        Step(RET, _refuse(errno.EPERM)),
    ]


def _personality() -> list[Step | Label]:
    return [
        Step(LD_W_ABS, _argument(0)),
        *_one_of(_PERSONALITIES, "personality allowed"),
        Step(RET, _refuse(errno.EPERM)),
        Label("personality allowed"),
        Step(RET, _ALLOW),
    ]


_CONDITIONS = {"socket": _socket, "socketpair": _socketpair, "clone": _clone, "ioctl": _ioctl, "personality": _personality}
