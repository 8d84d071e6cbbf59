"""The system calls behind namespaces and mounts, which the standard library does not have before 3.12, each raising what the kernel said.

Called in children of the launcher only, between the fork and the exec: the launcher itself never leaves the namespaces it was started in.
"""

import ctypes
import os
import signal
import struct
from pathlib import Path

from bailiwick.kernel.errors import BackendError

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
EVERY_KIND = NEW_MOUNTS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PROCESSES | NEW_NETWORK

READ_ONLY, NO_SETUID, NO_DEVICES = 1, 2, 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
_RECURSIVE, _PRIVATE = 0x4000, 1 << 18

_OPEN_TREE, _MOVE_MOUNT, _CLONE3, _CLOSE_RANGE = 428, 429, 435, 436  # the same on every architecture
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_TREE, _RECURSIVE_TREE = 1, 0x8000
_FROM_EMPTY_PATH = 0x00000004
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000

_PR_CAPBSET_DROP, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 24, 4, 8
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_MAX = 64

_libc = ctypes.CDLL(None, use_errno=True)
_interpreter = ctypes.PyDLL(None)  # keeps the interpreter's lock during the call: who forks must hold it


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise BackendError(f"{what} refused by the kernel: {os.strerror(number)}")
    return result


def unshare(kinds: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(kinds)), f"unshare of namespaces {kinds:#x}")


def enter(pidfd: int, kinds: int = EVERY_KIND) -> None:
    """Into the namespaces of the process behind `pidfd`; the one of processes is entered by children only."""
    _checked(_libc.setns(ctypes.c_int(pidfd), ctypes.c_int(kinds)), f"entry into namespaces {kinds:#x}")


def fork_into(group: Path) -> int:
    """fork(2) of a process with one thread, the child born in this control group (version 2). Minus 1 where the kernel cannot, and nothing is forked.

    Not os.fork: it has no word for the group. The interpreter is told before and after, as os.fork does; the C library is not, and of what it keeps only
    the thread's own number is stale in the child, which makes no thread and ends in an exec.
    """
    place = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = struct.pack("=11Q", _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, place)
        ctypes.pythonapi.PyOS_BeforeFork()
        pid = int(_interpreter.syscall(_CLONE3, arguments, len(arguments)))
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
        else:
            ctypes.pythonapi.PyOS_AfterFork_Parent()
    finally:
        os.close(place)
    return pid


def map_own_identity(uid: int, gid: int) -> None:
    """After `unshare(NEW_USER)`: this uid and gid stand for themselves in it, and nobody else is there."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def be_dumpable() -> None:
    """A process that is not cannot write its own maps; what follows ends in an exec, which decides anew."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def keep_mounts_private() -> None:
    """Nothing mounted from here on is seen outside this mount namespace."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE, None)


def mount_tmpfs(at: str, *, size_bytes: int, inodes: int, mode: int) -> None:
    Path(at).mkdir(exist_ok=True)
    _mount("tmpfs", at, "tmpfs", NO_SETUID | NO_DEVICES, f"size={size_bytes},nr_inodes={inodes},mode={mode:o}")


def clone_tree(place: int | str) -> int:
    """A descriptor of the mounts at and below a path or what an O_PATH descriptor is of, to be attached elsewhere; the caller closes it."""
    at, path = (_AT_FDCWD, os.fsencode(place)) if isinstance(place, str) else (place, b"")
    flags = _CLONE_TREE | _RECURSIVE_TREE | os.O_CLOEXEC | (0 if path else _AT_EMPTY_PATH)
    return _checked(_libc.syscall(_OPEN_TREE, at, path, flags), f"clone of the mounts at {place}")


def attach_tree(tree: int, at: str) -> None:
    _checked(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(at), _FROM_EMPTY_PATH), f"mount at {at}")


def close_from(first: int) -> None:
    _checked(_libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0), f"closing descriptors from {first}")


def touch_files_as(uid: int) -> None:
    """Files are opened with this uid's rights from here on, and without root's capabilities over them; by root itself it is taken back. setfsuid(2)."""
    _libc.setfsuid(uid)
    if _libc.setfsuid(-1) != uid:  # it never fails by its result
        raise BackendError(f"setfsuid({uid}) refused by the kernel")


def touch_files_as_group(gid: int) -> None:
    _libc.setfsgid(gid)
    if _libc.setfsgid(-1) != gid:
        raise BackendError(f"setfsgid({gid}) refused by the kernel")


def drop_capabilities() -> None:
    """Every set empty, the bounding set too, in the user namespace this process is in."""
    for capability in range(_CAPABILITIES_MAX):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the first that the kernel does not know
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(24)
    _checked(_libc.capset(header, nothing), "capset")


def _mount(source: str | None, at: str, kind: str | None, flags: int, options: str | None) -> None:
    raw = [None if text is None else os.fsencode(text) for text in (source, at, kind)]
    result = _libc.mount(raw[0], raw[1], raw[2], ctypes.c_ulong(flags), None if options is None else options.encode())
    _checked(result, f"mount of {kind or 'private'} at {at}")
