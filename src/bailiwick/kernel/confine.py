"""What a process of ours gives up before it reads its first byte from anybody else, in the one order that works.

Imports first (an interpreter under a home that others may not traverse cannot import afterwards); then uid and gid; then the kernel's promises.
"""

import ctypes
import gc
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

from bailiwick.kernel.accounts import Account
from bailiwick.kernel.errors import BackendError

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # the same on every architecture since 5.13
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FS_ALL_V1 = (1 << 13) - 1
_FS_BY_VERSION = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # refer, truncate, device ioctl
_FS_READ = (1 << 2) | (1 << 3)  # read a file, list a directory


def die_with_parent(parent: int) -> None:
    """SIGKILL when the process `parent`, our parent at the fork, dies; at once when it is dead already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def become(account: Account) -> None:
    """Drops to the account's uid and gid for good, when there is anything to drop. BackendError if any of it could be taken back."""
    if os.getuid() == 0 and account.uid != 0:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if os.getresuid() != (account.uid,) * 3:
        raise BackendError(f"process {account.name} runs as uid {os.getuid()}; must be {account.uid}")


def promise_no_new_privileges() -> None:
    """From here on no exec gives this process or its children anything: setuid bits and file capabilities have no effect."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def harden() -> None:
    """No new privileges, no core dump, no ptrace or /proc/PID/mem by others of our uid, files private unless said otherwise."""
    promise_no_new_privileges()
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def undumpable() -> None:
    """No core dump of this process, and nobody of its uid reads its memory or opens its descriptors through /proc. An exec undoes it."""
    _prctl(_PR_SET_DUMPABLE, 0)


def settle() -> None:
    """After the imports, before the fork: what is there now is not garbage, and stays shared between the processes."""
    gc.collect()
    gc.freeze()


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where it has none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)))


def restrict_files(*, read: Sequence[Path] = (), write: Sequence[Path] = ()) -> bool:
    """From here on, by Landlock, this process opens nothing outside these trees. False when the kernel has no Landlock (before 5.13)."""
    version = landlock_version()
    if version < 1:
        return False
    handled = _FS_ALL_V1
    for since, right in _FS_BY_VERSION.items():
        handled |= right if version >= since else 0
    attribute = ctypes.c_uint64(handled)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attribute), ctypes.sizeof(attribute), 0)
    if ruleset < 0:
        raise BackendError(f"landlock ruleset refused: {os.strerror(ctypes.get_errno())}")
    try:
        for rights, trees in ((_FS_READ, read), (handled, write)):
            for tree in trees:
                _allow_beneath(ruleset, tree, rights)
        if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            raise BackendError(f"landlock restriction refused: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(ruleset)
    return True


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


_FS_FILE_RIGHTS = 0b111 | (1 << 14) | (1 << 15)  # execute, write, read; truncate; ioctl: all that a rule on a file may name


def _allow_beneath(ruleset: int, tree: Path, rights: int) -> None:
    try:
        descriptor = os.open(tree, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # what this uid cannot reach it needs no leave for
        return
    try:
        rule = _PathBeneath(rights if tree.is_dir() else rights & _FS_FILE_RIGHTS, descriptor)
        if _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            raise BackendError(f"landlock rule for {tree} refused: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise BackendError(f"prctl({option}, {value}) refused: {os.strerror(ctypes.get_errno())}")
