"""Upstreams that misbehave, one way for each path, and certificates that no client should take."""

import datetime
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bailiwick.cli.demo.web import Cut, Request, Response, Server

PRIVATE = "http://10.0.0.1/latest"
PIECE = b"x" * 65_536
_EVENT = b'data: {"piece": 1}\n\n'
_STREAM = {"content-type": "text/event-stream"}


class Misbehaving:
    """A handler. `sent` counts the bytes that an endless answer has given to the kernel; `asked` what arrived."""

    def __init__(self) -> None:
        self.sent = 0
        self.asked: list[Request] = []
        self.over = threading.Event()

    def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        match request.path:
            case "/hang":
                self.over.wait(100)
                raise Cut
            case "/reset":
                raise Cut(reset=True)
            case "/garbage":
                raise Cut(last=b"\x00\xff this is not HTTP\r\n\r\n")
            case "/two-lengths":
                raise Cut(last=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok")
            case "/half-chunk":
                return Response(200, self._then(b"a whole piece", Cut(last=b"40\r\nhalf a piece")))
            case "/half-length":
                raise Cut(last=b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes.")
            case "/half-stream":
                return Response(200, self._then(_EVENT, Cut(last=b"14\r\ndata: {")), _STREAM)
            case "/redirect":
                return Response(302, fields={"location": PRIVATE})
            case "/endless":
                return Response(200, self._endless())
            case _:
                return Response.json(200, {"well": "behaved"})

    @staticmethod
    def _then(piece: bytes, cut: Cut) -> Iterator[bytes]:
        yield piece
        raise cut

    def _endless(self) -> Iterator[bytes]:
        while not self.over.is_set():
            yield PIECE
            self.sent += len(PIECE)


class Silent:
    """Accepts connections and says nothing, not even a handshake."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def nobody() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def expired(name: str) -> tuple[ssl.SSLContext, str]:
    """For a server whose certificate, its own authority, was good until yesterday; and its PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(yesterday - datetime.timedelta(days=30))
        .not_valid_after(yesterday)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) + pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context, pem.decode()


def well_behaved(context: ssl.SSLContext) -> Server:
    return Server(lambda _: Response.json(200, {"well": "behaved"}), tls=context)
