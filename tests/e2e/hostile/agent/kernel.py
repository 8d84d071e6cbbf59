"""Out by the kernel: namespaces, mounts, other processes' memory, its wide and rarely used doors. Each must be refused; most are by their number alone."""

import contextlib
import ctypes
import mmap
import os
import signal
import struct

from attempts import FACTS, Verdict, attempt, call, libc

_NEW = {"user": 0x10000000, "net": 0x40000000, "mount": 0x00020000, "pid": 0x20000000, "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x80}


def _namespaces() -> None:
    for name, flag in _NEW.items():

        @attempt(f"unshare-{name}")
        def _(flag: int = flag) -> Verdict:
            call("unshare", flag)
            return True, "made"

    @attempt("clone-with-a-user-namespace")
    def _() -> Verdict:
        child = call("clone", _NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        return True, "made"

    @attempt("clone3-with-a-user-namespace")
    def _() -> Verdict:
        arguments = ctypes.create_string_buffer(struct.pack("8Q", _NEW["user"], 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 88)
        child = call("clone3", arguments, 64)
        if child == 0:
            os._exit(0)
        return True, "made"


_namespaces()


@attempt("setns-of-the-first-process")
def _() -> Verdict:
    entered = []
    for kind in ("net", "mnt", "pid", "user", "ipc", "uts"):
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
            call("setns", descriptor, 0)
            entered.append(kind)
    return bool(entered), f"entered {entered}"


@attempt("setns-by-a-process")
def _() -> Verdict:
    call("setns", os.pidfd_open(1), _NEW["net"] | _NEW["mount"])
    return True, "entered"


def _refused(name: str, *arguments: object) -> None:
    """A call that nobody in a sandbox may make."""

    @attempt(name.replace("_", "-") if name not in ("mount",) else "mount-tmpfs")
    def _() -> Verdict:
        return True, f"returned {call(name, *arguments)}"


_refused("mount", b"none", b"/tmp", b"tmpfs", 0, None)
_refused("umount2", b"/workspace", 2)
_refused("pivot_root", b"/tmp", b"/tmp")
_refused("chroot", b"/tmp")
_refused("fsopen", b"tmpfs", 0)
_refused("open_tree", -100, b"/", 1)
_refused("move_mount", -100, b"/tmp", -100, b"/workspace", 0)
_refused("mount_setattr", -100, b"/", 0, ctypes.create_string_buffer(32), 32)
_refused("keyctl", 0, -3, 1)
_refused("add_key", b"user", b"hostile", b"data", 4, -3)
_refused("request_key", b"user", b"hostile", None, 0)
_refused("bpf", 5, ctypes.create_string_buffer(120), 120)
_refused("userfaultfd", 1)
_refused("perf_event_open", ctypes.create_string_buffer(struct.pack("II", 1, 128), 128), 0, -1, -1, 0)
_refused("kexec_load", 0, 0, None, 0)
_refused("kexec_file_load", -1, -1, 0, None, 0)
_refused("init_module", b"\x7fELF", 4, b"")
_refused("finit_module", 0, b"", 0)
_refused("delete_module", b"hostile", 0o4000)
_refused("syslog", 3, ctypes.create_string_buffer(4096), 4096)
_refused("swapon", b"/tmp/swap", 0)
_refused("acct", b"/tmp/acct")
_refused("quotactl", 0x800007, b"/", 0, ctypes.create_string_buffer(128))
_refused("settimeofday", None, None)
_refused("sethostname", b"hostile", 7)
_refused("fanotify_init", 0, 0)
_refused("iopl", 3)
_refused("modify_ldt", 0, ctypes.create_string_buffer(64), 64)
_refused("vhangup")


@attempt("io-uring")
def _() -> Verdict:
    return True, f"descriptor {call('io_uring_setup', 4, ctypes.create_string_buffer(120))}"


@attempt("personality-without-randomisation")
def _() -> Verdict:
    call("personality", 0x0040000)
    return True, "set"


@attempt("name-to-handle")
def _() -> Verdict:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 160)
    call("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(ctypes.c_int()), 0)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, 0)
    return True, "opened by its handle"


# -- other processes


def _bystander() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child


@attempt("ptrace")
def _() -> Verdict:
    child = _bystander()
    try:
        call("ptrace", 16, child, 0, 0)  # PTRACE_ATTACH, even to a child of its own
        return True, "attached"
    finally:
        os.kill(child, signal.SIGKILL)


@attempt("ptrace-of-the-first-process")
def _() -> Verdict:
    call("ptrace", 0x4206, 1, 0, 0)  # PTRACE_SEIZE
    return True, "seized"


@attempt("memory-of-the-first-process")
def _() -> Verdict:
    buffer = ctypes.create_string_buffer(64)
    local = struct.pack("PN", ctypes.addressof(buffer), 64)
    with open("/proc/self/maps") as maps:
        start = int(maps.readline().split("-")[0], 16)
    remote = struct.pack("PN", start, 64)
    return True, f"read {call('process_vm_readv', 1, local, 1, remote, 1, 0)} bytes"


@attempt("memory-of-the-first-process-written")
def _() -> Verdict:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    return True, f"wrote {call('process_vm_writev', 1, local, 1, local, 1, 0)} bytes"


@attempt("descriptor-taken-from-the-first-process")
def _() -> Verdict:
    return True, f"descriptor {call('pidfd_getfd', os.pidfd_open(1), 1, 0)}"


@attempt("processes-compared")
def _() -> Verdict:
    return True, f"kcmp said {call('kcmp', os.getpid(), 1, 0, 1, 1)}"


@attempt("capabilities-taken")
def _() -> Verdict:
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    call("capset", header, ctypes.create_string_buffer(b"\xff" * 24, 24))
    return True, "taken"


@attempt("bounding-set-kept")
def _() -> Verdict:
    kept = [number for number in range(41) if libc.prctl(23, number, 0, 0, 0) == 1]  # PR_CAPBSET_READ
    return bool(kept), f"bounding set {kept}"


@attempt("new-privileges")
def _() -> Verdict:
    return libc.prctl(39, 0, 0, 0, 0) != 1, "no_new_privs is not set"  # PR_GET_NO_NEW_PRIVS


@attempt("filter-replaced")
def _() -> Verdict:
    """A filter of its own that allows all: the kernel asks every filter, and the strictest word counts."""
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(allow))
    with contextlib.suppress(OSError):
        call("seccomp", 1, 0, ctypes.create_string_buffer(program, 16))
    call("unshare", _NEW["user"])
    return True, "unshared under a filter of its own"


@attempt("another-architecture", may_die=True)
def _() -> Verdict:
    """The same calls under other numbers (x32, and the 32-bit entry), which a filter by number does not know."""
    if os.uname().machine != "x86_64":
        return False, "this machine has one"
    child = os.fork()
    if child == 0:
        code = b"\xb8\x36\x01\x00\x00\xbb\x00\x00\x00\x10\xcd\x80\xc3"  # mov eax, 310 (unshare of i386); mov ebx, CLONE_NEWUSER; int 0x80; ret
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\x53" + code[:-1] + b"\x5b\xc3")  # rbx is the caller's
        run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        os._exit(0 if run() == 0 else 1)
    _, status = os.waitpid(child, 0)
    narrow = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    child = os.fork()
    if child == 0:
        os._exit(0 if libc.syscall(0x40000000 | 272, ctypes.c_long(_NEW["user"])) == 0 else 1)
    _, status = os.waitpid(child, 0)
    wide = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    return narrow or wide, f"32-bit {narrow}, x32 {wide}"


@attempt("shared-with-the-launcher")
def _() -> Verdict:
    """Its namespaces are none of those that the product itself lives in."""
    shared = [kind for kind in ("net", "mnt", "pid", "user", "ipc", "uts") if os.readlink(f"/proc/self/ns/{kind}") == FACTS["namespaces"].get(kind)]
    return bool(shared), f"shares {shared}"
