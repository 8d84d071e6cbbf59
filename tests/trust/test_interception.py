"""The interception authority: what its certificates are, who accepts them, and what they cost."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError
from bailiwick.trust import interception
from bailiwick.trust.interception import SPARES, InterceptionAuthority

VERIFY_X509_STRICT = 0x20  # ssl.VERIFY_X509_STRICT, which create_default_context sets from Python 3.13 on


class SetClock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def authority(clock: SetClock) -> InterceptionAuthority:
    return InterceptionAuthority.create(clock)


def strict_client(authority: InterceptionAuthority) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate_pem)
    context.verify_flags |= VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str, *, alpn: list[str] | None = None) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS handshake in memory, no socket."""
    if alpn:
        client.set_alpn_protocols(alpn)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [theirs, ours]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return ours, theirs
    raise AssertionError("handshake does not end")


def certificate_of(context: ssl.SSLContext, name: str, authority: InterceptionAuthority) -> x509.Certificate:
    _, theirs = handshake(context, strict_client(authority), name)
    raw = theirs.getpeercert(binary_form=True)
    assert raw is not None
    return x509.load_der_x509_certificate(raw)


LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


@pytest.mark.parametrize("name", ["config.internal", "xn--bcher-kva.example", "a_b.example", "10.20.0.7", "::1", "2001:db8::7", "localhost", LONGEST])
def test_a_strict_client_accepts_the_leaf(authority: InterceptionAuthority, name: str) -> None:
    """A client that verifies as Python 3.13 does accepts the certificate for exactly the name asked."""
    ours, theirs = handshake(authority.context_for(name), strict_client(authority), name)
    assert theirs.version() == "TLSv1.3"
    assert ours.version() == "TLSv1.3"


def test_a_leaf_is_for_no_other_name(authority: InterceptionAuthority) -> None:
    """A certificate made for one host is refused by a client that asked for another."""
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(authority.context_for("config.internal"), strict_client(authority), "evil.internal")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(authority.context_for("10.0.0.1"), strict_client(authority), "10.0.0.2")


def test_another_boot_s_authority_is_not_trusted(authority: InterceptionAuthority, clock: SetClock) -> None:
    """A sandbox of one boot does not trust the authority of another."""
    other = InterceptionAuthority.create(clock)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other.context_for("config.internal"), strict_client(authority), "config.internal")


def test_names_compare_as_dns_does(authority: InterceptionAuthority) -> None:
    """Case and a trailing dot make no other name, so no other certificate."""
    context = authority.context_for("Config.Internal.")
    assert authority.context_for("config.internal") is context
    assert authority.context_for("10.0.0.1") is not authority.context_for("10.0.0.2")


NO_NAMES = ["", ".", "..", "a..b", "*.example.org", "-a.example", "a-.example", "b\u00fccher.example", "a b", "a/b", "a\0b", "a:443", "a\n", "x" * 64]


@pytest.mark.parametrize("name", [*NO_NAMES, "[::1]", "fe80::1%eth0", LONGEST + ".e"])
def test_what_is_no_name_gets_no_certificate(authority: InterceptionAuthority, name: str) -> None:
    """No wildcard, no garbage, no port: the error shows what was asked and what is taken."""
    with pytest.raises(CallerError, match="must be a DNS name"):
        authority.context_for(name)


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_certificate_or_a_caller_error(name: str) -> None:
    """Whatever an agent puts into SNI, the worker gets a context or a CallerError."""
    with suppress(CallerError):
        assert isinstance(SHARED.context_for(name), ssl.SSLContext)


SHARED = InterceptionAuthority.create(SetClock())


def test_extensions_are_those_strict_clients_ask_for(authority: InterceptionAuthority) -> None:
    """RFC 5280 as Go, Java, Node and Python 3.13 read it."""
    ca = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    leaf = certificate_of(authority.context_for("config.internal"), "config.internal", authority)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).critical
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    ski = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == ski
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["config.internal"]
    assert ca.not_valid_before_utc <= leaf.not_valid_before_utc < leaf.not_valid_after_utc <= ca.not_valid_after_utc
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < timedelta(days=8)


def test_a_leaf_is_made_anew_before_it_expires(authority: InterceptionAuthority, clock: SetClock) -> None:
    """An installation that stays up for months never serves an expired leaf; past the CA's end it says what to do."""
    first = authority.context_for("config.internal")
    clock.time += timedelta(days=5, hours=23)
    assert authority.context_for("config.internal") is first
    clock.time += timedelta(hours=2)
    assert authority.context_for("config.internal") is not first
    clock.time += timedelta(days=400)
    with pytest.raises(BackendError, match="restart bailiwick"):
        authority.context_for("config.internal")


def test_contexts_are_bounded_and_the_least_used_goes(clock: SetClock) -> None:
    """A run that asks for ten thousand names costs a bounded number of contexts."""
    made = InterceptionAuthority.create(clock)
    bounded = InterceptionAuthority.from_unsafe_private_bytes(made.to_unsafe_private_bytes(), clock)
    bounded._contexts_max = 3
    kept = bounded.context_for("kept.example")
    for number in range(6):
        bounded.context_for(f"n{number}.example")
        assert bounded.context_for("kept.example") is kept
    assert len(bounded._contexts) == 3


def test_a_context_made_in_advance_serves_the_name_it_is_used_for(authority: InterceptionAuthority) -> None:
    """The certificate is that of the name, for a strict client, and nothing of the placeholder is left; so is the next one's."""
    while authority.make_spare():
        pass
    assert len(authority._spares) == SPARES
    for name in ("one.example", "10.0.0.9", LONGEST):
        context = authority.context_for(name)
        _, theirs = handshake(context, strict_client(authority), name, alpn=["h2", "http/1.1"])
        assert theirs.selected_alpn_protocol() == "http/1.1"
    assert len(authority._spares) == SPARES - 3
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(authority.context_for("one.example"), strict_client(authority), "spare.invalid")


def test_where_certificates_cannot_be_swapped_names_are_served_all_the_same(authority: InterceptionAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Python or OpenSSL is noticed by a handshake, and costs time only."""
    monkeypatch.setattr(interception, "_swap_certificate", lambda context, leaf: None)
    assert not authority.make_spare()
    assert authority._spares == []
    handshake(authority.context_for("one.example"), strict_client(authority), "one.example")


def test_a_swapped_certificate_of_another_key_does_not_serve(authority: InterceptionAuthority, clock: SetClock) -> None:
    """A key that does not fit is dropped by OpenSSL, never used with the wrong certificate."""
    context = authority._whole_context(authority._placeholder())
    interception._swap_certificate(context, InterceptionAuthority.create(clock)._placeholder())
    with pytest.raises(ssl.SSLError):
        handshake(context, strict_client(authority), "spare.invalid")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": use}) for use in (False, True)], ids=["asyncio", "uvloop"])
async def test_in_a_loop_contexts_are_made_while_nothing_waits(authority: InterceptionAuthority) -> None:
    """After the first name there are spares, and they are made up for."""
    authority.context_for("one.example")
    with anyio.fail_after(10):
        while len(authority._spares) < SPARES:
            await anyio.sleep(0.002)
    authority.context_for("two.example")
    assert len(authority._spares) == SPARES - 1
    with anyio.fail_after(10):
        while len(authority._spares) < SPARES:
            await anyio.sleep(0.002)


def test_alpn_is_http_1_1_and_nothing_below_tls_1_2(authority: InterceptionAuthority) -> None:
    """A client that prefers HTTP/2 is answered in HTTP/1.1; TLS 1.1 is not spoken."""
    context = authority.context_for("config.internal")
    _, theirs = handshake(context, strict_client(authority), "config.internal", alpn=["h2", "http/1.1"])
    assert theirs.selected_alpn_protocol() == "http/1.1"
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = strict_client(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(context, old, "config.internal")[1].version() == "TLSv1.2"


def test_a_handed_over_authority_is_the_same_one(authority: InterceptionAuthority, clock: SetClock) -> None:
    """A restarted worker's certificates are trusted by sandboxes that were started before it."""
    again = InterceptionAuthority.from_unsafe_private_bytes(authority.to_unsafe_private_bytes(), clock)
    assert again.certificate_pem == authority.certificate_pem
    handshake(again.context_for("config.internal"), strict_client(authority), "config.internal")


def test_a_damaged_hand_over_is_refused_without_its_content(authority: InterceptionAuthority, clock: SetClock) -> None:
    """Neither a cut, a mixed nor an invented hand-over is taken, and the error shows none of it."""
    raw = authority.to_unsafe_private_bytes()
    other = InterceptionAuthority.create(clock).to_unsafe_private_bytes()
    mixed = raw[: raw.index(b'"certificate"')] + other[other.index(b'"certificate"') :]
    for damaged in (b"", b"{}", raw[:-20], mixed, raw.replace(b"BEGIN", b"BEGUN"), b"\xff" + raw):
        with pytest.raises(CallerError) as caught:
            InterceptionAuthority.from_unsafe_private_bytes(damaged, clock)
        assert "PRIVATE KEY" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_no_key_in_text_and_none_on_a_disk(authority: InterceptionAuthority) -> None:
    """The authority's text holds no key, and making a context opens nothing that has a name in a file system."""
    authority.context_for("config.internal")
    assert "KEY" not in repr(authority)
    assert not [link for fd in os.listdir("/proc/self/fd") if "bailiwick-leaf" in (link := _link(fd))]


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="drops its uid")
def test_contexts_are_made_after_the_uid_is_dropped_and_files_are_closed_off(authority: InterceptionAuthority) -> None:
    """With another uid, no dumping and Landlock that allows no path at all, a new name still gets its certificate."""
    from bailiwick.kernel import seccomp
    from bailiwick.kernel.accounts import Account, Role
    from bailiwick.kernel.confine import become, harden, restrict_files

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"failed before the end"
        try:
            become(Account("gateway-0", Role.GATEWAY, 761_999, 761_999))
            harden()
            seccomp.install(seccomp.OWN_PROCESS)
            closed_off = restrict_files()
            authority.context_for("after.example")
            while authority.make_spare():
                pass
            authority.context_for("swapped.example")
            answer = b"made" if closed_off else b"made, no landlock"
        except BaseException as error:
            answer = repr(error).encode()
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    assert answer.startswith(b"made"), answer


@contextmanager
def https_server(context: ssl.SSLContext) -> Iterator[int]:
    """Answers one request a connection on loopback, until told to stop."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            try:
                raw, _ = listener.accept()
            except TimeoutError:
                continue
            raw.settimeout(5)
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n")
            except OSError:
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopping.set()
        thread.join()
        listener.close()


@pytest.fixture
def bundle(authority: InterceptionAuthority, tmp_path: Path) -> Path:
    path = tmp_path / "bundle.pem"
    path.write_text(authority.certificate_pem)
    return path


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_curl_accepts(authority: InterceptionAuthority, bundle: Path, name: str) -> None:
    """curl, with nothing but CURL_CA_BUNDLE."""
    with https_server(authority.context_for(name)) as port:
        done = subprocess.run(
            ["curl", "-sS", "-m", "5", f"https://{name}:{port}/"], capture_output=True, env={"CURL_CA_BUNDLE": str(bundle), "PATH": os.environ["PATH"]}
        )
    assert done.stdout == b"hi\n", done.stderr


@pytest.mark.skipif(not shutil.which("node"), reason="no node")
def test_node_accepts(authority: InterceptionAuthority, bundle: Path) -> None:
    """Node's fetch, with nothing but NODE_EXTRA_CA_CERTS."""
    with https_server(authority.context_for("localhost")) as port:
        script = f"fetch('https://localhost:{port}/').then(r => r.text()).then(t => process.stdout.write(t))"
        environment = {"NODE_EXTRA_CA_CERTS": str(bundle), "PATH": os.environ["PATH"]}
        done = subprocess.run(["node", "-e", script], capture_output=True, env=environment, timeout=20)
    assert done.stdout == b"hi\n", done.stderr


@pytest.mark.skipif(not (shutil.which("java") and shutil.which("keytool")), reason="no java")
def test_java_accepts(authority: InterceptionAuthority, bundle: Path, tmp_path: Path) -> None:
    """Java's HttpClient, with a trust store that holds the authority alone."""
    store = tmp_path / "trust.p12"
    subprocess.run(
        [
            "keytool",
            "-importcert",
            "-noprompt",
            "-alias",
            "bailiwick",
            "-file",
            str(bundle),
            "-keystore",
            str(store),
            "-storetype",
            "PKCS12",
            "-storepass",
            "changeit",
        ],
        check=True,
        capture_output=True,
    )
    source = tmp_path / "Fetch.java"
    source.write_text(
        "import java.net.URI; import java.net.http.*;"
        "public class Fetch { public static void main(String[] a) throws Exception {"
        "System.out.print(HttpClient.newHttpClient().send(HttpRequest.newBuilder(URI.create(a[0])).build(), HttpResponse.BodyHandlers.ofString()).body()); } }"
    )
    with https_server(authority.context_for("localhost")) as port:
        command = ["java", f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit", str(source), f"https://localhost:{port}/"]
        done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.stdout == b"hi\n", done.stderr


def test_errors_are_ours(authority: InterceptionAuthority) -> None:
    """Everything raised for a bad name is a BailiwickError, so that a worker's error path is one."""
    with pytest.raises(BailiwickError):
        authority.context_for("\ud800")
