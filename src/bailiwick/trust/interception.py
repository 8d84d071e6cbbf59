"""The interception authority: a CA that lives in memory for one boot, is trusted inside our sandboxes and nowhere else, and makes a leaf per name.

The leaf key is one for all names (a key per name would cost a generation and protect nothing: whoever reads one key here reads all). There is no name
constraint on the CA: the names are those that runs ask for, and the boundary, not the certificate, says which may be reached.

`ssl` loads a key from a file only, so each context reads an anonymous one (memfd) by its `/proc/self/fd` name: that works without a disk, after the
uid is dropped, with dumping forbidden, and under Landlock, which lets a process open again what it holds of a kernel-internal mount.

What costs is OpenSSL decoding the key (0.35 ms with OpenSSL 3.0, of 0.65 ms for a new name; minting is 0.05). So contexts that hold the key already are
made while nothing waits, and a new name only changes the certificate of one: 0.2 ms.
"""

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bailiwick.kernel.clock import Clock
from bailiwick.kernel.errors import BackendError, CallerError

CONTEXTS_MAX: Final = 1_024  # about 60 KiB each, in OpenSSL's memory
_BACKDATED = timedelta(hours=1)  # for a sandbox image whose libraries disagree about the hour
_LEAF_VALID = timedelta(days=7)
_LEAF_RENEWED_BEFORE = timedelta(days=1)
_CA_VALID = timedelta(days=366)  # an installation may stay up for months; the certificate is trusted only by sandboxes it started
SPARES: Final = 8  # a page that loads from many hosts at once
_SPARE_SECONDS = 0.005  # between two, so that nothing waits for more than one
_COMMON_NAME_MAX = 64  # X.520 ub-common-name
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


class _Private(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    certificate: str

    def __repr__(self) -> str:
        return "_Private(...)"


@dataclass(frozen=True, slots=True)
class _Entry:
    context: ssl.SSLContext
    renew: datetime


class InterceptionAuthority:
    """Not for threads: one event loop uses it. A forked copy goes on independently."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock, *, contexts_max: int = CONTEXTS_MAX) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock
        self._contexts_max = contexts_max
        self._contexts: OrderedDict[str, _Entry] = OrderedDict()
        self._spares: list[ssl.SSLContext] = []
        self._refill: asyncio.TimerHandle | None = None
        self._can_swap: bool | None = None  # not tried yet
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_public_key = leaf_key.public_key()
        self._leaf_key_pem = leaf_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        self._leaf_extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(self._leaf_public_key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
        )

    def __repr__(self) -> str:
        return f"InterceptionAuthority(contexts={len(self._contexts)})"

    @classmethod
    def create(cls, clock: Clock) -> "InterceptionAuthority":
        key = ec.generate_private_key(ec.SECP256R1())
        # The serial in the name keeps a store that meets two boots' authorities from taking one's certificate for the other's.
        serial = x509.random_serial_number()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bailiwick"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Bailiwick interception authority {serial & 0xFFFFFFFF:08x}"),
            ]
        )
        now = clock.now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + _CA_VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate, clock)

    @property
    def certificate_pem(self) -> str:
        """What a sandbox trusts. Public."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def context_for(self, name: str) -> ssl.SSLContext:
        """A server context whose certificate is for this DNS name or IP literal. CallerError for what is neither; the name is compared as DNS does."""
        now = self._clock.now()
        if (context := self._kept(name, now)) is not None:
            return context
        subject = _subject(name)
        known = str(subject.value)
        if (context := self._kept(known, now)) is not None:
            return context
        expires = min(now + _LEAF_VALID, self._certificate.not_valid_after_utc)
        if now >= expires:
            raise BackendError(f"the interception authority expired at {expires:%Y-%m-%dT%H:%M:%SZ}; restart bailiwick to make another")
        context = self._new_context(self._mint(subject, now, expires))
        self._contexts[known] = _Entry(context, expires - _LEAF_RENEWED_BEFORE)
        while len(self._contexts) > self._contexts_max:
            self._contexts.popitem(last=False)
        return context

    def to_unsafe_private_bytes(self) -> bytes:
        """The CA with its private key, for an inherited memfd and nothing else: whoever has it can be any host to every sandbox of this boot."""
        key = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return msgspec.json.encode(_Private(key.decode("ascii"), self.certificate_pem))

    @classmethod
    def from_unsafe_private_bytes(cls, raw: bytes, clock: Clock) -> "InterceptionAuthority":
        """The same CA with a leaf key of its own. CallerError, without a word of the content, for anything `to_unsafe_private_bytes` did not write."""
        try:
            private = msgspec.json.decode(raw, type=_Private)
            key = serialization.load_pem_private_key(private.key.encode("ascii"), password=None)
            certificate = x509.load_pem_x509_certificate(private.certificate.encode("ascii"))
        except (msgspec.MsgspecError, ValueError, TypeError):
            raise CallerError("the handed over interception authority is not understood; restart bailiwick to make another") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CallerError("the handed over interception authority's key is not its certificate's; restart bailiwick to make another")
        return cls(key, certificate, clock)

    def _kept(self, name: str, now: datetime) -> ssl.SSLContext | None:
        entry = self._contexts.get(name)
        if entry is None or now >= entry.renew:
            return None
        self._contexts.move_to_end(name)
        return entry.context

    def _mint(self, subject: x509.GeneralName, now: datetime, expires: datetime) -> bytes:
        text = str(subject.value)
        common = [x509.NameAttribute(NameOID.COMMON_NAME, text)] if len(text) <= _COMMON_NAME_MAX else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bailiwick"), *common]))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACKDATED, self._certificate.not_valid_before_utc))
            .not_valid_after(expires)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        )
        for extension, critical in self._leaf_extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _new_context(self, leaf_pem: bytes) -> ssl.SSLContext:
        self._refill_later()
        if self._spares:
            context = self._spares.pop()
            _swap_certificate(context, leaf_pem)
            return context
        return self._whole_context(leaf_pem)

    def _whole_context(self, leaf_pem: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # No TLS 1.3 tickets: a resumption saves one P-256 signature (20 us) and costs two tickets in each full handshake. TLS 1.2 tickets stay on:
        # without them OpenSSL would keep every session in this context's memory instead.
        context.num_tickets = 0
        _load(context, leaf_pem + self._leaf_key_pem)
        return context

    def make_spare(self) -> bool:
        """Makes one context in advance; whether more are wanted. Called by a running loop's timer after the first new name, or by who has the time."""
        if self._can_swap is None:
            self._can_swap = self._try_swapping()
        if not self._can_swap or len(self._spares) >= SPARES:
            return False
        self._spares.append(self._whole_context(self._placeholder()))
        return len(self._spares) < SPARES

    def _refill_later(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # nobody's time to make them in
        if self._refill is None and self._can_swap is not False:
            self._refill = loop.call_later(_SPARE_SECONDS, self._refill_now)

    def _refill_now(self) -> None:
        self._refill = None
        if self.make_spare():
            self._refill_later()

    def _placeholder(self) -> bytes:
        now = self._clock.now()
        return self._mint(x509.DNSName("spare.invalid"), now, now + _LEAF_VALID)

    def _try_swapping(self) -> bool:
        """Whether this Python and this OpenSSL do what `_swap_certificate` needs: a handshake in memory must show the certificate swapped in."""
        context = self._whole_context(self._placeholder())
        expected = self._placeholder()
        _swap_certificate(context, expected)
        client = ssl.create_default_context(cadata=self.certificate_pem)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = client.wrap_bio(to_client, to_server, server_hostname="spare.invalid")
        ours = context.wrap_bio(to_server, to_client, server_side=True)
        try:
            for end in (theirs, ours, theirs):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
            return theirs.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(expected.decode("ascii"))
        except (ssl.SSLError, ValueError):
            return False


def _swap_certificate(context: ssl.SSLContext, leaf_pem: bytes) -> None:
    """Another certificate for the key that the context holds. `load_cert_chain` sets the certificate, then opens the key's file, of which there is none:
    OpenSSL keeps the key it has when it fits the new certificate (SSL_CTX_use_certificate(3)), and drops it otherwise, so that a handshake fails."""
    descriptor = os.memfd_create("bailiwick-leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, leaf_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", "/proc/self/fd/none")
    except FileNotFoundError:
        return
    except (OSError, ssl.SSLError) as error:
        raise _not_loaded(error) from error
    finally:
        os.close(descriptor)
    raise BackendError("a key was loaded from a file that does not exist")


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    descriptor = os.memfd_create("bailiwick-leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (OSError, ssl.SSLError) as error:
        raise _not_loaded(error) from error
    finally:
        os.close(descriptor)


def _not_loaded(error: Exception) -> BackendError:
    return BackendError(f"a leaf certificate cannot be loaded from memory: {error}; /proc must be mounted and memfd_create allowed")


def _subject(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        if "%" not in name:  # a zone means something on one machine only
            return x509.IPAddress(ipaddress.ip_address(name))
    canonical = name.lower().removesuffix(".")
    if not canonical.isascii() or not _DNS_NAME.fullmatch(canonical):
        raise CallerError(f"{name[:300]!r} is not a name a certificate can be for; must be a DNS name in ASCII (IDNA encoded) or an IP address")
    return x509.DNSName(canonical)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
