"""Out by wearing out: more processes, files, disk and connections than it was given, and a gateway that is kept busy. `memory` comes last and alone:
where the kernel bounds memory, whoever takes too much is ended with all it started.
"""

import contextlib
import errno
import os
import select
import socket
import sys
import time

from attempts import FACTS, PATIENCE, Verdict, address_of, attempt, get, judged, say

LIMITS = FACTS.get("limits", {})


def _still_served(path: str) -> bool:
    """An ordinary request is answered, whatever the rest of this sandbox does."""
    with contextlib.suppress(OSError):
        return b"welcome" in say(address_of("open.internal"), 80, get("open.internal", path))
    return False


@attempt("processes-without-end", may_die=True)
def _() -> Verdict:
    """A fork bomb, bounded here at four times the limit."""
    born: list[int] = []
    refused = ""
    for _ in range(4 * LIMITS["pids"]):
        try:
            child = os.fork()
        except OSError as error:
            refused = errno.errorcode.get(error.errno or 0, "?")
            break
        if child == 0:
            time.sleep(60)
            os._exit(0)
        born.append(child)
    for child in born:
        os.kill(child, 9)
    for child in born:
        os.waitpid(child, 0)
    return len(born) > LIMITS["pids"], f"{len(born)} processes, then {refused}"


@attempt("descriptors-without-end")
def _() -> Verdict:
    opened: list[int] = []
    with contextlib.suppress(OSError):
        while len(opened) < 4 * LIMITS["open_files"]:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in opened:
        os.close(descriptor)
    return len(opened) > LIMITS["open_files"], f"{len(opened)} descriptors"


@attempt("disk-without-end")
def _() -> Verdict:
    written = 0
    try:
        for place in ("/tmp", "/var/tmp", "/workspace", "/home/agent", "/dev/shm"):
            with contextlib.suppress(OSError), open(f"{place}/hostile-filler", "wb", buffering=0) as file:
                while written < 4 * LIMITS["disk"]:
                    written += file.write(b"x" * 1_048_576)
    finally:
        for place in ("/tmp", "/var/tmp", "/workspace", "/home/agent", "/dev/shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{place}/hostile-filler")
    return written > LIMITS["disk"], f"{written} bytes"


@attempt("files-without-end")
def _() -> Verdict:
    made = 0
    with contextlib.suppress(OSError):
        os.makedirs("/tmp/hostile-files", exist_ok=True)
        while made < 40_000:
            os.close(os.open(f"/tmp/hostile-files/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    for number in range(made):
        os.unlink(f"/tmp/hostile-files/{number}")
    return made >= 40_000, f"{made} files"


@attempt("output-without-end")
def _() -> Verdict:
    """More than the record takes of one run at once; the writer waits, the others do not."""
    for _ in range(20):
        sys.stderr.write("x" * 65_536 + "\n")
    sys.stderr.flush()
    return False, "written"


@attempt("connections-ten-thousand", "attempt.refused", '"connection"', may_die=True)
def _() -> Verdict:
    """Six processes hold all they can at the same time, which is more than a run may; then they go on until it was ten thousand."""
    address = address_of("open.internal")
    holding, going = os.pipe(), os.pipe()
    for _ in range(6):
        if os.fork() == 0:
            os.close(going[1])
            _hold_and_go_on(address, holding[1], going[0])
            os._exit(0)
    for _ in range(6):
        if select.select([holding[0]], [], [], 4 * PATIENCE)[0]:
            os.read(holding[0], 1)
    os.close(going[1])
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return not _still_served("/public/after-ten-thousand"), "10200 connections were made"


def _hold_and_go_on(address: str, holding: int, going: int) -> None:
    held: list[socket.socket] = []
    for number in range(1_700):
        if len(held) == 400:
            if number == 400:
                with contextlib.suppress(OSError):
                    held[-1].sendall(get("nobody", "/public/a"))
                    held[-1].recv(4096)  # answered, refused or cut: the gateway has seen it, and so all before it
                os.write(holding, b"x")
                os.read(going, 1)  # until everybody holds as many
            for one in held:
                one.close()
            held.clear()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            sock.connect((address, 80))
        held.append(sock)


@attempt("heads-that-never-end")
def _() -> Verdict:
    """Slowloris: every connection it may have, each with the beginning of a request."""
    address, held = address_of("open.internal"), []
    with contextlib.suppress(OSError):
        for number in range(min(500, LIMITS["open_files"] - 50)):
            sock = socket.create_connection((address, 80), PATIENCE)
            sock.sendall(f"GET /public/slow-{number} HTTP/1.1\r\nHost: open.internal\r\nX-A: ".encode())
            held.append(sock)
    served = _still_served("/public/beside-slow-ones")
    for sock in held:
        sock.close()
    return not served, f"{len(held)} connections wait; an ordinary request is {'answered' if served else 'not answered'}"


@attempt("head-without-end", "attempt.refused", "head-too-large")
def _() -> Verdict:
    with socket.create_connection((address_of("open.internal"), 80), PATIENCE) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /public/a HTTP/1.1\r\nHost: open.internal\r\n" + b"X-Long: " + b"x" * 4_000_000 + b"\r\n\r\n")
        return judged(sock.recv(4096))


@attempt("fields-without-end", "attempt.refused", "too-many-fields")
def _() -> Verdict:
    with socket.create_connection((address_of("open.internal"), 80), PATIENCE) as sock:
        sock.sendall(b"GET /public/a HTTP/1.1\r\nHost: open.internal\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(2_000)) + b"\r\n")
        return judged(sock.recv(4096))


@attempt("connections-reset")
def _() -> Verdict:
    """Each is cut the moment it is there."""
    address = address_of("open.internal")
    for _ in range(300):
        with socket.create_connection((address, 443), PATIENCE) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.sendall(b"\x16\x03\x01")
    return not _still_served("/public/after-resets"), "300 connections were cut"


@attempt("datagrams-without-end")
def _() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(5_000):
            with contextlib.suppress(OSError):
                sock.sendto(os.urandom(40), (FACTS["resolver"] if number % 2 else "203.0.113.240", 53 if number % 2 else 9))
    return not _still_served("/public/after-datagrams"), "5000 were sent"


@attempt("memory", may_die=True)
def _() -> Verdict:
    held, size = [], 0
    try:
        while size < 4 * LIMITS["memory"]:
            held.append(b"x" * 16_777_216)
            size += 16_777_216
    except MemoryError:
        return False, f"refused after {size} bytes"
    return True, f"{size} bytes"
