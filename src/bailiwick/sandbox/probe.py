"""The probe: what the isolation of one sandbox does when it is really tried, before the agent's first instruction.

A fork of the launcher enters every namespace of the process that waits inside to become the agent, gives up what that process does not have, puts
itself under the same filter, and tries: to dial, to see, to write, to become more. Beside that the waiting process itself is examined from outside.
Nothing is assumed from how the sandbox was made; a finding that does not hold means that the agent is not started.
"""

import ctypes
import errno
import gc
import os
import platform
import resource
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from bailiwick.kernel import confine, seccomp
from bailiwick.kernel.syscalls import numbers
from bailiwick.sandbox import namespaces, surroundings
from bailiwick.sandbox.arguments import MASKED_DIRECTORIES, MASKED_FILES, MASKED_FILES_MORE
from bailiwick.sandbox.messages import Finding

DIALLED4 = ("203.0.113.7", 80)  # documentation addresses (RFC 5737, RFC 3849): in a sandbox they are as local as any other
DIALLED6 = ("2001:db8::7", 443)
_UNSERVED = ("198.51.100.9", 9)
_NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_ASKED = 3
_STARTER_DESCRIPTORS_MAX = 7  # closed by the starter as it becomes the agent
_SETTLE_SECONDS_MAX = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the examined process must be: its uid outside, its bounds, where it must not see us, and the command that will be started."""

    uid: int
    open_files: int
    disk_bytes: int
    state: str  # our own directory on the host
    command: str
    path: str
    groups: list[str]  # the end of its path in each hierarchy that is used; each must stand in a line of /proc/PID/cgroup of its own
    trees: list[str]  # of the host, that the operator put in at their own paths


class Examined(msgspec.Struct, frozen=True):
    findings: list[Finding]
    missing: str = ""  # why the command cannot be started; empty when it can


examined = msgspec.json.Decoder(Examined)


def failed(detail: str) -> Examined:
    return Examined([Finding("probe", False, detail)])


def spawn(expected: Expected, asked: int, *, separate: bool) -> int:
    """Forks the probe, which waits at the socket `asked` for a pidfd of the process it is to examine, and writes `Examined` there, as one line of JSON.
    Returns its pid."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _enter(expected, asked, separate, parent)
    return child


def from_outside(pid: int, expected: Expected) -> list[Finding]:
    """What /proc says of the process that will become the agent."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    shown = ", ".join(f"{name} {value:x}" for name, value in sets.items())
    shared = [name for name in _NAMESPACES if (proc / "ns" / name).readlink() == Path(f"/proc/self/ns/{name}").readlink()]
    descriptors = _settled_descriptors(proc)
    joined = sum(line.endswith(tuple(expected.groups)) for line in (proc / "cgroup").read_text().splitlines())
    bounds = next((line.split()[3:5] for line in (proc / "limits").read_text().splitlines() if line.startswith("Max open files")), [])
    allowed = str(min(expected.open_files, int(resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    return [
        Finding("process.capabilities", not any(sets.values()), shown),
        Finding("process.no-new-privileges", status["NoNewPrivs"] == "1", f"NoNewPrivs {status['NoNewPrivs']}"),
        Finding("process.seccomp", status["Seccomp"] == "2", f"mode {status['Seccomp']}, {status.get('Seccomp_filters', '?')} filters"),
        Finding("process.identity", status["Uid"].split() == [str(expected.uid)] * 4 and expected.uid != 0, f"uid outside {status['Uid'].split()[0]}"),
        Finding("process.namespaces", not shared, f"shares {', '.join(shared)} with the launcher" if shared else f"{len(_NAMESPACES)} of its own"),
        Finding("process.descriptors", descriptors[-1] < _STARTER_DESCRIPTORS_MAX, f"open before the start: {descriptors}"),
        Finding("process.cgroup", joined == len(expected.groups), f"in {joined} of {len(expected.groups)} groups of the run"),
        Finding("process.open-files", bounds == [allowed] * 2, f"bounded at {' and '.join(bounds)}"),
    ]  # fmt: skip


def _settled_descriptors(proc: Path) -> list[int]:
    """The starter's shell holds one more while it says that it is there, and on a busy machine it may not have put it away when it is examined."""
    deadline = time.monotonic() + _SETTLE_SECONDS_MAX
    while True:
        found = sorted(int(entry.name) for entry in (proc / "fd").iterdir())
        if found[-1] < _STARTER_DESCRIPTORS_MAX or time.monotonic() > deadline:
            return found
        time.sleep(0.0005)


def _enter(expected: Expected, asked: int, separate: bool, parent: int) -> NoReturn:
    """In the first child: into the namespaces, then once more a fork, since the namespace of processes is entered by being born in it."""
    try:
        gc.disable()  # a collection would copy pages that are shared with the launcher
        confine.die_with_parent(parent)
        os.dup2(asked, _ASKED)
        os.closerange(0, _ASKED)
        namespaces.close_from(_ASKED + 1)
        if separate:
            os.setgroups([])
        waiting = _told()
        namespaces.enter(waiting)
        os.setresgid(surroundings.AGENT_GID, surroundings.AGENT_GID, surroundings.AGENT_GID)
        os.setresuid(surroundings.AGENT_UID, surroundings.AGENT_UID, surroundings.AGENT_UID)
        confine.die_with_parent(parent)  # once more: a change of uid cleared it
        inner = os.fork()
        if inner == 0:
            confine.die_with_parent(0)  # as a parent outside its namespace of processes is seen
            os.close(waiting)
            namespaces.drop_capabilities()
            seccomp.install(seccomp.AGENT)
            _answer(Examined(list(_try_everything(expected)), _resolve(expected)))
            os._exit(0)
        os.waitpid(inner, 0)
    except BaseException as error:  # noqa: BLE001  (a forked child has no one above it)
        _answer(failed(f"{type(error).__name__}: {error}"))
    os._exit(0)


def _told() -> int:
    with socket.socket(fileno=os.dup(_ASKED)) as asked:
        _word, descriptors, _flags, _address = socket.recv_fds(asked, 1, 1)
    if not descriptors:
        os._exit(0)  # the sandbox was not made after all
    return descriptors[0]


def _answer(result: Examined) -> None:
    raw = memoryview(msgspec.json.encode(result) + b"\n")
    while raw:
        raw = raw[os.write(_ASKED, raw) :]


def _try_everything(expected: Expected) -> Iterator[Finding]:
    yield from _try_network()
    yield from _try_sockets()
    yield from _try_system_calls()
    yield from _try_files(expected)
    yield from _try_proc()


def _refused(check: str, attempt: Callable[[], object]) -> Finding:
    """Held when the attempt fails as a system call does."""
    try:
        attempt()
    except OSError as error:
        return Finding(check, True, f"refused: {errno.errorcode.get(error.errno or 0, str(error.errno))}")
    except Exception as error:  # noqa: BLE001  (a probe that breaks has not shown that anything holds)
        return Finding(check, False, f"could not be tried: {type(error).__name__}: {error}")
    return Finding(check, False, "went through")


def _dial(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    with socket.socket(family) as sock:
        sock.settimeout(1)
        sock.connect(address)


def _try_network() -> Iterator[Finding]:
    for name, family, address in (("ipv4", socket.AF_INET, DIALLED4), ("ipv6", socket.AF_INET6, DIALLED6)):
        try:
            _dial(family, address)
            yield Finding(f"network.{name}", True, f"{address[0]} port {address[1]} is answered here")
        except OSError as error:
            yield Finding(f"network.{name}", False, f"{address[0]} port {address[1]}: {error}")
    try:
        _dial(socket.AF_INET, _UNSERVED)
        yield Finding("network.unserved", False, f"{_UNSERVED[0]} port {_UNSERVED[1]} answered")
    except ConnectionRefusedError:
        yield Finding("network.unserved", True, "refused at once")
    except OSError as error:
        yield Finding("network.unserved", False, f"not refused at once: {error}")
    devices = [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
    yield Finding("network.interfaces", devices == ["lo"], f"interfaces: {', '.join(devices)}")
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    yield Finding("network.routes", not any(route.strip() for route in routes), f"{len(routes)} routes in the main table")


def _try_sockets() -> Iterator[Finding]:
    kinds = {
        "packet": (17, socket.SOCK_RAW),
        "netlink": (16, socket.SOCK_RAW),
        "raw": (2, socket.SOCK_RAW),
        "vsock": (40, 1),
        "crypto": (38, 5),
        "xdp": (44, 3),
    }
    for name, (family, kind) in kinds.items():
        yield _refused(f"socket.{name}", lambda family=family, kind=kind: socket.socket(family, kind).close())  # type: ignore[misc]


def _try_system_calls() -> Iterator[Finding]:
    table = numbers(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    attempts: dict[str, tuple[int, ...]] = {
        "unshare": (namespaces.NEW_USER,), "setns": (0, 0), "mount": (0, 0, 0, 0, 0), "ptrace": (0, 0, 0, 0), "bpf": (0, 0, 0), "keyctl": (0, 0, 0),
        "io_uring_setup": (1, 0), "userfaultfd": (0,), "perf_event_open": (0, 0, 0, 0, 0), "process_vm_readv": (1, 0, 0, 0, 0, 0), "chroot": (0,),
        "open_by_handle_at": (0, 0, 0), "clone": (namespaces.NEW_USER | 17, 0, 0, 0, 0), "personality": (0x0040000,),
    }  # fmt: skip
    for name, arguments in attempts.items():
        result = libc.syscall(table[name], *(ctypes.c_long(value) for value in arguments))
        number = ctypes.get_errno()
        if name == "clone" and result == 0:
            os._exit(0)  # the child that should not exist
        yield Finding(f"syscall.{name}", result == -1 and number == errno.EPERM, f"refused: {errno.errorcode.get(number)}" if result == -1 else "went through")


def _try_files(expected: Expected) -> Iterator[Finding]:
    for place in ("/", "/usr", "/etc", "/dev", "/root", "/run", "/proc/sys/kernel"):
        yield _refused(f"write.{place}", lambda place=place: os.close(os.open(f"{place}/.bailiwick-probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)))  # type: ignore[misc]
    yield _refused("write.host-setting", lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))
    hidden = [path for path in ("/etc/shadow", "/run/docker.sock", "/var/run/docker.sock", "/sys", "/boot", expected.state) if Path(path).exists()]
    for place in ("/root", "/run", "/home"):
        hidden += _foreign(Path(place), [Path(tree) for tree in (*expected.trees, surroundings.HOME)])
    yield Finding("files.host", not hidden, f"in sight: {', '.join(hidden[:10])}" if hidden else "nothing of the host's /home, /root, /run, /sys or our state")
    disk = os.statvfs(surroundings.WORKSPACE)
    own = Path(surroundings.WORKSPACE).stat().st_dev != Path("/usr").stat().st_dev
    size = disk.f_blocks * disk.f_frsize
    yield Finding("files.disk", own and size <= expected.disk_bytes + 4096, f"{size} bytes of its own" if own else "on the host's file system")


def _names(place: str) -> list[str]:
    return [entry.name for entry in Path(place).iterdir()]


def _foreign(place: Path, trees: list[Path]) -> list[str]:
    """What is in sight under `place` that is neither one of the trees nor on the way to one."""
    found: list[str] = []
    for entry in place.iterdir():
        if any(tree.is_relative_to(entry) for tree in trees):
            found += [] if entry in trees else _foreign(entry, trees)
        else:
            found.append(str(entry))
    return found


def _try_proc() -> Iterator[Finding]:
    seen = []
    for name in (*MASKED_FILES, *MASKED_FILES_MORE):
        try:
            descriptor = os.open(f"/proc/{name}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        seen.append(name)
        os.close(descriptor)
    seen += [name for name in MASKED_DIRECTORIES if Path(f"/proc/{name}").is_dir() and _names(f"/proc/{name}")]
    yield Finding("proc.masked", not seen, f"readable: {', '.join(seen)}" if seen else "nothing of the kernel's own is readable")
    processes = {int(name) for name in _names("/proc") if name.isdigit()}
    yield Finding("proc.processes", processes == {1, os.getpid()}, f"sees {sorted(processes)}")


def _resolve(expected: Expected) -> str:
    """Why the command cannot be started, by the agent's own path and rights; empty when it can."""
    os.chdir(surroundings.WORKSPACE)
    name = expected.command
    candidates = [name] if "/" in name else [f"{entry or '.'}/{name}" for entry in expected.path.split(":")]
    found = [candidate for candidate in candidates if Path(candidate).is_file()]
    if not found:
        return f"command {name!r} is not found in the sandbox on {expected.path}; give a path that is under /usr, in the workspace or in a tree"
    if not any(os.access(candidate, os.X_OK) for candidate in found):
        return f"command {found[0]!r} is not executable in the sandbox; change its mode or name its interpreter"
    return ""
