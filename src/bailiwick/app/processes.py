"""The group of processes: sockets and descriptors made once, each process given exactly its own, its account and its promises."""

import contextlib
import fcntl
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import anyio

import bailiwick.broker.server
import bailiwick.gateway.worker
import bailiwick.record.recorder
import bailiwick.sandbox.launcher
from bailiwick.api.application import create
from bailiwick.api.operators import Directory
from bailiwick.api.server import serving
from bailiwick.app.configuration import Configuration, installation, load_configuration
from bailiwick.app.detached import prepare
from bailiwick.broker.sources.port import CredentialSource
from bailiwick.governor.service import Governor
from bailiwick.kernel import confine, environment, seccomp
from bailiwick.kernel.accounts import Accounts
from bailiwick.kernel.clock import SystemClock
from bailiwick.kernel.errors import BackendError, CallerError
from bailiwick.kernel.layout import SOCKET_PATH_BYTES_MAX, Layout
from bailiwick.kernel.supervise import FINISHED, Group, Program
from bailiwick.trust.interception import InterceptionAuthority

_TCP = "api.tcp"


def up(
    path: Path | None, layout: Layout, *, workers: int | None = None, idle_exit_seconds: float | None = None, ready: Callable[[], None] = lambda: None
) -> int:
    """Runs the installation until it is told to stop; returns an exit status. `path` None is an empty configuration: only commands can be run.

    Called a first time it executes itself anew with the environment out of memory (docs/decisions/0004). Raises Invalid, or CallerError when another
    group serves this state directory.
    """
    if environment.DESCRIPTOR not in os.environ:
        packed = environment.pack(os.environb)
        os.execve(sys.executable, [sys.executable, "-m", "bailiwick.cli", *sys.argv[1:]], environment.harmless(os.environ, packed))  # noqa: S606
    environment_fd = int(os.environ.pop(environment.DESCRIPTOR))
    configuration = load_configuration(path) if path is not None else Configuration()
    accounts = Accounts.for_machine(uid=os.getuid(), gid=os.getgid(), workers=workers or configuration.workers or min(os.cpu_count() or 1, 4))
    with _only_group(layout):
        _make_directories(layout, accounts)
        listeners = {name: _listen(layout, name) for name in _socket_names(accounts)}
        if (address := configuration.api.address()) is not None:
            listeners[_TCP] = _listen_on_tcp(address)
        authority_fd, certificate = _make_authority()
        _load_what_is_loaded_late()
        confine.settle()
        confine.undumpable()  # the parent keeps the descriptors of the starter's environment and of the interception key
        programs = _programs(path, configuration, layout, accounts, listeners, (environment_fd, authority_fd), certificate, idle_exit_seconds)
        return Group(programs, layout.sockets / "processes.json", layout.logs, ready).run()


def _socket_names(accounts: Accounts) -> list[str]:
    workers = [account.name for account in accounts.workers()]
    return ["recorder", "signer", "broker", "launcher", "api", *workers, *(f"{worker}.adopt" for worker in workers)]


def _programs(
    path: Path | None,
    configuration: Configuration,
    layout: Layout,
    accounts: Accounts,
    listeners: dict[str, socket.socket],
    descriptors: tuple[int, int],
    certificate: str,
    idle_exit_seconds: float | None,
) -> list[Program]:
    clock = SystemClock()
    environment_fd, authority_fd = descriptors
    directory = path.parent.absolute() if path is not None else Path.cwd()
    starter = os.getuid()
    api = [name for name in ("api", _TCP) if name in listeners]
    installed = installation(configuration, directory, trust_bundle=certificate)

    def recorder(_: object) -> None:
        os.umask(0o027)  # the governor's group reads what is written here
        _confine_files(read=[], write=[layout.record])
        bailiwick.record.recorder.run(listener=listeners["recorder"], layout=layout, accounts=accounts, clock=clock)

    def broker(sources: object) -> None:
        seccomp.install(seccomp.OWN_PROCESS)
        bailiwick.broker.server.run(
            listener=listeners["broker"],
            signer_listener=listeners["signer"],
            layout=layout,
            accounts=accounts,
            clock=clock,
            sources=cast("Mapping[str, CredentialSource]", sources),  # what `prepare` returned
            origin=f"{configuration.trust_domain}/record",
        )

    def launcher(_: object) -> None:
        bailiwick.sandbox.launcher.run(listener=listeners["launcher"], layout=layout, accounts=accounts, clock=clock)

    def worker(name: str) -> Callable[[object], None]:
        def run(_: object) -> None:
            authority = InterceptionAuthority.from_unsafe_private_bytes(os.pread(authority_fd, 1 << 16, 0), clock)
            _confine_files(read=[Path(tree) for tree in ("/etc", "/usr", "/lib", "/lib64", "/proc", "/dev", sys.prefix, sys.base_prefix)], write=[])
            bailiwick.gateway.worker.run(
                name=name, listener=listeners[name], adopt_listener=listeners[f"{name}.adopt"], layout=layout, accounts=accounts, authority=authority
            )

        return run

    def governor(_: object) -> None:
        seccomp.install(seccomp.OWN_PROCESS)
        service = Governor(installed, layout, accounts, clock, configuration=str(path.absolute()) if path is not None else "(none)")
        operators = Directory(configuration.operators, starter_uid=starter, separate=accounts.separate)
        anyio.run(_govern, service, operators, [listeners[name] for name in api], idle_exit_seconds, clock)

    def program(name: str, main: Callable[[object], None], *sockets: str, keep: tuple[int, ...] = (), **more: Any) -> Program:
        return Program(name, accounts.named(name), main, descriptors=(*(listeners[each].fileno() for each in sockets), *keep), **more)

    return [
        program("recorder", recorder, "recorder"),
        program(
            "broker",
            broker,
            "broker",
            "signer",
            keep=(environment_fd,),
            prepare=lambda: bailiwick.broker.server.open_sources(configuration.credentials, environment_fd=environment_fd, directory=directory),
        ),
        program("launcher", launcher, "launcher"),
        *(program(each.name, worker(each.name), each.name, f"{each.name}.adopt", keep=(authority_fd,)) for each in accounts.workers()),
        program("governor", governor, *api, leading=True),
    ]


async def _govern(service: Governor, operators: Directory, listeners: list[socket.socket], idle_exit_seconds: float | None, clock: SystemClock) -> None:
    async def stop_on_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                service.stopping.set()

    async def stop_when_idle(seconds: float) -> None:
        while (left := seconds - (clock.monotonic() - service.idle_since)) > 0:  # noqa: ASYNC110  it waits for a time, not for a thing
            await anyio.sleep(left)
        service.stopping.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal)
        if idle_exit_seconds is not None:
            tasks.start_soon(stop_when_idle, idle_exit_seconds)
        async with serving(create(service, operators.authenticate), listeners):
            await service.serve()
        await service.close()
        tasks.cancel_scope.cancel()
    raise SystemExit(FINISHED)


def _load_what_is_loaded_late() -> None:
    """Modules that libraries import at first use: after its uid is dropped a process may not reach them any more."""
    for name in (
        "anyio._backends._asyncio",
        "anyio.to_thread",
        "asyncio.staggered",
        "concurrent.futures.thread",
        "cryptography.hazmat.backends.openssl.backend",
        "encodings.idna",
        "encodings.latin_1",
        "encodings.punycode",
        "sqlite3.dump",
        "stringprep",
        "unicodedata",
        "uvicorn.lifespan.off",
        "uvicorn.logging",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ):
        importlib.import_module(name)


def _confine_files(*, read: list[Path], write: list[Path]) -> None:
    confine.restrict_files(read=read, write=write)
    seccomp.install(seccomp.OWN_PROCESS)


@contextlib.contextmanager
def _only_group(layout: Layout) -> Iterator[None]:
    """Holds the state directory's lock: a second group would take the first one's sockets."""
    prepare(layout)
    try:
        lock = os.open(layout.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CallerError(f"{layout.root / 'lock'} cannot be opened: {error.strerror}; choose another directory with BAILIWICK_STATE") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CallerError(
            f"state directory {layout.root} is served by another group; stop it with `bailiwick down`, or choose one with BAILIWICK_STATE"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def _make_directories(layout: Layout, accounts: Accounts) -> None:
    """Each process's own directory is its own; the record's is read by the governor through its group."""
    longest = max(len(os.fsencode(layout.socket(name))) for name in _socket_names(accounts))
    if longest > SOCKET_PATH_BYTES_MAX:
        excess = longest - SOCKET_PATH_BYTES_MAX
        raise CallerError(f"state directory {layout.root} is {excess} bytes too long for unix sockets; choose a shorter one with BAILIWICK_STATE")
    governor = accounts.named("governor")
    owners = {
        layout.sockets: (accounts.named("launcher"), None, 0o755),
        layout.logs: (accounts.named("launcher"), None, 0o700),
        layout.sandboxes: (accounts.named("launcher"), None, 0o711),
        layout.record: (accounts.named("recorder"), governor, 0o2750),
        layout.broker: (accounts.named("broker"), None, 0o700),
        layout.governor: (governor, None, 0o700),
    }
    for path, (owner, group, mode) in owners.items():
        try:
            path.mkdir(exist_ok=True)
            if accounts.separate:
                os.chown(path, owner.uid, (group or owner).gid)
            path.chmod(mode)
        except OSError as error:
            raise CallerError(f"{path} cannot be made a directory of ours: {error.strerror}; choose another one with BAILIWICK_STATE") from error


def _listen(layout: Layout, name: str) -> socket.socket:
    path = Path(layout.socket(name))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o666)  # who may speak is decided by the peer's uid, on each connection
    listener.listen(1024)
    return listener


def _listen_on_tcp(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET, backlog=128)
    except OSError as error:
        raise CallerError(f"api.listen {address[0]}:{address[1]} cannot be listened on: {error.strerror}; choose another port") from error


def _make_authority() -> tuple[int, str]:
    """The interception authority of this boot, made in a child so that no process but the gateway workers ever has its key in memory."""
    key = os.memfd_create("interception")
    certificate = os.memfd_create("certificate")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            authority = InterceptionAuthority.create(SystemClock())
            os.write(key, authority.to_unsafe_private_bytes())
            os.write(certificate, authority.certificate_pem.encode())
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise BackendError("the interception authority could not be made; is the cryptography package whole?")
    return key, os.pread(certificate, 1 << 16, 0).decode()
