"""What a client finds in the sandbox without being told: whom to trust, whom to ask. Each client is the real one, where this machine has it."""

import shutil
import socket
import ssl
import threading
from pathlib import Path

import anyio
import pytest
from tests.fakes.sandboxes import MIB, Installation, authority, authority_with_leaf

from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox import surroundings
from bailiwick.sandbox.messages import DestroySandbox, StartAgent
from bailiwick.sandbox.spec import SandboxLimits

HOST = "config.internal"

_JAVA = """
import java.net.*; import java.net.http.*;
public class Get { public static void main(String[] a) throws Exception {
  var answer = HttpClient.newHttpClient().send(HttpRequest.newBuilder(URI.create("https://config.internal/")).build(), HttpResponse.BodyHandlers.ofString());
  System.out.print(answer.body()); } }
"""
_PYTHON = """
import urllib.request as web
print(web.build_opener(web.ProxyHandler({})).open("https://config.internal/").read().decode(), end="")
"""
CLIENTS = {
    "curl": ("curl", "curl -sS --noproxy '*' https://config.internal/"),
    "python": ("/usr/bin/python3", f"cat > get.py <<'END'\n{_PYTHON}\nEND\npython3 get.py"),
    "node": ("node", "node -e 'fetch(\"https://config.internal/\").then(r => r.text()).then(t => process.stdout.write(t))'"),
    "java": ("java", f"cat > Get.java <<'END'\n{_JAVA}\nEND\njava Get.java"),
}


def question_to_answer(question: bytes) -> bytes:
    """An A record 198.18.1.7 for whatever is asked in IPv4, nothing for the rest."""
    end = question.index(b"\0", 12) + 5
    asked_a = question[end - 4 : end - 2] == b"\0\1"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes((198, 18, 1, 7)) if asked_a else b""
    return question[:2] + b"\x81\x80\0\1" + (b"\0\1" if asked_a else b"\0\0") + b"\0\0\0\0" + question[12:end] + answer


def serve_names(names: socket.socket, stop: threading.Event) -> None:
    names.settimeout(0.1)
    while not stop.is_set():
        try:
            question, said, _, peer = names.recvmsg(2_000, 512)
        except TimeoutError:
            continue
        names.sendmsg([question_to_answer(question)], said, 0, peer)


def serve_tls(listener: socket.socket, context: ssl.SSLContext, stop: threading.Event) -> None:
    listener.settimeout(0.1)
    while not stop.is_set():
        try:
            raw, _ = listener.accept()
        except TimeoutError:
            continue
        raw.settimeout(5)
        try:
            with context.wrap_socket(raw, server_side=True) as sock:
                if sock.recv(4_096):
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ntrusted")
        except OSError:
            raw.close()


@pytest.mark.anyio
@pytest.mark.sandbox
@pytest.mark.parametrize("client", list(CLIENTS))
async def test_clients_trust_the_authority_and_nothing_else(here: Installation, client: str, tmp_path: Path) -> None:
    """A name is asked of us, the certificate of our authority is taken without a flag, and one of another authority is not."""
    program, script = CLIENTS[client]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if here.uid != 0:
        pytest.skip("the same files as from root")
    here.bundle, good = authority_with_leaf(HOST)
    _, bad = authority_with_leaf(HOST)
    for leaf, expected in ((good, True), (bad, False)):
        (tmp_path / "leaf.pem").write_text(leaf)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "leaf.pem")
        limits = SandboxLimits(memory_bytes=1024 * MIB, disk_bytes=64 * MIB, pids=200, cpu=2)
        name, _ = await here.create(here.script(script, limits=limits))
        listener, names, stop = here.adopted[name].listener("tcp:443"), here.adopted[name].listener("udp:53"), threading.Event()
        threads = [threading.Thread(target=serve_tls, args=(listener, context, stop)), threading.Thread(target=serve_names, args=(names, stop))]
        for thread in threads:
            thread.start()
        try:
            await here.call(StartAgent(run=name))
            output = await here.read(name, "stdout", seconds_max=60)
            errors = await here.read(name, "stderr")
        finally:
            stop.set()
            for thread in threads:
                await anyio.to_thread.run_sync(thread.join)
            listener.close()
            names.close()
        assert (output == "trusted") is expected, (output, errors)
        await here.call(DestroySandbox(run=name))


def test_a_bundle_without_a_certificate_is_refused(tmp_path: Path) -> None:
    """A sandbox that would trust nobody, or that is given something else, is not made."""
    for bundle in ("", "nothing", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"):
        with pytest.raises(CallerError, match="trust_bundle"):
            surroundings.prepare(tmp_path, bundle)
    assert list(tmp_path.iterdir()) == []


def test_made_once_and_readable_by_all(tmp_path: Path) -> None:
    """The same bundle gives the same directory; everything in it may be read by any uid, and nothing of the host's accounts is there."""
    bundle = authority()
    made = surroundings.prepare(tmp_path, bundle)
    assert surroundings.prepare(tmp_path, bundle) == made
    assert surroundings.prepare(tmp_path, authority()) != made
    for path in made.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o005
    assert not (made / "shadow").exists()
    assert [line.split(":")[0] for line in (made / "passwd").read_text().splitlines()] == ["root", "agent", "nobody"]
    assert (made / "ssl/certs/ca-certificates.crt").read_text() == bundle
