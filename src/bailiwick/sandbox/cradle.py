"""The cradle: the child that makes a sandbox's namespaces and then becomes bubblewrap in them.

Forked by the launcher for each run. In order: (1) new namespaces (as an ordinary user inside a user namespace of its own); (2) the sealed network,
whose sockets go to the launcher; (3) a stage on /tmp, which only this mount namespace sees: the trees, /etc, and one bounded tmpfs that is all the
agent may write to; (4) the workspace copied in; (5) the launcher's word, given once this process is in the run's cgroup; (6) the run's uid, no new
privileges, nothing open but what bubblewrap is told of; (7) exec. When it dies early, the kernel takes namespaces and mounts away with it.
"""

import array
import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from bailiwick.kernel import confine
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError
from bailiwick.sandbox import namespaces, network, places, workspace
from bailiwick.sandbox.cgroup import Group

STAGE = "/tmp"  # noqa: S108  (covered by a mount of ours, in a namespace of ours)
DISK = f"{STAGE}/disk"
ETC = f"{STAGE}/etc"
DISK_PARTS = {"workspace": 0o755, "tmp": 0o1777, "var-tmp": 0o1777, "home": 0o755, "shm": 0o1777}
_STAGE_BYTES = 1 << 20
_FILES_MIN = 16_384

# Where bubblewrap finds what; the starter closes all but the first three, after moving the last to 2.
GO, OUTPUT, DIAGNOSTICS, ARGUMENTS, SECCOMP, INFO, ERRORS = range(7)
_CONTROL = 7
_ABOVE = 64

GO_WORD = b"go\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a cradle must know. `uid` is the run's, which with `separate` it changes to and otherwise has already."""

    uid: int
    gid: int
    separate: bool
    ports: list[int]
    disk_bytes: int
    workspace: str | None
    trees: list[str]
    state: Path  # of the installation, which no place may be in
    etc: str
    command: list[str]  # bubblewrap and its arguments that are not secret
    options: bytes  # the rest, separated by NUL
    seccomp: bytes
    rlimits: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The child's ends; the parent closes its copies after the fork."""

    control: int
    go: int
    output: int
    errors: int
    diagnostics: int
    info: int

    def all(self) -> tuple[int, ...]:
        return (self.control, self.go, self.output, self.errors, self.diagnostics, self.info)


class Sealed(msgspec.Struct, frozen=True, tag="sealed"):
    """The namespace is there; the sockets come with this, by these names, and after them the directory of the run's disk."""

    names: list[str]


class Filled(msgspec.Struct, frozen=True, tag="filled"):
    """The workspace is there; the descriptor that comes with this holds its manifest."""

    files: int
    refused: list[str]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    caller: bool  # what was asked is wrong, rather than the machine
    message: str


Report = Sealed | Filled | Failed
reports = msgspec.json.Decoder(Report)
manifests = msgspec.msgpack.Decoder(list[workspace.Entry])


def tree_place(number: int) -> str:
    return f"{STAGE}/trees/{number}"


def spawn(plan: Plan, ends: Ends, group: Group) -> tuple[int, bool]:
    """The pid of the cradle, and whether it is in all of the run's groups by the time it makes anything; else it is the caller's to put there. Called in
    the launcher's main thread: its death is the cradle's."""
    parent, place = os.getpid(), group.birthplace
    pid, joined = os.fork() if place is None else namespaces.fork_into(place), True
    if pid < 0:
        pid, joined = os.fork(), False
    if pid == 0:
        _child(plan, ends, parent, group if joined else None)
    return pid, joined


def _child(plan: Plan, ends: Ends, parent: int, group: Group | None) -> NoReturn:
    control = None
    try:
        gc.disable()
        confine.die_with_parent(parent)
        _reset_signals()
        _take_places(ends)
        control = socket.socket(fileno=_CONTROL)
        if group is not None:
            group.join()
        _live(plan, control, parent)
    except BailiwickError as error:
        _report(control, Failed(isinstance(error, CallerError), str(error)))
    except BaseException as error:  # noqa: BLE001  (a forked child has no one above it: whatever it is, it is said and it ends here)
        _report(control, Failed(False, f"{type(error).__name__}: {error}"))
    os._exit(1)


def _live(plan: Plan, control: socket.socket, parent: int) -> None:
    _new_namespaces(plan)  # (1)
    sockets = network.seal(plan.ports)  # (2)
    network.settle()
    source = None if plan.workspace is None else places.open_workspace(plan.workspace, plan.state, separate=plan.separate)
    disk = _stage(plan)  # (3)
    _report(control, Sealed(list(sockets)), [*(sock.fileno() for sock in sockets.values()), disk])
    for sock in sockets.values():
        sock.close()
    copied = workspace.Copied()
    if source is not None:
        inner = os.open("workspace", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=disk)
        bound = workspace.Bound(plan.disk_bytes, _files_max(plan), plan.uid, plan.gid)
        copied = workspace.copy_in(source.descriptor, inner, bound, workspace.Reader(source.owner))  # (4)
    manifest = _memory(msgspec.msgpack.encode(copied.entries))
    _report(control, Filled(copied.files, copied.refused), [manifest])
    if control.recv(len(GO_WORD)) != GO_WORD:  # (5)
        os._exit(1)
    _become(plan, parent)  # (6)
    arguments, filters = _memory(plan.options), _memory(plan.seccomp)
    for at, descriptor in ((ARGUMENTS, arguments), (SECCOMP, filters)):
        os.dup2(descriptor, at, inheritable=True)
    namespaces.close_from(_CONTROL)
    os.execve(plan.command[0], plan.command, {})  # (7)  # noqa: S606


def _reset_signals() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setsid()


def _take_places(ends: Ends) -> None:
    """Every descriptor to its number, everything else of the launcher's closed: other runs' listeners and pipes are not this one's."""
    placed = {GO: ends.go, OUTPUT: ends.output, DIAGNOSTICS: ends.diagnostics, INFO: ends.info, ERRORS: ends.errors, _CONTROL: ends.control}
    lifted = {at: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for at, descriptor in placed.items()}
    for at, descriptor in lifted.items():
        os.dup2(descriptor, at, inheritable=True)
    namespaces.close_from(_CONTROL + 1)


def _new_namespaces(plan: Plan) -> None:
    if plan.separate:
        namespaces.unshare(namespaces.NEW_MOUNTS | namespaces.NEW_NETWORK)
    else:
        namespaces.be_dumpable()
        namespaces.unshare(namespaces.NEW_USER | namespaces.NEW_MOUNTS | namespaces.NEW_NETWORK)
        namespaces.map_own_identity(plan.uid, plan.gid)
    namespaces.keep_mounts_private()


def _files_max(plan: Plan) -> int:
    return max(_FILES_MIN, plan.disk_bytes // 4096)


def _stage(plan: Plan) -> int:
    """Covers /tmp and lays everything out on it; a descriptor of the disk. What lies below the host's /tmp is taken hold of before it is covered."""
    os.umask(0)
    taken = {ETC: (namespaces.clone_tree(plan.etc), True)}
    for number, tree in enumerate(plan.trees):
        place = places.open_tree(tree, plan.state, separate=plan.separate)
        try:
            taken[tree_place(number)] = (namespaces.clone_tree(place.descriptor), stat.S_ISDIR(os.fstat(place.descriptor).st_mode))
        except BackendError as error:
            raise CallerError(f"tree {tree!r} cannot be shown in the sandbox: {error}; give a path that exists") from error
        finally:
            os.close(place.descriptor)
    namespaces.mount_tmpfs(STAGE, size_bytes=_STAGE_BYTES, inodes=4096, mode=0o755)
    Path(f"{STAGE}/trees").mkdir(mode=0o755)
    for at, (mounts, is_directory) in taken.items():
        Path(at).mkdir(mode=0o755) if is_directory else Path(at).touch(mode=0o644)
        namespaces.attach_tree(mounts, at)
        os.close(mounts)
    namespaces.mount_tmpfs(DISK, size_bytes=plan.disk_bytes, inodes=_files_max(plan), mode=0o755)
    disk = os.open(DISK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part, mode in DISK_PARTS.items():
        os.mkdir(part, mode, dir_fd=disk)
        if plan.separate:
            os.chown(part, plan.uid, plan.gid, dir_fd=disk)
    return disk


def _become(plan: Plan, parent: int) -> None:
    os.umask(0o022)
    if plan.separate:
        os.setgroups([])
        os.setresgid(plan.gid, plan.gid, plan.gid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
        confine.die_with_parent(parent)  # changing uid cleared it
    if 0 in os.getresuid():
        raise BackendError("bubblewrap would run as uid 0; it is never started from there")
    os.chdir("/")
    for which, value in plan.rlimits.items():
        _soft, hard = resource.getrlimit(which)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))
    confine.promise_no_new_privileges()


def _memory(content: bytes) -> int:
    descriptor = os.memfd_create("bailiwick", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _report(control: socket.socket | None, report: Report, descriptors: Sequence[int] = ()) -> None:
    if control is None:
        return
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError):
        control.sendmsg([msgspec.json.encode(report)], rights)
