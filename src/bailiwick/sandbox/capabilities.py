"""What this machine can guarantee, each fact found by doing the thing in a child rather than by reading a version; for `bailiwick doctor`."""

import ctypes
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bailiwick.kernel import seccomp
from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox import arguments, namespaces, network
from bailiwick.sandbox.cgroup import FREEZE, Cgroups

_BUBBLEWRAP_LEAST = (0, 7)  # --size


@dataclass(frozen=True, slots=True)
class Fact:
    """`required`: without it no sandbox starts here. `way_out` says how to get it; empty when there is nothing to do."""

    name: str
    ok: bool
    detail: str
    way_out: str = ""
    required: bool = True


def survey() -> list[Fact]:
    return [_kernel(), _bubblewrap(), _filter(), _namespaces(), _sealed_network(), *_groups(), _landlock(), _overlay(), _docker()]


def _kernel() -> Fact:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    return Fact("kernel", numbers >= (5, 15), f"Linux {release} on {platform.machine()}", "a kernel of 5.15 or newer")


def _bubblewrap() -> Fact:
    way_out = "install the package `bubblewrap` of your distribution (the packages of that name on PyPI are something else)"
    try:
        program = arguments.find_bubblewrap()
        version = arguments.version(program)
    except (BackendError, OSError, subprocess.SubprocessError) as error:
        return Fact("bubblewrap", False, str(error), way_out)
    shown = ".".join(str(number) for number in version) or "unknown"
    return Fact("bubblewrap", version >= _BUBBLEWRAP_LEAST, f"{program}, version {shown}", way_out)


def _filter() -> Fact:
    try:
        program = seccomp.agent_filter()
    except BackendError as error:
        return Fact("seccomp", False, str(error), "run on x86_64 or aarch64")
    held = _in_child(lambda: seccomp.install(seccomp.AGENT))
    return Fact("seccomp", held == "", held or f"allow-list of {len(program) // 8} instructions is taken", "a kernel with CONFIG_SECCOMP_FILTER")


def _namespaces() -> Fact:
    if os.getuid() == 0:
        failed = _in_child(lambda: namespaces.unshare(namespaces.NEW_MOUNTS | namespaces.NEW_NETWORK))
        way_out = "CAP_SYS_ADMIN for the launcher: inside a container, one that is given it"
        return Fact("namespaces", failed == "", failed or "made as root; each run has a uid of its own", way_out)
    failed = _in_child(_as_ordinary_user)
    way_out = "user namespaces for ordinary users: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 (Debian), "
    way_out += "kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile for bwrap (Ubuntu)"
    return Fact("namespaces", failed == "", failed or "made as an ordinary user; every run has the same uid outside", way_out)


def _sealed_network() -> Fact:
    def trial() -> None:
        if os.getuid() == 0:
            namespaces.unshare(namespaces.NEW_MOUNTS | namespaces.NEW_NETWORK)
        else:
            _as_ordinary_user()
        sockets = network.seal([])
        for family, address in ((socket.AF_INET, "203.0.113.7"), (socket.AF_INET6, "2001:db8::7")):
            with socket.socket(family) as sock:
                sock.settimeout(1)
                sock.connect((address, 80))
        for sock in sockets.values():
            sock.close()

    failed = _in_child(trial)
    return Fact(
        "sealed network",
        failed == "",
        failed or "every IPv4 and IPv6 address arrives here; attempts on other ports are heard",
        "a kernel with IPv6 and AF_PACKET",
    )


def _groups() -> list[Fact]:
    groups = Cgroups.find(f"bailiwick-survey-{os.getpid()}")
    groups.close()
    way_out = "as root: mount cgroup2; as an ordinary user: a systemd unit with Delegate=yes (systemd-run --user --scope -p Delegate=yes bailiwick up)"
    instead = {"cpu": "not bounded", "memory": "sampled, with an rlimit a process", "pids": "an rlimit", FREEZE: "SIGSTOP to every process, read back"}
    return [
        Fact(
            f"limit on {control}" if control != FREEZE else "freezer",
            control in groups.enforces,
            groups.enforces.get(control, f"no control group: {without}"),
            way_out,
            False,
        )
        for control, without in instead.items()
    ]


def _landlock() -> Fact:
    version = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)
    detail = f"version {version}" if version > 0 else "not in this kernel: processes of ours are held by their uid and a filter only"
    return Fact("landlock", version > 0, detail, "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= list", False)


def _overlay() -> Fact:
    there = "overlay" in Path("/proc/filesystems").read_text()
    return Fact("overlayfs", there, "there" if there else "not there: workspaces are copied", "modprobe overlay", False)


def _docker() -> Fact:
    program = shutil.which("docker")
    listening = any(Path(path).is_socket() for path in ("/var/run/docker.sock", "/run/docker.sock"))
    detail = "engine's socket is there" if listening else "command without an engine" if program else "not installed"
    return Fact("docker", listening, f"{detail}; not used by the bubblewrap backend", "install Docker, if agents come as images", False)


def _as_ordinary_user() -> None:
    namespaces.be_dumpable()
    uid, gid = os.getuid(), os.getgid()
    namespaces.unshare(namespaces.NEW_USER | namespaces.NEW_MOUNTS | namespaces.NEW_NETWORK)
    namespaces.map_own_identity(uid, gid)


def _in_child(trial: Callable[[], None]) -> str:
    """Why the trial failed; empty when it did not."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            trial()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  (a forked child has no one above it)
            os.write(writing, str(error).encode()[:1_000] or type(error).__name__.encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said or ("" if status == 0 else f"the trial ended with {status}")
