"""Out by files and processes: the host's and other runs' files, /proc, descriptors left open, devices, links that lead out and come back."""

import contextlib
import ctypes
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from attempts import FACTS, PLANTED, Verdict, attempt, call, libc


def _writable(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(descriptor)
    return True


def _settable(path: str) -> bool:
    """Some settings may be opened by anybody and written by nobody: it is written what it is already."""
    try:
        with open(path, "rb") as now, open(path, "wb", buffering=0) as setting:
            setting.write(now.read())
    except OSError:
        return False
    return True


def _own(pid: str) -> bool:
    """Whether a process in sight is of this sandbox."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return True


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


# -- files of the host, of the product, of other runs


@attempt("state-directory")
def _() -> Verdict:
    seen = [place for place in (FACTS["state"], *FACTS["sockets"], *FACTS["files"]) if os.path.lexists(place)]
    return bool(seen), f"in sight: {seen}"


@attempt("host-files")
def _() -> Verdict:
    seen = []
    for place in ("/etc/shadow", "/etc/ssh", "/root/.ssh", "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
                  "/run/systemd/private", "/var/lib/docker", "/boot", "/sys/kernel", "/sys/fs/cgroup/cgroup.procs", "/lost+found"):  # fmt: skip
        if os.path.lexists(place):
            seen.append(place)
    return bool(seen), f"in sight: {seen}"


@attempt("path-sockets-in-sight")
def _() -> Verdict:
    """Every socket file anywhere that takes a connection."""
    reached, looked = [], 0
    for top in ("/run", "/tmp", "/var", "/home", "/workspace", "/dev"):
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                looked += 1
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        sock.connect(path)
                        reached.append(path)
    return bool(reached), f"{looked} files; reached {reached[:10]}"


@attempt("neighbour-files")
def _() -> Verdict:
    places = [f"/proc/{FACTS['neighbour']['pid']}/root/workspace/secret.txt", f"/proc/{FACTS['neighbour']['pid']}/cwd/secret.txt", "/tmp/neighbour.txt"]
    read = [place for place in places if os.access(place, os.R_OK)]
    return bool(read), f"read {read}"


@attempt("secrets-in-sight")
def _() -> Verdict:
    """In any file of the places where one may look, and in any process's environment and arguments."""
    found = []
    for top in ("/tmp", "/var", "/home", "/run", "/etc", "/dev/shm"):
        for directory, _, names in os.walk(top):
            for name in names:
                with contextlib.suppress(OSError):
                    path = os.path.join(directory, name)
                    if stat.S_ISREG(os.lstat(path).st_mode) and PLANTED in Path(path).read_bytes():
                        found.append(path)
    for pid in _pids():
        for part in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                found += [f"/proc/{pid}/{part}"] if PLANTED in Path(f"/proc/{pid}/{part}").read_bytes() else []
    return bool(found), f"found in {found[:10]}"


@attempt("root-file-system-written")
def _() -> Verdict:
    written = []
    for place in ("/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/dev", "/run", "/root", "/var", "/proc", "/etc/ssl/certs", *FACTS["trees"]):
        with contextlib.suppress(OSError):
            os.close(os.open(f"{place}/.hostile", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
            written.append(place)
    return bool(written), f"written: {written}"


@attempt("interpreter-replaced")
def _() -> Verdict:
    places = [
        os.path.realpath("/proc/self/exe"),
        "/usr/bin/env",
        "/bin/sh",
        "/etc/ld.so.preload",
        "/etc/passwd",
        "/etc/resolv.conf",
        "/etc/ssl/certs/ca-certificates.crt",
    ]
    written = [place for place in places if _writable(place)]
    return bool(written), f"writable: {written}"


@attempt("read-only-remounted")
def _() -> Verdict:
    call("mount", b"none", b"/", 0, 0x1021, 0)  # MS_REMOUNT | MS_BIND | MS_RDONLY off is what would come next
    return True, "remounted"


# -- /proc


@attempt("proc-of-others")
def _() -> Verdict:
    """Whoever is in sight besides this sandbox's own processes, and all that may be read of them."""
    seen = [pid for pid in _pids() if not _own(pid)]
    foreign = [pid for pid in map(str, FACTS["pids"]) if os.path.isdir(f"/proc/{pid}") and not _own(pid)]
    return bool(seen or foreign), f"{len(_pids())} in sight, {seen} of others"


def _proc_parts() -> None:
    for part in ("environ", "mem", "root", "cwd", "fd", "maps", "ns/net", "ns/mnt"):

        @attempt(f"proc-1-{part.replace('/', '-')}")
        def _(part: str = part) -> Verdict:
            """Of the first process: it is this agent itself, or it must say nothing."""
            path = f"/proc/1/{part}"
            if part.startswith("ns/"):
                return os.readlink(path) != os.readlink(f"/proc/self/{part}"), os.readlink(path)
            if part == "root":
                mine, its = os.stat("/"), os.stat(path + "/")
                return (mine.st_dev, mine.st_ino) != (its.st_dev, its.st_ino), "another root" if mine.st_ino != its.st_ino else "the same root"
            if part == "cwd":
                return not os.readlink(path).startswith(os.getcwd()[:10]), os.readlink(path)
            if part == "fd":
                held = {name: os.readlink(f"{path}/{name}") for name in os.listdir(path)}
                foreign = {
                    name: target
                    for name, target in held.items()
                    if not target.startswith(("pipe:", "/dev/null", "/dev/pts", "anon_inode:[signalfd]", "/proc/"))
                }
                return bool(foreign), str(held)
            if part == "mem":
                with open(path, "rb") as memory, open("/proc/1/maps") as maps:
                    memory.seek(int(maps.readline().split("-")[0], 16))
                    memory.read(64)
                return not _own("1"), "read, of this sandbox's own" if _own("1") else "read"
            raw = Path(path).read_bytes()
            return PLANTED in raw or not _own("1"), f"{len(raw)} bytes"


_proc_parts()


@attempt("proc-settings-written")
def _() -> Verdict:
    places = ["kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/sysrq", "vm/overcommit_memory",
              "fs/binfmt_misc/register", "net/ipv4/ip_forward", "net/core/somaxconn", "kernel/yama/ptrace_scope", "user/max_user_namespaces",
              "kernel/ns_last_pid", "net/ipv4/ping_group_range"]  # fmt: skip
    written = [place for place in places if _settable(f"/proc/sys/{place}")]
    written += [
        place for place in ("/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj/x", "/proc/irq/0/smp_affinity") if _writable(place)
    ]
    return bool(written), f"writable: {written}"


@attempt("proc-of-the-kernel")
def _() -> Verdict:
    read = []
    for name in ("kcore", "kallsyms", "kmsg", "keys", "key-users", "modules", "iomem", "timer_list", "sched_debug", "config.gz", "interrupts", "vmallocinfo"):
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/{name}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                read += [name] if os.read(descriptor, 64) else []
            finally:
                os.close(descriptor)
    return bool(read), f"said something: {read}"


@attempt("own-protections-undone")
def _() -> Verdict:
    """Own uid map, groups, limits: what a process may ask for itself."""
    undone = []
    for name in ("uid_map", "gid_map", "setgroups"):
        with contextlib.suppress(OSError):
            Path(f"/proc/self/{name}").write_text("0 0 1")
            undone.append(name)
    for become in (os.setuid, os.setgid):
        with contextlib.suppress(OSError):
            become(0)
            undone.append(become.__name__)
    with contextlib.suppress(OSError):
        os.setgroups([0])
        undone.append("setgroups")
    return bool(undone), f"undone: {undone}"


@attempt("control-groups")
def _() -> Verdict:
    seen = [
        place
        for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified")
        if os.path.isdir(place) and os.listdir(place)
    ]
    groups = Path("/proc/self/cgroup").read_text()
    return bool(seen), f"in sight: {seen}; own: {groups[:100]!r}"


@attempt("sys")
def _() -> Verdict:
    seen = os.listdir("/sys") if os.path.isdir("/sys") else []
    return bool(seen), f"in sight: {seen[:10]}"


# -- descriptors


@attempt("descriptors-inherited")
def _() -> Verdict:
    """Whatever was open when the agent began: only its three, and what this program opened itself, which are pipes."""
    foreign = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(("pipe:", "/dev/null", f"/proc/{os.getpid()}/fd")) and not target.startswith("/proc/"):
                foreign.append((name, target))
    return bool(foreign), f"besides pipes: {foreign}"


@attempt("descriptors-upward")
def _() -> Verdict:
    """From a directory that is open already, past the root."""
    root = os.open("/", os.O_RDONLY)
    with contextlib.suppress(OSError):
        inside = os.stat("/")
        above = os.stat("../../../../..", dir_fd=root)
        return (inside.st_dev, inside.st_ino) != (above.st_dev, above.st_ino), "the root is the root's parent"
    return False, "refused"


@attempt("output-pipe-reopened")
def _() -> Verdict:
    """Its output is a pipe that the gateway reads; reopened for reading it would take others' words, and there must be no other's."""
    descriptor = os.open("/proc/self/fd/2", os.O_RDONLY | os.O_NONBLOCK)
    try:
        taken = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    return PLANTED in taken, f"read {len(taken)} bytes of its own"


# -- devices


@attempt("devices-in-sight")
def _() -> Verdict:
    known = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "console", "core", "fd", "stdin", "stdout", "stderr", "mqueue"}
    foreign = sorted(set(os.listdir("/dev")) - known)
    return bool(foreign), f"besides the harmless: {foreign}"


@attempt("devices-made")
def _() -> Verdict:
    made = []
    for name, kind, device in (
        ("mem", stat.S_IFCHR, (1, 1)),
        ("port", stat.S_IFCHR, (1, 4)),
        ("disk", stat.S_IFBLK, (8, 0)),
        ("disk2", stat.S_IFBLK, (254, 0)),
        ("fuse", stat.S_IFCHR, (10, 229)),
    ):
        with contextlib.suppress(OSError):
            os.mknod(f"/tmp/{name}", kind | 0o600, os.makedev(*device))
            made.append(name)
    return bool(made), f"made: {made}"


@attempt("terminal-injection")
def _() -> Verdict:
    import fcntl

    typed = []
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, 0x5412, b"x")  # TIOCSTI
            typed.append(descriptor)
    with contextlib.suppress(OSError):
        controlling = os.open("/dev/tty", os.O_RDWR)
        fcntl.ioctl(controlling, 0x5412, b"x")
        typed.append(controlling)
    with contextlib.suppress(OSError):
        fcntl.ioctl(0, 0x541C, b"\x03")  # TIOCLINUX
        typed.append("paste")
    return bool(typed), f"typed into {typed}"


@attempt("shared-memory-of-others")
def _() -> Verdict:
    names = [name for name in os.listdir("/dev/shm") if not name.startswith("hostile")]
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:] if os.path.exists("/proc/sysvipc/shm") else []
    return bool(names or segments), f"files {names}, segments {len(segments)}"


@attempt("message-queues-of-others")
def _() -> Verdict:
    queues = [line for kind in ("msg", "sem") if os.path.exists(f"/proc/sysvipc/{kind}") for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]]
    return bool(queues), f"{len(queues)} queues and semaphores in sight"


# -- more rights by a file


@attempt("setuid-programs")
def _() -> Verdict:
    """Each in sight is started; none may run as anybody else."""
    became, found = [], 0
    for directory in ("/usr/bin", "/usr/sbin", "/bin", "/usr/local/bin", "/usr/lib/openssh", "/usr/libexec"):
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            with contextlib.suppress(OSError):
                if os.stat(f"{directory}/{name}").st_mode & (stat.S_ISUID | stat.S_ISGID):
                    found += 1
                    became += [name] if _becomes_another(f"{directory}/{name}") else []
    return bool(became), f"{found} in sight; became another by {became}"


def _becomes_another(program: str) -> bool:
    child = os.fork()
    if child == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.execv(program, [program, "--version"])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if os.readlink(f"/proc/{child}/exe") == os.path.realpath(program):
                    return len(set(next(line for line in Path(f"/proc/{child}/status").read_text().splitlines() if line.startswith("Uid:")).split()[1:])) > 1
            if os.waitpid(child, os.WNOHANG)[0]:
                child = 0
                return False
        return False
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@attempt("setuid-of-its-own-making")
def _() -> Verdict:
    with open("/bin/sh", "rb") as source, open("/tmp/hostile-sh", "wb") as copy:
        copy.write(source.read())
    os.chmod("/tmp/hostile-sh", 0o6755)
    return os.stat("/tmp/hostile-sh").st_uid == 0, f"owned by {os.stat('/tmp/hostile-sh').st_uid}"


@attempt("file-capabilities")
def _() -> Verdict:
    with open("/tmp/hostile-capable", "wb"):
        pass
    os.setxattr("/tmp/hostile-capable", "security.capability", struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0, 0))
    return True, "set"


# -- links: in the workspace, to be followed by whoever collects it


def _links() -> None:
    outward = {
        "link-to-root": "/etc/shadow",
        "link-to-state": FACTS.get("state", "/"),
        "link-upward": "../../../../etc/passwd",
        "link-to-proc": "/proc/1/environ",
    }
    for name, target in outward.items():

        @attempt(f"workspace-{name}")
        def _(name: str = name, target: str = target) -> Verdict:
            """Left behind: it must not come back, and nobody may follow it."""
            with contextlib.suppress(FileExistsError):
                os.symlink(target, f"left-{name}")
            return False, "left for whoever collects"

    @attempt("workspace-hard-link")
    def _() -> Verdict:
        os.link("/etc/passwd", "left-hard-link")
        return True, "made"

    @attempt("workspace-directory-swapped")
    def _() -> Verdict:
        """What was a directory when the workspace was copied in is a link when it is collected."""
        with contextlib.suppress(FileNotFoundError):
            os.rename("kept", "kept.was")
        with contextlib.suppress(FileExistsError):
            os.symlink("/etc", "kept")
        return False, "left for whoever collects"

    @attempt("workspace-two-links-out")
    def _() -> Verdict:
        """Each leads inside; one after the other leads out."""
        os.makedirs("left-deep/er", exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(".", "left-deep/er/here")
            os.symlink("left-deep/er/here/../../../..", "left-through")
        return False, "left for whoever collects"

    @attempt("workspace-special-files")
    def _() -> Verdict:
        with contextlib.suppress(FileExistsError):
            os.mkfifo("left-pipe")
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.bind("left-socket")
        with open("left-setuid", "wb") as file:
            file.write(b"#!/bin/sh\nid\n")
        os.chmod("left-setuid", 0o6755)
        return False, "left for whoever collects"

    @attempt("workspace-names-to-deceive")
    def _() -> Verdict:
        for name in (b"left-\x1b[2J", b"left-\xff\xfe", b"left-\nname", b"left- -rf", b"..left", b"left-" + "\u202egnp.exe".encode()):
            with open(name, "wb") as file:
                file.write(b"x")
        return False, "left for whoever collects"


_links()


@attempt("trees-from-outside")
def _() -> Verdict:
    """Files by their handles, past every mount (open_by_handle_at), and by another process's root."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 32)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, 0)
    return True, "opened"


# -- signals


def _signalled(send: Callable[[], object]) -> Verdict:
    send()
    return True, "sent"


@attempt("signals-to-processes-of-the-host")
def _() -> Verdict:
    """Numbers that mean something outside; here they mean nobody, or one of its own."""
    sent = []
    for pid in (*FACTS["pids"], FACTS["neighbour"]["pid"]):
        with contextlib.suppress(OSError):
            if not os.path.isdir(f"/proc/{pid}") or not _own(str(pid)):
                os.kill(pid, 0)
                sent.append(pid)
    return bool(sent), f"reached {sent}"


@attempt("signal-to-everybody", may_die=True)
def _() -> Verdict:
    """The neighbour and the product go on; that is asked from outside."""
    os.kill(-1, signal.SIGKILL)
    return False, "sent to whoever is here"


@attempt("priority-and-scheduling")
def _() -> Verdict:
    taken = []
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)
        taken.append("nice")
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        taken.append("real time")
    return bool(taken), f"taken: {taken}"


@attempt("core-dump")
def _() -> Verdict:
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    return hard != 0, f"bounded at {soft} and {hard}"


@attempt("limits-raised")
def _() -> Verdict:
    import resource

    raised = []
    for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_MEMLOCK"):
        which = getattr(resource, name)
        _, hard = resource.getrlimit(which)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (hard + 1, hard + 1) if hard > 0 else (1 << 20, 1 << 20))
            raised.append(name)
    return bool(raised), f"raised: {raised}"


@attempt("keys-of-the-session")
def _() -> Verdict:
    libc.syscall  # noqa: B018
    return call("keyctl", 0, -3, 0) != 0, "a keyring"
