"""Real sandboxes, from root and from an ordinary user, with an agent inside that tries. Each refusal is asked for by name, so that a sandbox that
merely failed to run the attempt is not taken for one that held."""

import json
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from tests.fakes.sandboxes import MIB, Installation, installed

from bailiwick.kernel import accounts
from bailiwick.kernel.errors import BailiwickError, CallerError
from bailiwick.sandbox import namespaces
from bailiwick.sandbox.messages import DestroySandbox, StartAgent
from bailiwick.sandbox.spec import SandboxLimits

pytestmark = [pytest.mark.anyio, pytest.mark.sandbox]

TRIES = """
import ctypes, errno, json, os, socket
said = {}
def attempt(name, what):
    try:
        what(); said[name] = "went through"
    except OSError as error:
        said[name] = errno.errorcode.get(error.errno, str(error))
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*(ctypes.c_long(argument) for argument in arguments)) == -1:
        raise OSError(ctypes.get_errno(), "")
"""


async def tried(here: Installation, body: str, **given: object) -> dict[str, str]:
    output, errors, ended = await here.run(here.python(TRIES + body + "\nprint(json.dumps(said))", **given))
    assert ended.status == 0, errors
    return json.loads(output)


async def test_the_agent_is_nobody_with_nothing(here: Installation) -> None:
    """Uid 1000 inside, one process, no capability, no new privileges, under a filter, with three descriptors and none of our environment."""
    os.environ["BAILIWICK_TEST_SECRET"] = "planted"
    try:
        name, _ = await here.create(here.script("id; cat /proc/self/status; echo held:; ls /proc/1/fd; env; ls /proc | grep -c '^[0-9]'; echo $$"))
    finally:
        del os.environ["BAILIWICK_TEST_SECRET"]
    await here.call(StartAgent(run=name))
    output = await here.read(name, "stdout")
    assert "uid=1000(agent) gid=1000(agent) groups=1000(agent)" in output
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in output
    assert re.search(r"^held:\n0\n1\n2\n[^0-9]", output, re.MULTILINE)
    assert "planted" not in output
    assert "BAILIWICK_TEST_SECRET" not in output
    assert output.endswith("\n1\n")  # it is the first process of its namespace
    assert "HTTPS_PROXY=http://198.18.0.1:3128" in output
    assert "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" in output


async def test_uids_outside(here: Installation) -> None:
    """From root each run has a uid of its own that no other live run has; no agent is ever uid 0 outside."""
    first = await here.begin(here.script("sleep 60"))
    second = await here.begin(here.script("sleep 60"))
    uids = []
    for name in (first, second):
        pid = await _pid_of(here, name)
        uids.append(int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")).split()[1]))
    assert 0 not in uids
    assert (uids[0] != uids[1]) == (here.uid == 0)
    if here.uid != 0:
        assert uids == [here.uid] * 2


@pytest.mark.root
async def test_it_is_in_its_groups_however_it_got_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel knows no birth in a group (before 5.7) the cradle is moved there, and found in every one of them."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(namespaces, "fork_into", lambda _group: -1)
    async with installed(0) as here:
        _, created = await here.create(here.script("true"))
        (found,) = [finding for finding in created.findings if finding.check == "process.cgroup"]
        assert found.held
        assert re.fullmatch(r"in ([1-9]) of \1 groups of the run", found.detail)


async def test_the_agent_is_alone_when_it_begins(here: Installation) -> None:
    """The probe, which is a copy of the launcher, is gone from the agent's namespaces by then."""
    for _ in range(4):
        output, errors, _ = await here.run(here.python("import os; print([name for name in os.listdir('/proc') if name.isdigit()])"))
        assert output == "['1']\n", errors


@pytest.mark.root
async def test_no_two_live_runs_share_a_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs there were, a uid is given again only when its run is gone; when each is in use the next run is refused."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(accounts, "RUN_UIDS", 2)
    async with installed(0) as here:
        first, second = [(await here.create(here.script("true")))[0] for _ in range(2)]
        with pytest.raises(BailiwickError, match="every run uid is in use"):
            await here.create(here.script("true"))
        for gone in (first, second):
            await here.call(DestroySandbox(run=gone))
            await here.create(here.script("true"))


async def _pid_of(here: Installation, name: str) -> int:
    """The first process of the run's namespace, found by who hears on the run's pipes."""
    inode = os.fstat(here.adopted[name].descriptors["stdout"]).st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                inner = (entry / "status").read_text()
                if "NSpid" in inner and inner.split("NSpid:")[1].split("\n")[0].split()[1:] == ["1"] and os.stat(entry / "fd/1").st_ino == inode:
                    return int(entry.name)
    raise AssertionError("the agent was not found")


async def test_nothing_to_become_or_to_see(here: Installation) -> None:
    """Namespaces, mounts, tracing, keyrings, io_uring, raw and packet sockets are refused by name; the host's files and kernel tables are not there."""
    said = await tried(
        here,
        """
attempt("userns", lambda: call(272, 0x10000000)); attempt("mount", lambda: call(165, 0, 0, 0, 0, 0)); attempt("ptrace", lambda: call(101, 0, 0, 0, 0))
attempt("keyctl", lambda: call(250, 0, 0, 0)); attempt("io_uring", lambda: call(425, 1, 0)); attempt("clone", lambda: call(56, 0x10000011, 0, 0, 0, 0))
attempt("bpf", lambda: call(321, 0, 0, 0)); attempt("clone3", lambda: call(435, 0, 0))
attempt("raw", lambda: socket.socket(2, 3, 1)); attempt("packet", lambda: socket.socket(17, 3)); attempt("netlink", lambda: socket.socket(16, 3))
attempt("vsock", lambda: socket.socket(40, 1)); attempt("ping", lambda: socket.socket(2, 2, 1)); attempt("sctp", lambda: socket.socket(2, 1, 132))
for path in ("/etc/shadow", "/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/sys", "/run/docker.sock", "/var/lib", "/boot", "/home/user"):
    attempt(path, lambda: os.close(os.open(path, os.O_RDONLY)))
for path in ("/x", "/usr/x", "/etc/x", "/dev/x", "/root/x", "/run/x"):
    attempt("write " + path, lambda: open(path, "w"))
attempt("setting", lambda: open("/proc/sys/kernel/core_pattern", "w")); attempt("device", lambda: os.mknod("/tmp/d", 0o60600, os.makedev(8, 0)))
attempt("root", lambda: os.setuid(0)); attempt("chown", lambda: os.chown("/workspace", 0, 0));
said["root entries"] = str(sorted(os.listdir("/"))); said["home"] = str(os.listdir("/home")); said["/root"] = str(os.listdir("/root"))
""",
    )
    for name in ("userns", "mount", "ptrace", "keyctl", "io_uring", "clone", "bpf", "raw", "ping", "sctp"):
        assert said[name] == "EPERM", name
    assert said["clone3"] == "ENOSYS"
    for name in ("packet", "netlink", "vsock"):
        assert said[name] == "EAFNOSUPPORT"
    for path in ("/etc/shadow", "/sys", "/run/docker.sock", "/var/lib", "/boot", "/home/user"):
        assert said[path] == "ENOENT", path
    for path in ("/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list"):
        assert said[path] in ("EACCES", "ENOENT"), path
    for path in ("/x", "/usr/x", "/etc/x", "/dev/x", "/root/x", "/run/x"):
        assert said["write " + path] == "EROFS", path
    assert said["setting"] == "EACCES"
    assert said["device"] == "EPERM"
    assert said["root"] in ("EINVAL", "EPERM")
    assert said["chown"] in ("EINVAL", "EPERM")
    assert said["home"] == "['agent']"
    assert said["/root"] == "[]"
    known = {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "tmp", "usr", "var", "workspace"}
    assert set(json.loads(said["root entries"].replace("'", '"'))) <= known


async def test_every_address_is_ours(here: Installation) -> None:
    """Whatever the agent dials, IPv4 or IPv6, metadata and loopback too, arrives at our listener under the address it dialled."""
    name, _ = await here.create(
        here.python(
            """
import socket
for host in ("93.184.216.34", "169.254.169.254", "127.0.0.1", "10.0.0.1", "2606:2800:220:1::1", "::1", "fd00::1", "::ffff:8.8.8.8"):
    with socket.create_connection((host, 80), 5) as sock:
        sock.sendall(host.encode()); print(host, sock.recv(100).decode())
"""
        )
    )
    await here.call(StartAgent(run=name))
    listener = here.adopted[name].listener("tcp:80")
    listener.settimeout(10)
    for host in ("93.184.216.34", "169.254.169.254", "127.0.0.1", "10.0.0.1", "2606:2800:220:1::1", "::1", "fd00::1", "8.8.8.8"):
        connection, _ = listener.accept()
        dialled = connection.getsockname()
        assert dialled[:2] == (f"::ffff:{host}" if "." in host else host, 80)
        assert connection.recv(100).decode().endswith(host)
        connection.sendall(b"heard")
        connection.close()
    listener.close()
    assert (await here.read(name, "stdout")).count("heard") == 8
    assert (await here.exit_of(name)).status == 0


async def test_what_nobody_serves_is_refused_and_heard(here: Installation) -> None:
    """Other ports are refused at once and heard by the tap, once each; served ports and DNS are not; a datagram elsewhere is heard too."""
    name, _ = await here.create(
        here.python(
            """
import socket
for family, host in ((socket.AF_INET, "93.184.216.34"), (socket.AF_INET6, "2606::1")):
    for port in (22, 5432, 80, 7000):
        sock = socket.socket(family); sock.settimeout(5)
        try: sock.connect((host, port)); print("open", port)
        except ConnectionRefusedError: print("refused", port)
    for port in (53, 123):
        socket.socket(family, socket.SOCK_DGRAM).sendto(b"x" * 40, (host, port))
""",
            ports=[7000],
        )
    )
    assert set(here.adopted[name].descriptors) == {"tcp:80", "tcp:443", "tcp:3128", "tcp:7000", "udp:53", "tap", "stdout", "stderr"}
    await here.call(StartAgent(run=name))
    output = await here.read(name, "stdout")
    assert output.split("\n")[:-1] == ["refused 22", "refused 5432", "open 80", "open 7000"] * 2
    tap, heard = here.adopted[name].listener("tap"), []
    with suppress(BlockingIOError):
        while True:
            packet = tap.recv(256)
            four = packet[0] >> 4 == 4
            protocol, at = (packet[9], (packet[0] & 15) * 4) if four else (packet[6], 40)
            heard.append((4 if four else 6, protocol, int.from_bytes(packet[at + 2 : at + 4], "big")))
    tap.close()
    assert heard == [(4, 6, 22), (4, 6, 5432), (4, 17, 123), (6, 6, 22), (6, 6, 5432), (6, 17, 123)]


async def test_names_are_asked_here(here: Installation) -> None:
    """A question to any resolver arrives with the address it was sent to, so that the answer can leave from there."""
    name, _ = await here.create(
        here.python(
            """
import socket
for family, host in ((socket.AF_INET, "8.8.8.8"), (socket.AF_INET6, "2001:4860:4860::8888")):
    sock = socket.socket(family, socket.SOCK_DGRAM); sock.settimeout(5); sock.connect((host, 53)); sock.send(b"question"); print(sock.recv(100).decode())
"""
        )
    )
    await here.call(StartAgent(run=name))
    names = here.adopted[name].listener("udp:53")
    names.setblocking(True)
    names.settimeout(10)
    for expected in ("::ffff:8.8.8.8", "2001:4860:4860::8888"):
        question, said, _, peer = names.recvmsg(2_000, 512)
        asked = next(data for level, kind, data in said if (level, kind) == (socket.IPPROTO_IPV6, 50))
        assert question == b"question"
        assert socket.inet_ntop(socket.AF_INET6, asked[:16]) == expected
        four = asked[12:16]
        leaving = (socket.IPPROTO_IP, 8, b"\0" * 4 + four + four) if "." in expected else (socket.IPPROTO_IPV6, 50, asked[:16] + b"\0" * 4)
        names.sendmsg([b"answer"], [leaving], 0, peer)
    names.close()
    assert await here.read(name, "stdout") == "answer\nanswer\n"


async def test_no_binding_beside_us(here: Installation) -> None:
    """The wildcard of a port we serve cannot be bound, with or without SO_REUSEPORT; a specific address can, and hears only the agent itself."""
    said = await tried(
        here,
        """
def bind(family, host, port, reuse):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse: sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port)); sock.listen(); return sock
attempt("high", lambda: bind(socket.AF_INET, "0.0.0.0", 3128, False)); attempt("high6", lambda: bind(socket.AF_INET6, "::", 3128, False))
attempt("reuse", lambda: bind(socket.AF_INET, "0.0.0.0", 3128, True)); attempt("reuse6", lambda: bind(socket.AF_INET6, "::", 3128, True))
attempt("low", lambda: bind(socket.AF_INET, "127.0.0.9", 80, False))
own = []
attempt("own", lambda: own.append(bind(socket.AF_INET, "127.0.0.9", 4000, False)))
client = socket.create_connection(("127.0.0.9", 4000)); accepted, _ = own[0].accept(); said["talks to"] = accepted.getpeername()[0]
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("0.0.0.0", 53)))
""",
    )
    assert said["high"] == said["high6"] == said["reuse"] == said["reuse6"] == "EADDRINUSE"
    assert said["low"] == "EACCES"
    assert said["udp"] in ("EACCES", "EADDRINUSE")
    assert said["own"] == "went through"
    assert said["talks to"].startswith("127.")


async def test_abstract_sockets_are_the_sandboxs_own(here: Installation) -> None:
    """An abstract unix socket of the host, or of another run, is not there."""
    host = socket.socket(socket.AF_UNIX)
    host.bind(f"\0bailiwick-{os.getpid()}")
    host.listen()
    other = await here.begin(
        here.python("import socket, time\ns = socket.socket(socket.AF_UNIX); s.bind('\\0other'); s.listen(); print('up', flush=True); time.sleep(60)")
    )
    await here.read(other, "stdout", until="up")
    said = await tried(
        here, f"attempt('host', lambda: socket.socket(1).connect('\\0bailiwick-{os.getpid()}')); attempt('other', lambda: socket.socket(1).connect('\\0other'))"
    )
    host.close()
    assert said == {"host": "ECONNREFUSED", "other": "ECONNREFUSED"}


async def test_a_command_that_is_not_there(here: Installation) -> None:
    """It is the caller's error, before anything starts, and it says where was looked."""
    with pytest.raises(CallerError, match=r"'no-such-program' is not found in the sandbox on /usr/local/sbin"):
        await here.create(here.spec("no-such-program"))
    with pytest.raises(CallerError, match="'/etc/passwd' is not executable"):
        await here.create(here.spec("/etc/passwd"))


async def test_trees_appear_at_their_own_paths(here: Installation) -> None:
    """A tree below a directory that the run's uid may not enter is there, read-only; its neighbours are not."""
    closed = here.layout.root.parent / f"{here.layout.root.name}-trees"
    (closed / "deep/tree").mkdir(parents=True)
    (closed / "deep/tree/file").write_text("seen")
    (closed / "deep/secret").write_text("unseen")
    os.chown(closed, here.uid, here.uid)
    (closed / "deep/tree").chmod(0o755)
    closed.chmod(0o700)
    try:
        script = f"cat {closed}/deep/tree/file; ls {closed}/deep; echo x > {closed}/deep/tree/new || echo refused; echo x > {closed}/new || echo kept"
        output, errors, _ = await here.run(here.script(script, trees=[f"{closed}/deep/tree"]))
    finally:
        import shutil

        shutil.rmtree(closed)
    assert output.split() == ["seentree", "refused"] or output.startswith("seentree\nrefused"), errors
    assert "unseen" not in output
    assert "Read-only" in errors


async def test_limits_of_files_and_disk(here: Installation) -> None:
    """Open files and disk end where the limits say; the disk is one for workspace, /tmp, /home, /var/tmp and /dev/shm."""
    said = await tried(
        here,
        """
held = []
try:
    while True: held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    said["files"] = errno.errorcode[error.errno] + " " + str(held[-1])
for descriptor in held: os.close(descriptor)
written = 0
def fill(path):
    global written
    with open(path, "wb", buffering=0) as file:
        for _ in range(100): written += file.write(b"x" * (1 << 20))
for place in ("/workspace/a", "/tmp/b", "/home/agent/c", "/var/tmp/d", "/dev/shm/e"):
    attempt(place, lambda: fill(place))
said["written"] = written
""",
        limits=SandboxLimits(open_files=64, disk_bytes=16 * MIB),
    )
    assert said["files"] == "EMFILE 63"
    assert {said[place] for place in ("/workspace/a", "/tmp/b", "/home/agent/c", "/var/tmp/d", "/dev/shm/e")} == {"ENOSPC"}
    assert 15 * MIB <= int(said["written"]) <= 16 * MIB


async def test_a_fork_bomb_is_bounded(here: Installation) -> None:
    """New processes are refused at the limit, and the launcher goes on."""
    limits = SandboxLimits(pids=20)
    said = await tried(
        here,
        """
import time
children = []
try:
    while len(children) < 200:
        child = os.fork()
        if child == 0: time.sleep(60); os._exit(0)
        children.append(child)
except OSError as error:
    said["fork"] = errno.errorcode[error.errno]
said["children"] = len(children)
""",
        limits=limits,
    )
    assert said["fork"] == "EAGAIN"
    assert 10 <= int(said["children"]) <= 21
    await here.run(here.script("true"))


async def test_memory_is_bounded(here: Installation) -> None:
    """An agent that takes more than its memory is ended, and it is said that memory was the cause."""
    limits = SandboxLimits(memory_bytes=64 * MIB, disk_bytes=16 * MIB)
    body = "held = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))"
    _output, errors, ended = await here.run(here.python(body, limits=limits))
    if here.uid == 0:
        assert (ended.cause, ended.status) == ("memory", -9)
    else:
        assert ended.cause == "memory" or "MemoryError" in errors


async def test_files_are_not_taken_for_memory(here: Installation) -> None:
    """An agent that writes and removes files as fast as it can, within its disk, is not ended for its memory."""
    limits = SandboxLimits(memory_bytes=48 * MIB, disk_bytes=96 * MIB)
    body = (
        "import os, time\nend = time.monotonic() + 2\nblock = bytes(1 << 20)\nwhile time.monotonic() < end:\n"
        "    with open('/workspace/f', 'wb') as file:\n        [file.write(block) for _ in range(90)]\n    os.unlink('/workspace/f')\n"
    )
    _output, errors, ended = await here.run(here.python(body, limits=limits))
    assert (ended.cause, ended.status, errors) == ("exited", 0, "")


async def test_what_cannot_be_enforced_is_refused(here: Installation) -> None:
    """A limit the operator wrote down and this machine cannot keep is refused by name; where it can be kept the run starts."""
    spec = here.script("true", limits=SandboxLimits(cpu=0.5, memory_bytes=64 * MIB, required=frozenset({"cpu", "memory_bytes", "pids", "disk_bytes"})))
    if here.uid != 0:
        with pytest.raises(BailiwickError, match=r"limits.cpu: cannot be enforced here"):
            await here.create(spec)
        return
    name, created = await here.create(spec)
    assert not created.capabilities["cpu"].startswith("not enforced")
    await here.call(DestroySandbox(run=name))
