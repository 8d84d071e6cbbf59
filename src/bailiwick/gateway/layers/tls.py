"""TLS without I/O: ciphertext in, plaintext and ciphertext out, over memory buffers. Both sides of the gateway use the same pump.

Towards the agent the certificate is chosen by the name that was authorised, never by the name the client sends: a client that asks for another name
gets an alert and `TlsFailure("sni-mismatch")`. Only where an address was dialled that stands for no name is the client's word taken as the name, and
then everything behind (decision, resolution, verification) is held to it.
"""

import ssl
from collections.abc import Callable

from bailiwick.gateway.names import InvalidName, normalise

ContextFor = Callable[[str], ssl.SSLContext]

SESSIONS_MAX = 256  # handshakes with one front context
_READ_BYTES = 16 * 1024  # one TLS record


class TlsFailure(Exception):
    """The handshake or a record failed. `code` is stable; `pump.outgoing()` may still hold an alert to send."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _ServerObject(ssl.SSLObject):
    """What the SNI callback must know of its connection."""

    authorised: str | None = None
    dialled: str | None = None
    problem: TlsFailure | None = None
    name: str | None = None


def front_context(context_for: ContextFor) -> ssl.SSLContext:
    """The context every connection of an agent starts with; the client's hello swaps in the leaf of the authorised name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    context.sslobject_class = _ServerObject

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, asked: str | None, _front: ssl.SSLContext) -> int | None:
        assert isinstance(connection, _ServerObject)
        try:
            name = _agreed(connection.authorised, connection.dialled, asked)
        except TlsFailure as failure:
            connection.problem = failure
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        try:
            connection.context = context_for(name)
        except Exception as error:  # noqa: BLE001 - a callback out of C has no caller to raise to; the pump reports it
            connection.problem = TlsFailure("certificate-unavailable", f"no certificate could be made for the name: {type(error).__name__}")
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.name = name
        return None

    context.sni_callback = choose
    return context


class Front:
    """The front context of one run, changed now and then.

    Without tickets OpenSSL keeps each TLS 1.2 session in the context it began with, 20,480 of them, and `ssl` has no switch for that. (Where such a session
    is resumed the name is chosen all the same: the callback is called, with the session's name. So it is memory that is bounded here, and no session of
    one run is known to another; that a name was chosen is asked of every handshake by the pump.)"""

    def __init__(self, context_for: ContextFor) -> None:
        self._context_for = context_for
        self._context = front_context(context_for)
        self._given = 0

    def context(self) -> ssl.SSLContext:
        """For one connection."""
        if self._given >= SESSIONS_MAX:
            self._context = front_context(self._context_for)  # 0.15 ms; the old one goes with its last connection
            self._given = 0
        self._given += 1
        return self._context


def _agreed(authorised: str | None, dialled: str | None, asked: str | None) -> str:
    if asked is not None and asked not in (authorised, dialled):
        try:
            asked = normalise(asked)
        except InvalidName:
            raise TlsFailure("sni-invalid", "the server name in the client's hello is not a host name") from None
    if authorised is None:
        if asked is None and dialled is None:
            raise TlsFailure("sni-missing", "the client named no server")
        return asked or dialled or ""
    if asked is not None and asked != authorised:
        raise TlsFailure("sni-mismatch", f"the client's hello names {asked}; the connection is authorised for {authorised}")
    return authorised


class TlsPump:
    """One connection. `feed` gives plaintext, `send` takes it; after either, `outgoing` holds what the transport must write."""

    __slots__ = ("_in", "_object", "_out", "_unsent", "closed", "ready")

    def __init__(self, object_of: "Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]") -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = object_of(self._in, self._out)
        self._unsent: list[bytes] = []
        self.ready = False  # the handshake is over
        self.closed = False  # the peer said that it will send no more

    @classmethod
    def server(cls, front: ssl.SSLContext, authorised: str | None, dialled: str | None = None) -> "TlsPump":
        """`authorised` is the only name taken. Without one the client's is taken as the name, and `dialled`, an address, where it gives none."""
        pump = cls(lambda incoming, outgoing: front.wrap_bio(incoming, outgoing, server_side=True))
        assert isinstance(pump._object, _ServerObject)
        pump._object.authorised, pump._object.dialled = authorised, dialled
        return pump

    @classmethod
    def client(cls, context: ssl.SSLContext, name: str) -> "TlsPump":
        """`name` is what the certificate must be for. Call `feed(b"")` to begin."""
        return cls(lambda incoming, outgoing: context.wrap_bio(incoming, outgoing, server_side=False, server_hostname=name))

    @property
    def name(self) -> str | None:
        """The name the server side's certificate is for, once the handshake chose it."""
        return getattr(self._object, "name", None)

    def feed(self, data: bytes) -> list[bytes]:
        if data:
            self._in.write(data)
        try:
            if not self.ready and not self._shake():
                return []
            return self._read()
        except ssl.SSLError as error:
            raise self._failure(error) from error
        except ValueError as error:  # names that OpenSSL cannot take (an embedded NUL, an empty label)
            raise TlsFailure("tls-handshake", "the handshake holds a name that cannot be one") from error

    def send(self, data: bytes) -> None:
        if not self.ready:
            self._unsent.append(data)
            return
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise self._failure(error) from error

    def outgoing(self) -> bytes:
        return self._out.read()

    def close(self) -> None:
        """Puts the closing alert into `outgoing`, where the connection is in a state to send one."""
        if self.ready:
            try:
                self._object.unwrap()
            except ssl.SSLError:
                return

    def _shake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if isinstance(self._object, _ServerObject) and self._object.name is None:
            raise TlsFailure("tls-handshake", "the handshake ended without a name")  # whatever way round the choice a library may find
        self.ready = True
        unsent, self._unsent = self._unsent, []
        for data in unsent:
            self._object.write(data)
        return True

    def _read(self) -> list[bytes]:
        pieces: list[bytes] = []
        source, incoming = self._object, self._in
        try:
            while incoming.pending or source.pending():
                piece = source.read(_READ_BYTES)
                if not piece:
                    self.closed = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.closed = True
        return pieces

    def _failure(self, error: ssl.SSLError) -> TlsFailure:
        problem = getattr(self._object, "problem", None)
        if problem is not None:
            return TlsFailure(problem.code, str(problem))
        if isinstance(error, ssl.SSLCertVerificationError):
            return TlsFailure("tls-verification", f"the certificate does not verify: {error.verify_message}")
        reason = (error.reason or type(error).__name__).lower().replace("_", " ")
        return TlsFailure("tls-handshake" if not self.ready else "tls-record", f"tls failed: {reason}")
