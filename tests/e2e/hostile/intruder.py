"""What every turned process tries: others' files, others' memory, others' sockets, the kernel's doors. Blocking, and without help of the process's loop."""

import array
import contextlib
import ctypes
import os
import socket
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bailiwick.broker.messages import BROKER, GrantLease, RevokeLeases, UseLease
from bailiwick.critic.enforcement import ENFORCEMENT, BudgetLimits, CloseRun, HoldSettled, OpenHold, OpenRun, RedeemHold, Usage
from bailiwick.kernel.framing import Failure, Frame, Framer, Heartbeat, Message, Service
from bailiwick.kernel.layout import Layout
from bailiwick.record.signing import SIGNER, DescribeKey, SignCheckpoint
from bailiwick.sandbox.adoption import ADOPTION, AdoptRun
from bailiwick.sandbox.messages import (
    LAUNCHER,
    CollectWorkspace,
    CreateSandbox,
    DestroySandbox,
    FreezeRun,
    HandOver,
    KillRun,
    ListSandboxes,
    MeasureRun,
    StartAgent,
    ThawRun,
)
from bailiwick.sandbox.spec import SandboxSpec

ANSWER_SECONDS_MAX = 5.0

Attempt = tuple[str, Callable[[], Any]]
_NUMBERS = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "setns": 308, "unshare": 272, "mount": 165, "bpf": 321,
               "io_uring_setup": 425, "keyctl": 250, "userfaultfd": 323, "perf_event_open": 298, "chroot": 161, "kcmp": 312, "finit_module": 313},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438, "setns": 268, "unshare": 97, "mount": 40, "bpf": 280,
                "io_uring_setup": 425, "keyctl": 219, "userfaultfd": 282, "perf_event_open": 241, "chroot": 51, "kcmp": 272, "finit_module": 273},
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Stopped(Exception):
    """What was tried did not come off, for a reason that is no OSError."""


def call(name: str, *arguments: Any) -> int:
    number = _NUMBERS[os.uname().machine][name]
    result = int(_libc.syscall(number, *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


# -- words with other processes


def ask(path: str, service: Service, message: Message | bytes, *, kind: str = "call", fds: Sequence[int] = ()) -> Message:
    """The answer. Stopped when it is a failure, or the other side hangs up or says nothing."""
    framer = Framer(service)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_SECONDS_MAX)
        sock.connect(path)
        frame = message if isinstance(message, bytes) else framer.send(kind, message, id=1, fds=len(fds))  # type: ignore[arg-type]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sock.sendall(framer.hello())
            sent = sock.sendmsg([frame], rights)
            sock.sendall(frame[sent:])
            while data := sock.recv(1 << 18):
                for answer in framer.receive(data):
                    if answer.kind in ("reply", "failure"):
                        return _answered(answer)
        except TimeoutError:
            raise Stopped("no answer") from None
        except ConnectionError as error:
            raise Stopped(f"hung up: {error}") from None
    raise Stopped("hung up")


def _answered(answer: Frame) -> Message:
    if isinstance(answer.message, Failure):
        raise Stopped(f"{answer.message.code}: {answer.message.message}")
    return answer.message


def worker_orders(own: str) -> list[Message]:
    """What the governor says to a worker: to have a run served without a boundary would be everything."""
    open_run = OpenRun(run=own, agent="x", boundary="{}", observe=True, hosts={}, models=[], budget=BudgetLimits(), used=Usage(), leased=[])
    return [open_run, CloseRun(run=own, reason="hostile"), HoldSettled(hold="hold-1", state="granted", reason=""), Heartbeat(number=1)]


def launcher_orders(run: str) -> list[Message]:
    spec = SandboxSpec(command=["/bin/sh"], environment={}, trust_bundle="")
    run_only = [StartAgent, FreezeRun, ThawRun, DestroySandbox, CollectWorkspace, MeasureRun]
    orders: list[Message] = [
        CreateSandbox(run="run-hostile", worker="gateway-0", spec=spec),
        KillRun(run=run, reason="hostile"),
        ListSandboxes(),
        Heartbeat(number=1),
    ]
    return [*orders, HandOver(run=run, worker="gateway-0"), *(kind(run=run) for kind in run_only)]


def broker_orders(run: str, worker: str) -> list[Message]:
    grant = GrantLease(
        lease="lease-hostile", run=run, agent="x", worker=worker, credential="token", hosts=["denied.internal"], verbs=["read"],
        template="Authorization: Bearer {value}", expires="2099-01-01T00:00:00Z",
    )  # fmt: skip
    return [grant, RevokeLeases(run=run, reason="hostile")]


def signer_orders() -> list[Message]:
    return [DescribeKey(), SignCheckpoint(origin="bailiwick.internal/record", size=10_000, root="00" * 32, consistency=[])]


def governor_words(run: str) -> list[Message]:
    """What a worker says to the governor of a run: for the ones it serves, and no others."""
    held = OpenHold(
        run=run, agent="x", action="a-1", digest="sha256:0", shown={}, body_text="", rules=["x/boundary/0"], approvers=["oncall"], quorum=1, wait_seconds=1.0,
        expires_seconds=9e9, four_eyes=False, policy="sha256:0",
    )  # fmt: skip
    return [held, RedeemHold(hold="hold-1", run=run, digest="sha256:0", policy="sha256:0")]


# -- what is tried


def orders(run: str, worker: str) -> dict[str, tuple[Service, list[Message]]]:
    """Every request there is at each socket of ours, but for what the recorder takes."""
    return {
        "launcher": (LAUNCHER, launcher_orders(run)),
        "signer": (SIGNER, signer_orders()),
        "broker": (BROKER, broker_orders(run, worker)),
        worker: (ENFORCEMENT, worker_orders(run)),
    }


def sockets(layout: Layout, *, run: str, targets: dict[str, tuple[Service, list[Message]]]) -> Iterator[Attempt]:
    for name, (service, messages) in targets.items():
        for message in messages:
            yield f"{name}: {type(message).__name__}", lambda name=name, service=service, message=message: ask(layout.socket(name), service, message)
    for method, path in (("GET", "/v1/runs"), ("POST", "/v1/holds/hold-1/approve"), ("POST", f"/v1/runs/{run}/kill"), ("POST", "/v1/shutdown")):
        yield f"api: {method} {path.replace(run, 'RUN')}", lambda method=method, path=path: _api(layout.socket("api"), method, path)


def _api(path: str, method: str, target: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_SECONDS_MAX)
        sock.connect(path)
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        line = sock.recv(4096).split(b"\r\n")[0].decode()
    if " 40" in line:
        raise Stopped(line)
    return line


def adoptions(layout: Layout, run: str, names: Sequence[str]) -> Iterator[Attempt]:
    """Listeners of another's run, or listeners of its own in a run's place."""
    for name in names:

        def offer(name: str = name) -> Message:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                return ask(layout.socket(f"{name}.adopt"), ADOPTION, AdoptRun(run=run, names=["tcp:80"]), fds=[listener.fileno()])

        yield f"{name}.adopt: AdoptRun", offer


def files(paths: dict[str, Path], *, written: dict[str, Path]) -> Iterator[Attempt]:
    for name, path in paths.items():
        yield f"read {name}", lambda path=path: os.read(os.open(path, os.O_RDONLY), 64)
    for name, path in written.items():
        yield f"write {name}", lambda path=path: os.open(path, os.O_WRONLY | os.O_APPEND)
        yield f"replace {name}", lambda path=path: os.rename(path, path.with_suffix(".hostile"))
        yield f"remove {name}", lambda path=path: os.unlink(path)
    for name, path in written.items():
        yield f"beside {name}", lambda path=path: os.open(path.with_name("hostile"), os.O_CREAT | os.O_WRONLY)


def database(path: Path) -> str:
    """Changed by the library that owns it."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return str(connection.execute("SELECT count(*) FROM sqlite_master").fetchone())
    except sqlite3.Error as error:
        raise Stopped(str(error)) from error


def others(pids: dict[str, int]) -> Iterator[Attempt]:
    for name, pid in pids.items():
        for part in ("mem", "environ", "maps"):
            yield f"{name}: /proc/PID/{part}", lambda pid=pid, part=part: _read(f"/proc/{pid}/{part}")
        for part in ("fd", "root", "cwd"):
            yield f"{name}: /proc/PID/{part}", lambda pid=pid, part=part: os.listdir(f"/proc/{pid}/{part}/")
        yield f"{name}: ptrace", lambda pid=pid: call("ptrace", 16, pid, 0, 0)
        yield f"{name}: process_vm_readv", lambda pid=pid: call("process_vm_readv", pid, *_vectors(), 0)
        yield f"{name}: process_vm_writev", lambda pid=pid: call("process_vm_writev", pid, *_vectors(), 0)
        yield f"{name}: pidfd_getfd", lambda pid=pid: call("pidfd_getfd", os.pidfd_open(pid), 3, 0)
        yield f"{name}: kcmp", lambda pid=pid: call("kcmp", os.getpid(), pid, 0, 0, 0)
        yield f"{name}: kill", lambda pid=pid: os.kill(pid, 9)
        yield f"{name}: prlimit", lambda pid=pid: __import__("resource").prlimit(pid, 7, (3, 3))
        for kind in ("net", "mnt", "pid", "user"):
            yield f"{name}: setns {kind}", lambda pid=pid, kind=kind: call("setns", os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), 0)


def _read(path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return len(file.read(1))


def _vectors() -> tuple[bytes, int, bytes, int]:
    buffer = ctypes.create_string_buffer(64)
    return struct.pack("PN", ctypes.addressof(buffer), 64), 1, struct.pack("PN", 0x400000, 64), 1


def kernel() -> Iterator[Attempt]:
    yield "exec", lambda: os.execv("/bin/sh", ["sh", "-c", "true"])
    yield "exec of a file of its own", lambda: os.execve(os.memfd_create("hostile"), ["x"], {})
    yield "unshare", lambda: call("unshare", 0x10000000)
    yield "mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)
    yield "chroot", lambda: call("chroot", b"/")
    yield "bpf", lambda: call("bpf", 5, ctypes.create_string_buffer(120), 120)
    yield "io_uring", lambda: call("io_uring_setup", 4, ctypes.create_string_buffer(120))
    yield "keyctl", lambda: call("keyctl", 0, -3, 1)
    yield "userfaultfd", lambda: call("userfaultfd", 1)
    yield "perf", lambda: call("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)
    yield "module", lambda: call("finit_module", 0, b"", 0)
    yield "setns by a process", lambda: call("setns", os.pidfd_open(1), 0x40000000)
    yield "become root", lambda: os.setuid(0)
    yield "become another", lambda: os.setuid(os.getuid() - 1)
    yield "take groups", lambda: os.setgroups([0])
    yield "packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    yield "raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    yield "device", lambda: os.mknod("/tmp/hostile", 0o020666, os.makedev(1, 1))


def descriptors() -> Iterator[Attempt]:
    """Files without a name among what it holds: the environment of whoever started the product is one, and is the broker's alone."""

    def environment() -> str:
        for number in range(1_024):
            with contextlib.suppress(OSError):
                if b"HOSTILE_MODEL_KEY=" in os.pread(number, 1 << 20, 0):
                    return f"descriptor {number}"
        raise Stopped("none holds it")

    yield "environment inherited", environment


def use_lease(layout: Layout, run: str, host: str = "open.internal") -> list[str]:
    """The fields of the credentials that came; Stopped when none did."""
    answer = ask(layout.socket("broker"), BROKER, UseLease(run=run, action="a-hostile", host=host, verb="read"))
    uses = [use.field for use in answer.uses]  # type: ignore[attr-defined]
    if not uses:
        raise Stopped("no lease")
    return uses
