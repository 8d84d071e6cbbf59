"""What bubblewrap is told: the sandbox's file system, namespaces, environment, and the starter that waits inside for the launcher's word.

The starter is the host's /bin/sh with every protection in force already: it says that it is there, waits, and becomes the agent by `exec`. So the
process that is examined is the very one the agent will be, before its first instruction.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bailiwick.kernel.errors import BackendError
from bailiwick.sandbox import surroundings
from bailiwick.sandbox.cradle import ARGUMENTS, DISK, ERRORS, ETC, INFO, SECCOMP, tree_place
from bailiwick.sandbox.spec import SandboxSpec

READY_WORD = b"ready\n"
_STARTER = (
    f'echo ready >&0; read -r word || exit 125; [ "$word" = start ] || exit 125; '
    f'exec "$@" </dev/null 2>&{ERRORS} {ARGUMENTS}<&- {SECCOMP}<&- {INFO}<&- {ERRORS}>&-'
)
START_WORD = b"start\n"

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr on every current distribution; directories on some

# The kernel's own files that say something about the host or act on it. Directories are covered by an empty one.
MASKED_FILES = ("kcore", "keys", "key-users", "kmsg", "kallsyms", "kpagecount", "kpageflags", "kpagecgroup", "timer_list", "sched_debug", "latency_stats")
MASKED_FILES_MORE = ("interrupts", "softirqs", "vmallocinfo", "modules", "slabinfo", "pagetypeinfo", "iomem", "ioports", "mtrr", "config.gz", "schedstat")
MASKED_DIRECTORIES = ("acpi", "scsi", "asound", "driver", "fs", "bus", "irq", "tty")


def find_bubblewrap() -> str:
    """BackendError, with the way out, when it is not installed."""
    places = "/usr/bin:/usr/local/bin:/bin:/run/current-system/sw/bin"
    if os.getuid() != 0:  # whose PATH it is decides nothing that is not theirs already
        places += os.pathsep + os.environ.get("PATH", "")
    found = shutil.which("bwrap", path=places)
    if found is None:
        raise BackendError("bubblewrap is not installed: no bwrap in /usr/bin; install the package bubblewrap of your distribution")
    return found


@cache
def version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False).stdout.decode(errors="replace")
    numbers = said.split()[-1].split(".") if said.split() else []
    return tuple(int(number) for number in numbers if number.isdigit())


def command(program: str, spec: SandboxSpec) -> list[str]:
    return [program, "--args", str(ARGUMENTS), "--", "/bin/sh", "-c", _STARTER, "starter", *spec.command]


def options(program: str, spec: SandboxSpec) -> bytes:
    """Everything but the command, as `--args` reads it."""
    words = [*_namespaces(program), *_base(), *_places(spec.trees), *_environment(surroundings.environment(spec.environment))]
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _namespaces(program: str) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")  # the network's was joined before
    if version(program) >= (0, 8):
        yield "--disable-userns"
    yield from ("--uid", str(surroundings.AGENT_UID), "--gid", str(surroundings.AGENT_GID), "--hostname", surroundings.HOSTNAME)
    yield from ("--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    yield from ("--seccomp", str(SECCOMP), "--info-fd", str(INFO), "--chdir", surroundings.WORKSPACE)


@cache
def _base() -> tuple[str, ...]:
    """What the machine has is looked at once: its links into /usr, the kernel's files."""
    return (*_system(), "--ro-bind", ETC, "/etc", "--proc", "/proc", "--dev", "/dev", "--bind", f"{DISK}/shm", "/dev/shm", "--remount-ro", "/dev", *_masked())  # noqa: S108  (the sandbox's)


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _MERGED:
        if Path(f"/{name}").is_symlink():
            yield from ("--symlink", str(Path(f"/{name}").readlink()).lstrip("/"), f"/{name}")
        elif Path(f"/{name}").is_dir():
            yield from ("--ro-bind", f"/{name}", f"/{name}")


def _places(trees: list[str]) -> Iterator[str]:
    for part, place in (("tmp", "/tmp"), ("var-tmp", "/var/tmp"), ("home", surroundings.HOME), ("workspace", surroundings.WORKSPACE)):  # noqa: S108
        yield from ("--bind", f"{DISK}/{part}", place)
    yield from ("--dir", "/run", "--dir", "/root")
    for number, tree in sorted(enumerate(trees), key=lambda item: item[1].count("/")):  # an inner one lies over its outer one
        yield from ("--ro-bind", tree_place(number), tree)
    for store in surroundings.java_stores():
        yield from ("--ro-bind", ETC + surroundings.JAVA_STORE.removeprefix("/etc"), store)
    yield from ("--remount-ro", "/")


def _masked() -> Iterator[str]:
    for name in (*MASKED_FILES, *MASKED_FILES_MORE):
        if Path(f"/proc/{name}").exists():
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
    for name in MASKED_DIRECTORIES:
        if Path(f"/proc/{name}").is_dir():
            yield from ("--perms", "0555", "--size", "4096", "--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}")


def _environment(variables: dict[str, str]) -> Iterable[str]:
    yield "--clearenv"
    for name, value in variables.items():
        yield from ("--setenv", name, value)
