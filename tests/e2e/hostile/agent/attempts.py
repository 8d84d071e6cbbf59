"""What an attempt is, and what the attempts share: the facts known, sockets with deadlines, a few words of DNS, TLS and HTTP, bare system calls."""

import contextlib
import ctypes
import json
import os
import platform
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Verdict = tuple[bool, str]

CANARY = b'"canary"'  # in every answer of a place that must not be reached
NOTICED = b"noticed"  # what the world outside answers a datagram with
PLANTED = b"planted-"  # in every secret

_FILE = Path(__file__).with_name("facts.json")
FACTS: dict = json.loads(_FILE.read_text()) if _FILE.exists() else {}
PATIENCE = float(FACTS.get("patience", 5.0))  # seconds a silence is waited for


@dataclass(frozen=True)
class Attempt:
    """`trace`: texts that one event of the record must all hold afterwards; none where nothing reaches the gateway."""

    name: str
    group: str
    make: Callable[[], Verdict]
    trace: tuple[str, ...]
    may_die: bool  # being killed for it is an answer


ATTEMPTS: dict[str, Attempt] = {}


def attempt(name: str, *trace: str, may_die: bool = False) -> Callable[[Callable[[], Verdict]], Callable[[], Verdict]]:
    """The function says (got out, what was seen). An OSError of it is a refusal; any other exception is a fault of the attempt."""

    def keep(make: Callable[[], Verdict]) -> Callable[[], Verdict]:
        assert name not in ATTEMPTS, name
        ATTEMPTS[name] = Attempt(name, Path(make.__code__.co_filename).stem.removesuffix("_tricks"), make, trace, may_die)
        return make

    return keep


# -- sockets


def dial(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect((address, port))
    return sock


def hear(sock: socket.socket, enough: int = 1 << 16) -> bytes:
    """Until the other side closes, falls silent, or has said enough."""
    heard = b""
    with contextlib.suppress(OSError):
        while len(heard) < enough and (piece := sock.recv(65_536)):
            heard += piece
    return heard


def hear_answer(sock: socket.socket) -> bytes:
    """One HTTP answer with a length, or whatever came until the end."""
    heard = b""
    with contextlib.suppress(OSError):
        while piece := sock.recv(65_536):
            heard += piece
            head, end, body = heard.partition(b"\r\n\r\n")
            length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if end and ((length and len(body) >= int(length[0])) or body.endswith(b"0\r\n\r\n")):
                break
    return heard


def say(address: str, port: int, data: bytes) -> bytes:
    """In the clear; what came back until the end."""
    with dial(address, port) as sock:
        sock.sendall(data)
        return hear_answer(sock)


def tls_over(sock: socket.socket, name: str | None) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock, server_hostname=name)


def say_tls(address: str, port: int, name: str | None, data: bytes) -> bytes:
    with dial(address, port) as plain, tls_over(plain, name) as sock:
        sock.sendall(data)
        return hear_answer(sock)


def get(host: str, path: str = "/", *fields: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def judged(answer: bytes) -> Verdict:
    """Out, when what answered is a place that must not be reached."""
    return CANARY in answer, answer.split(b"\r\n")[0].decode("latin-1")[:120] or "no answer"


def swallowed(address: str, port: int, data: bytes) -> Verdict:
    """A datagram got out if the world outside answers it, or if nobody here answers or refuses it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((address, port))
        sock.send(data)
        try:
            answer = sock.recv(4096)
        except TimeoutError:
            return True, "taken in silence"
        return answer == NOTICED, f"answered with {len(answer)} bytes"


# -- names


def question(name: str, kind: int = 1, *, flags: int = 0x0100, klass: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".") if label)
    return struct.pack("!6H", 0x4242, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, klass)


def address_of(name: str) -> str:
    """By the resolver here; where none answers, an address of the world outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE / 2)
        sock.connect((FACTS["resolver"], 53))
        for _ in range(3):  # as every resolver does: a datagram may be lost
            try:
                sock.send(question(name))
                answer = sock.recv(4096)
            except OSError:
                continue
            if answer == NOTICED:
                break
            if answer[7] == 0:
                raise OSError(f"{name} has no address here")
            return socket.inet_ntoa(answer[-4:])
    return str(FACTS["elsewhere"])


# -- system calls, by number

_NUMBERS = {
    "x86_64": {
        "ptrace": 101, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "clone": 56, "clone3": 435,
        "process_vm_readv": 310, "process_vm_writev": 311, "keyctl": 250, "add_key": 248, "request_key": 249, "io_uring_setup": 425, "bpf": 321,
        "userfaultfd": 323, "perf_event_open": 298, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "personality": 135, "open_by_handle_at": 304, "name_to_handle_at": 303, "pidfd_getfd": 438, "pidfd_open": 434,
        "fsopen": 430, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "syslog": 103, "reboot": 169, "swapon": 167, "acct": 163,
        "iopl": 172, "quotactl": 179, "settimeofday": 164, "sethostname": 170, "fanotify_init": 300, "kcmp": 312, "modify_ldt": 154,
        "process_madvise": 440, "memfd_secret": 447, "capset": 126, "seccomp": 317, "vhangup": 153,
    },
    "aarch64": {
        "ptrace": 117, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "clone": 220, "clone3": 435,
        "process_vm_readv": 270, "process_vm_writev": 271, "keyctl": 219, "add_key": 217, "request_key": 218, "io_uring_setup": 425, "bpf": 280,
        "userfaultfd": 282, "perf_event_open": 241, "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273,
        "delete_module": 106, "personality": 92, "open_by_handle_at": 265, "name_to_handle_at": 264, "pidfd_getfd": 438, "pidfd_open": 434,
        "fsopen": 430, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "syslog": 116, "reboot": 142, "swapon": 224, "acct": 89,
        "quotactl": 60, "settimeofday": 170, "sethostname": 161, "fanotify_init": 262, "kcmp": 272,
        "process_madvise": 440, "memfd_secret": 447, "capset": 91, "seccomp": 277, "vhangup": 58,
    },
}  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """The system call, its result; OSError as the kernel refused it."""
    number = _NUMBERS[platform.machine()].get(name)
    if number is None:
        raise OSError(f"this machine has no {name}")
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(libc.syscall(number, *converted))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result
