"""Filters are tried on the kernel in a child, and read by an interpreter of ours for the architecture this machine is not."""

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel import bpf, seccomp
from bailiwick.kernel.bpf import AND_K, JEQ, JGE, JGT, JMP, JSET, LD_W_ABS, RET, Label, Step
from bailiwick.kernel.errors import BackendError
from bailiwick.kernel.syscalls import ALLOWED, ARCHITECTURES, CONDITIONAL, DENIED_TO_OUR_OWN, UNKNOWN, numbers

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = (0x00050000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_FORBIDDEN = """
ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key
bpf userfaultfd perf_event_open mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr setns unshare pivot_root chroot
quotactl open_by_handle_at name_to_handle_at syslog init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct
settimeofday clock_settime sethostname setdomainname fanotify_init memfd_secret lookup_dcookie vhangup
"""
FORBIDDEN = _FORBIDDEN.split()


def verdict(program: bytes, number: int, *arguments: int, architecture: str) -> int:
    """What the kernel would answer, by running the program."""
    values = [value & (2**64 - 1) for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, AUDIT.get(architecture, 0x40000003), 0, *values)
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        if code == LD_W_ABS:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == AND_K:
            accumulator &= value
        elif code == JMP:
            at += value
        elif code == RET:
            return value
        else:
            held = {JEQ: accumulator == value, JGT: accumulator > value, JGE: accumulator >= value, JSET: bool(accumulator & value)}[code]
            at += then if held else otherwise


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_call_is_allowed_refused_or_unknown_by_the_table(architecture: str) -> None:
    """The program allows exactly what the table allows: nothing more, nothing less, on both architectures."""
    program, table = seccomp.agent_filter(architecture), numbers(architecture)
    for name, number in table.items():
        if name in CONDITIONAL:
            continue
        expected = ALLOW if name in ALLOWED else ENOSYS if name in UNKNOWN else EPERM
        assert verdict(program, number, architecture=architecture) == expected, name
    for number in (max(table.values()) + 1, 1_000, 0x3FFFFFFF):
        assert verdict(program, number, architecture=architecture) == ENOSYS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dangerous_calls_are_refused(architecture: str) -> None:
    """What reaches other processes, namespaces, mounts, modules or the kernel's widest doors is refused, whatever the table grows to."""
    program, table = seccomp.agent_filter(architecture), numbers(architecture)
    for name in FORBIDDEN:
        if name in table:
            assert verdict(program, table[name], architecture=architecture) == EPERM, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(domain=st.integers(0, 50), kind=st.integers(0, 0xFFF), protocol=st.integers(0, 300), upper=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_sockets_are_unix_and_ip_streams_and_datagrams(architecture: str, domain: int, kind: int, protocol: int, upper: int) -> None:
    """Only AF_UNIX, and AF_INET and AF_INET6 with TCP or UDP; what stands in the upper half of a register changes nothing."""
    program, number = seccomp.agent_filter(architecture), numbers(architecture)["socket"]
    ip = domain in (2, 10) and kind & 0xF in (1, 2) and protocol in (0, 6, 17)
    unix = domain == 1 and kind & 0xF in (1, 2, 5)
    answered = verdict(program, number, domain | upper << 32, kind | upper << 32, protocol | upper << 32, architecture=architecture)
    assert (answered == ALLOW) == (ip or unix)
    if domain not in (1, 2, 10):
        assert answered == EAFNOSUPPORT


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(flags=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_clone_makes_no_namespace(architecture: str, flags: int) -> None:
    """clone is refused exactly when one of the eight CLONE_NEW* flags is among the others; the same for processes of ours."""
    new = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80
    number = numbers(architecture)["clone"]
    for program in (seccomp.agent_filter(architecture), seccomp.own_filter(architecture)):
        assert verdict(program, number, flags, architecture=architecture) == (EPERM if flags & new else ALLOW)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ioctl_and_personality_are_limited(architecture: str) -> None:
    """No typing into the starter's terminal; no switching off of address randomisation."""
    program, table = seccomp.agent_filter(architecture), numbers(architecture)
    for command, expected in ((0x5412, EPERM), (0x541C, EPERM), (0x5413, ALLOW), (0x5401, ALLOW), (0xFFFF_0000_0000_5412, EPERM)):
        assert verdict(program, table["ioctl"], 0, command, architecture=architecture) == expected
    for kind, expected in ((0, ALLOW), (0xFFFFFFFF, ALLOW), (0x0040000, EPERM), (0x400000, EPERM)):
        assert verdict(program, table["personality"], kind, architecture=architecture) == expected


@pytest.mark.parametrize("program", [seccomp.agent_filter("x86_64"), seccomp.own_filter("x86_64")])
def test_another_architecture_and_x32_kill(program: bytes) -> None:
    """The same number means another call there, so there is no answer but the end."""
    assert verdict(program, 1, architecture="i386") == KILL
    assert verdict(program, 0x40000000 | 1, architecture="x86_64") == KILL


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_own_processes_start_and_enter_nothing(architecture: str) -> None:
    """Every name of the deny-list is refused, clone3 is unknown, everything else goes through."""
    program = seccomp.own_filter(architecture)
    for name, number in numbers(architecture).items():
        expected = EPERM if name in DENIED_TO_OUR_OWN else ENOSYS if name == "clone3" else ALLOW
        assert verdict(program, number, architecture=architecture) == expected, name


def test_names_are_of_the_table() -> None:
    """A name misspelt in a list would silently deny or allow nothing."""
    known = set().union(*(numbers(architecture) for architecture in ARCHITECTURES))
    assert known >= ALLOWED | CONDITIONAL | UNKNOWN | DENIED_TO_OUR_OWN
    assert not ALLOWED & (CONDITIONAL | UNKNOWN | set(FORBIDDEN))


def test_no_table_no_filter() -> None:
    """An architecture without a table is refused by name rather than guessed."""
    with pytest.raises(BackendError, match="riscv64"):
        seccomp.agent_filter("riscv64")


def test_jumps_are_checked() -> None:
    """A jump backwards, too far or nowhere is an error of ours, not a filter that does something else."""
    with pytest.raises(BackendError, match="nowhere"):
        bpf.assemble([Step(JEQ, 1, then="nowhere"), Step(RET, 0)])
    with pytest.raises(BackendError, match="'back'"):
        bpf.assemble([Label("back"), Step(JEQ, 1, then="back"), Step(RET, 0)])
    with pytest.raises(BackendError, match="'far'"):
        bpf.assemble([Step(JEQ, 1, then="far"), *[Step(RET, 0)] * 300, Label("far"), Step(RET, 0)])
    with pytest.raises(BackendError, match="0 instructions"):
        bpf.assemble([])


def in_child(body: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if body() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(number, *(ctypes.c_long(value) for value in arguments)) == -1 else 0


def test_the_kernel_takes_the_agents_filter() -> None:
    """Under it a program runs, a TCP socket opens, a raw one, a namespace and a keyring do not."""
    table = numbers(platform.machine())

    def body() -> bool:
        seccomp.install(seccomp.AGENT)
        socket.socket().close()
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
            return False
        except PermissionError:
            pass
        return refused(table["unshare"], 0x10000000) == errno.EPERM and refused(table["keyctl"], 0, 0, 0) == errno.EPERM and os.system("true") == 0

    assert in_child(body)


def test_the_kernel_takes_our_own_filter() -> None:
    """Under it files open and threads start, and no program does."""

    def body() -> bool:
        import threading

        seccomp.install(seccomp.OWN_PROCESS)
        open("/dev/null").close()
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        try:
            os.execv("/bin/true", ["true"])
        except PermissionError:
            return True
        return False

    assert in_child(body)
