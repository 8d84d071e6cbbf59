"""Around what is decided, by HTTP and TLS: another host than the one connected to, a second request in the first one's shadow.

`open.internal` may be read under /public/ and nowhere else; its answers elsewhere are canaries. `denied.internal` exists and may not be reached at all.
"""

import urllib.error
import urllib.request

from attempts import CANARY, FACTS, PATIENCE, Verdict, address_of, attempt, dial, get, hear, hear_answer, judged, say, say_tls, tls_over

OPEN, DENIED = "open.internal", "denied.internal"


def raw(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def exchange(data: bytes, host: str = OPEN, port: int = 80) -> bytes:
    """Everything that comes back on one connection, also what answers a second request."""
    with dial(address_of(host), port) as sock:
        sock.sendall(data)
        first = hear_answer(sock)
        sock.settimeout(min(PATIENCE, 0.3))
        return first + hear(sock)


def sent(name: str, data: bytes, *trace: str) -> None:
    @attempt(name, *trace)
    def _() -> Verdict:
        return judged(exchange(data))


def broken(name: str, code: str, *lines: str) -> None:
    """A message that breaks the protocol; the record says how."""
    sent(name, raw(*lines), "attempt.refused", f'"{code}"')


# -- another host than the one connected to

broken("host-of-a-denied-host", "host-mismatch", "GET /public/a HTTP/1.1", f"Host: {DENIED}", "", "")
broken("host-absolute-of-a-denied-host", "host-mismatch", f"GET http://{DENIED}/ HTTP/1.1", f"Host: {OPEN}", "", "")
broken("host-twice", "duplicate-host", "GET /public/a HTTP/1.1", f"Host: {OPEN}", f"Host: {DENIED}", "", "")
broken("host-with-user", "invalid-host", "GET /public/a HTTP/1.1", f"Host: {OPEN}@{DENIED}", "", "")
broken("host-another-port", "host-mismatch", "GET /public/a HTTP/1.1", f"Host: {OPEN}:8080", "", "")
broken("host-missing", "missing-host", "GET /public/a HTTP/1.1", "", "")
broken("host-two-in-one", "invalid-host", "GET /public/a HTTP/1.1", f"Host: {OPEN}, {DENIED}", "", "")


@attempt("host-of-an-allowed-host-at-a-denied-one", "attempt.refused", '"host-mismatch"', f"{DENIED}:80")
def _() -> Verdict:
    return judged(exchange(get(OPEN, "/public/a"), DENIED))


@attempt("denied-host", "action.decided", '"deny"', f"http://{DENIED}/plain")
def _() -> Verdict:
    return judged(exchange(get(DENIED, "/plain"), DENIED))


@attempt("denied-host-with-a-dot-at-its-end", "action.decided", '"deny"', f"http://{DENIED}/dot")
def _() -> Verdict:
    return judged(exchange(get(f"{DENIED}.", "/dot"), f"{DENIED}."))


@attempt("denied-host-in-capitals", "action.decided", '"deny"', f"http://{DENIED}/capitals")
def _() -> Verdict:
    return judged(exchange(get(DENIED.upper(), "/capitals"), DENIED.upper()))


@attempt("denied-host-over-tls", "action.decided", '"deny"', f"https://{DENIED}/tls")
def _() -> Verdict:
    return judged(say_tls(address_of(DENIED), 443, DENIED, get(DENIED, "/tls")))


def _sni() -> None:
    for name, dialled, named, trace in (
        ("sni-of-an-allowed-host-at-a-denied-one", DENIED, OPEN, "sni-mismatch"),
        ("sni-of-a-denied-host-at-an-allowed-one", OPEN, DENIED, "sni-mismatch"),
        ("sni-that-is-no-name", OPEN, "-open-.internal", "sni-invalid"),
    ):

        @attempt(name, "attempt.refused", trace, f"{dialled}:443")
        def _(dialled: str = dialled, named: str = named) -> Verdict:
            return judged(say_tls(address_of(dialled), 443, named, get(OPEN, "/public/sni")))


_sni()


@attempt("host-another-than-sni", "attempt.refused", '"host-mismatch"', f"{OPEN}:443")
def _() -> Verdict:
    return judged(say_tls(address_of(OPEN), 443, OPEN, get(DENIED, "/sni-differs")))


@attempt("sni-of-an-allowed-host-at-an-address", "action.decided", '"allow"', f"https://{OPEN}/public/fronted")
def _() -> Verdict:
    """Where an address stands for no name the client's word is the name: then it is that host's, really, and nobody at the address hears of it."""
    return judged(say_tls("203.0.113.60", 443, OPEN, get(OPEN, "/public/fronted")))


def through(authority: str, then: bytes, *, tls: str | None = None, fields: str = "") -> bytes:
    with dial(FACTS["proxy"], 3128) as sock:
        sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n".encode())
        answer = sock.recv(4096)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            return answer
        if tls is None:
            sock.sendall(then)
            return hear_answer(sock)
        with tls_over(sock, tls) as inner:
            inner.sendall(then)
            return hear_answer(inner)


@attempt("connect-allowed-then-sni-of-another", "attempt.refused", "sni-mismatch", f"names {DENIED}")
def _() -> Verdict:
    return judged(through(f"{OPEN}:443", get(DENIED), tls=DENIED))


@attempt("connect-allowed-then-host-of-another", "attempt.refused", '"host-mismatch"')
def _() -> Verdict:
    return judged(through(f"{OPEN}:443", get(DENIED, "/connect"), tls=OPEN))


@attempt("connect-denied", "action.decided", '"deny"', f"https://{DENIED}/connect")
def _() -> Verdict:
    return judged(through(f"{DENIED}:443", get(DENIED, "/connect"), tls=DENIED))


@attempt("connect-to-an-address", "action.decided", '"deny"', "https://203.0.113.61/connect")
def _() -> Verdict:
    return judged(through("203.0.113.61:443", get("203.0.113.61", "/connect"), tls="203.0.113.61"))


@attempt("connect-to-an-address-named-as-allowed", "attempt.refused", "sni-mismatch", "203.0.113.62")
def _() -> Verdict:
    return judged(through("203.0.113.62:443", get(OPEN, "/public/connect"), tls=OPEN))


@attempt("connect-port-22", "attempt.refused", f"{OPEN}:22")
def _() -> Verdict:
    answer = through(f"{OPEN}:22", b"SSH-2.0-hostile\r\n\r\n")
    return answer.startswith(b"SSH") or CANARY in answer, repr(answer[:60])


@attempt("connect-port-22-of-another", "action.decided", '"deny"', "http://another.example:22/ssh")
def _() -> Verdict:
    return judged(through("another.example:22", get("another.example:22", "/ssh")))


@attempt("connect-port-22-in-http", "attempt.refused", '"pinned-port"')
def _() -> Verdict:
    return judged(through(f"{OPEN}:22", get(f"{OPEN}:22", "/public/ssh")))


@attempt("connect-in-connect", "attempt.refused", '"connect-refused"')
def _() -> Verdict:
    return judged(through(f"{OPEN}:80", f"CONNECT {DENIED}:80 HTTP/1.1\r\nHost: {DENIED}:80\r\n\r\n".encode() + get(DENIED)))


@attempt("connect-not-at-the-proxy", "attempt.refused", '"connect-refused"', f"{OPEN}:80")
def _() -> Verdict:
    return judged(exchange(raw(f"CONNECT {DENIED}:443 HTTP/1.1", f"Host: {DENIED}:443", "", "") + get(DENIED)))


@attempt("connect-then-bytes-at-once", "action.decided", '"deny"', f"http://{DENIED}/at-once")
def _() -> Verdict:
    with dial(FACTS["proxy"], 3128) as sock:
        sock.sendall(f"CONNECT {DENIED}:80 HTTP/1.1\r\nHost: {DENIED}:80\r\n\r\n".encode() + get(DENIED, "/at-once"))
        return judged(hear_answer(sock) + hear(sock))


@attempt("proxy-absolute-denied", "action.decided", '"deny"', f"http://{DENIED}/absolute")
def _() -> Verdict:
    return judged(say(FACTS["proxy"], 3128, get(DENIED, f"http://{DENIED}/absolute")))


@attempt("proxy-absolute-with-host-of-another", "attempt.refused", '"host-mismatch"', "proxy.bailiwick.internal:3128")
def _() -> Verdict:
    return judged(say(FACTS["proxy"], 3128, get(OPEN, f"http://{DENIED}/absolute")))


@attempt("proxy-with-user-in-the-target", "attempt.refused", "invalid-")
def _() -> Verdict:
    return judged(say(FACTS["proxy"], 3128, get(OPEN, f"http://{OPEN}:80@{DENIED}/user")))


@attempt("proxy-of-a-file", "attempt.refused", "invalid-target")
def _() -> Verdict:
    answer = say(FACTS["proxy"], 3128, get("localhost", "file:///etc/passwd"))
    return b"root:" in answer, answer[:60].decode("latin-1")


# -- a second request in the first one's shadow

_SECRET = f"GET /private HTTP/1.1\r\nHost: {OPEN}\r\n\r\n"
_POST = ("POST /public/a HTTP/1.1", f"Host: {OPEN}")
_SIZE = f"Content-Length: {len(_SECRET) + 5}"

broken("smuggle-cl-te", "length-and-coding", *_POST, _SIZE, "Transfer-Encoding: chunked", "", "0", "", _SECRET)
broken("smuggle-te-cl", "length-and-coding", *_POST, "Transfer-Encoding: chunked", "Content-Length: 4", "", "2e", _SECRET, "0", "", "")
broken("smuggle-te-te", "duplicate-transfer-encoding", *_POST, "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "", "0", "", _SECRET)
broken("smuggle-length-twice", "duplicate-content-length", *_POST, "Content-Length: 0", _SIZE, "", _SECRET)
broken("smuggle-length-twice-equal", "duplicate-content-length", *_POST, "Content-Length: 5", "Content-Length: 5", "", "hello" + _SECRET)


def _smuggled() -> None:
    for name, code, field in (
        ("smuggle-te-x", "unknown-transfer-encoding", "Transfer-Encoding: xchunked"),
        ("smuggle-te-list", "unknown-transfer-encoding", "Transfer-Encoding: chunked, identity"),
        ("smuggle-te-quoted", "unknown-transfer-encoding", 'Transfer-Encoding: "chunked"'),
        ("smuggle-te-space-before-colon", "space-before-colon", "Transfer-Encoding : chunked"),
        ("smuggle-te-vertical-tab", "control-character", "Transfer-Encoding:\x0bchunked"),
        ("smuggle-te-folded", "obs-fold", "Transfer-Encoding:\r\n chunked"),
        ("smuggle-te-bare-return", "bare-cr", "X: y\rTransfer-Encoding: chunked"),
        ("smuggle-length-plus", "invalid-content-length", "Content-Length: +5"),
        ("smuggle-length-list", "invalid-content-length", "Content-Length: 5, 5"),
        ("smuggle-length-hexadecimal", "invalid-content-length", "Content-Length: 0x5"),
        ("smuggle-length-negative", "invalid-content-length", "Content-Length: -1"),
        ("smuggle-length-space", "invalid-content-length", "Content-Length: 5 5"),
    ):
        data = raw(*_POST, field, "", "0", "", _SECRET)
        sent(name, data, "attempt.refused", f'"{code}"')


_smuggled()

broken("smuggle-bare-linefeeds", "bare-lf", f"GET /public/a HTTP/1.1\nHost: {OPEN}\n\n{_SECRET}")
broken("smuggle-field-with-nul", "nul", *_POST[:1], f"Host: {OPEN}", "X-A: a\0b", "", "")
broken("smuggle-field-folded", "obs-fold", "GET /public/a HTTP/1.1", f"Host: {OPEN}", "X-A: a", " folded: b", "", "")
broken("smuggle-http-0.9", "http-version", "GET /private", "")
broken("smuggle-http-2-preface", "http-version", "PRI * HTTP/2.0", "", "SM", "", "")
broken("smuggle-target-with-space", "invalid-target", "GET /public/a /private HTTP/1.1", f"Host: {OPEN}", "", "")
broken("smuggle-line-before", "empty-line", "", "", "GET /private HTTP/1.1", f"Host: {OPEN}", "", "")
broken("upgrade-to-websocket", "upgrade", "GET /public/a HTTP/1.1", f"Host: {OPEN}", "Upgrade: websocket", "Connection: Upgrade", "", "")


def _chunked() -> None:
    """The head is good and the action allowed or refused by its verb; what matters is that nothing behind it is taken for a request."""
    lines = ("POST /public/chunked HTTP/1.1", f"Host: {OPEN}", "Transfer-Encoding: chunked", "")
    for name, body in (
        ("smuggle-chunk-extension-linefeed", f"2;a\nxx\r\n0\r\n\r\n{_SECRET}"),
        ("smuggle-chunk-size-overflow", f"10000000000000002\r\nxx\r\n0\r\n\r\n{_SECRET}"),
        ("smuggle-chunk-size-sign", f"-2\r\nxx\r\n0\r\n\r\n{_SECRET}"),
        ("smuggle-chunk-without-end", f"2\r\nxxGET /private HTTP/1.1\r\nHost: {OPEN}\r\n\r\n"),
        ("smuggle-trailer-with-length", f"0\r\nContent-Length: 5\r\nHost: {DENIED}\r\n\r\n{_SECRET}"),
    ):
        sent(name, raw(*lines) + b"\r\n" + body.encode(), "action.decided", '"deny"', "/public/chunked")


_chunked()


@attempt("smuggle-in-a-body", "action.decided", '"deny"', f"http://{OPEN}/public/with-body")
def _() -> Verdict:
    """A read with a body: some servers leave the body on the connection, for the next request to begin with."""
    lines = ("GET /public/with-body HTTP/1.1", f"Host: {OPEN}", f"Content-Length: {len(_SECRET)}", "", _SECRET)
    return judged(exchange(raw(*lines)))


@attempt("pipelined-behind-an-allowed-one", "action.decided", '"deny"', f"http://{OPEN}/private/pipelined")
def _() -> Verdict:
    first = raw("GET /public/first HTTP/1.1", f"Host: {OPEN}", "", "")
    return judged(exchange(first + get(OPEN, "/private/pipelined")))


@attempt("connection-names-authorization", "attempt.refused", '"connection-option"', "authorization")
def _() -> Verdict:
    """Would have the injected credential dropped on the way, and the agent's own stand."""
    answer = exchange(get(OPEN, "/public/hop-authorization", "Connection: close, Authorization", "Authorization: Bearer stranger"))
    return answer.startswith(b"HTTP/1.1 200"), answer[-120:].decode("latin-1")


@attempt("connection-names-host", "attempt.refused", '"connection-option"', "host")
def _() -> Verdict:
    answer = exchange(get(OPEN, "/public/hop-host", "Connection: close, Host", f"X-Forwarded-Host: {DENIED}"))
    return answer.startswith(b"HTTP/1.1 200"), answer[-120:].decode("latin-1")


@attempt("redirect-to-metadata", "action.decided", '"deny"', "http://169.254.169.254/latest/redirected")
def _() -> Verdict:
    return _followed("/public/redirect?to=http://169.254.169.254/latest/redirected")


@attempt("redirect-to-a-denied-host", "action.decided", '"deny"', f"http://{DENIED}/redirected")
def _() -> Verdict:
    return _followed(f"/public/redirect?to=http://{DENIED}/redirected")


def _followed(path: str) -> Verdict:
    try:
        with urllib.request.urlopen(f"http://{OPEN}{path}", timeout=PATIENCE) as answer:
            return judged(answer.read())
    except urllib.error.HTTPError as refusal:
        return judged(refusal.read())
