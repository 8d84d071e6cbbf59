"""What every sandbox finds in /etc, instead of the host's: who is who, where names are asked for, and the one authority to trust.

Made once for each trust bundle, in a directory that every run gets read-only. From the host come only files that hold no fact about it.
"""

import base64
import hashlib
import os
import shutil
import struct
from pathlib import Path

from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox.network import MODELS_ADDRESS, PROXY_ADDRESS

AGENT_UID = AGENT_GID = 1000  # inside; outside it is the run's
HOME = "/home/agent"
WORKSPACE = "/workspace"
HOSTNAME = "agent"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
JAVA_STORE = "/etc/ssl/certs/java/cacerts"

_TEXTS = {
    "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{AGENT_UID}:{AGENT_GID}:agent:{HOME}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nagent:x:{AGENT_GID}:\nnogroup:x:65534:\n",
    "hostname": f"{HOSTNAME}\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n{PROXY_ADDRESS} proxy.bailiwick.internal\n{MODELS_ADDRESS} models.bailiwick.internal\n",
    "resolv.conf": f"nameserver {PROXY_ADDRESS}\noptions timeout:2 attempts:2\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "gitconfig": "[safe]\n\tdirectory = *\n",  # one user, one workspace
}

# Copied from the host where it has them: where libraries and alternatives are, names of ports, how OpenSSL and Java are set up.
_FROM_HOST = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "services",
    "protocols",
    "mime.types",
    "ssl/openssl.cnf",
    "python3",
    "debian_version",
)
_FROM_HOST_PATTERNS = ("java-*-openjdk", "python3.*", "os-release")
_COPIED_BYTES_MAX = 8 * 1024 * 1024

# Every client's own way of being told whom to trust. Java has none in the environment: its stores are replaced.
_TRUSTING = (
    "SSL_CERT_FILE REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS CURL_CA_BUNDLE GIT_SSL_CAINFO AWS_CA_BUNDLE PIP_CERT CARGO_HTTP_CAINFO DENO_CERT "
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
)
TRUST_ENVIRONMENT = dict.fromkeys(_TRUSTING.split(), BUNDLE)

PROXY_ENVIRONMENT = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), f"http://{PROXY_ADDRESS}:3128"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), f"{MODELS_ADDRESS},models.bailiwick.internal,localhost,127.0.0.1,::1"),
}


def environment(given: dict[str, str]) -> dict[str, str]:
    """The whole environment of the agent: what a sandbox needs, under what the specification gives."""
    ours = {"PATH": DEFAULT_PATH, "HOME": HOME, "USER": "agent", "LOGNAME": "agent", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108  (the sandbox's)
    return {**ours, **PROXY_ENVIRONMENT, **TRUST_ENVIRONMENT, **given}


def prepare(directory: Path, bundle: str) -> Path:
    """The /etc for this trust bundle, made below `directory` unless it is there already. CallerError for a bundle that holds no certificate."""
    certificates = _certificates(bundle)
    made = directory / f"etc-{hashlib.sha256(bundle.encode()).hexdigest()[:24]}"
    if made.is_dir():
        return made
    making = directory / f"{made.name}.{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o755)
    for name, content in _TEXTS.items():
        _write(making / name, content.encode())
    _copy_from_host(making)
    for place in ("ssl/certs/ca-certificates.crt", "ssl/cert.pem", "pki/tls/certs/ca-bundle.crt"):
        _write(making / place, bundle.encode())
    _write(making / "ssl/certs/java/cacerts", java_store(certificates))
    (making / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
    (making / "mtab").symlink_to("/proc/self/mounts")
    _open_to_all(making)
    making.rename(made)
    return made


def java_stores() -> list[str]:
    """Trust stores that lie in the JDKs of this machine's /usr rather than in /etc: each is covered by ours."""
    found = Path("/usr/lib/jvm").glob("*/lib/security/cacerts")
    return sorted(str(store) for store in found if store.is_file() and not store.is_symlink() and not store.parent.is_symlink())


def java_store(certificates: list[bytes]) -> bytes:
    """A JKS trust store (password `changeit`, or none: then its digest is not looked at), which every Java since 1.2 reads whatever its default type."""
    body = struct.pack(">III", 0xFEEDFEED, 2, len(certificates))
    for number, certificate in enumerate(certificates):
        body += struct.pack(">I", 2) + _java_text(f"bailiwick-{number}") + struct.pack(">Q", 0) + _java_text("X.509")
        body += struct.pack(">I", len(certificate)) + certificate
    password = b"".join(b"\0" + letter.encode() for letter in "changeit")  # UTF-16, big endian
    digest = hashlib.sha1(password + b"Mighty Aphrodite" + body, usedforsecurity=False)  # the format's own
    return body + digest.digest()


def _java_text(value: str) -> bytes:
    return struct.pack(">H", len(value)) + value.encode()


def _certificates(bundle: str) -> list[bytes]:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    bodies = ["".join(block.split(end)[0].split()) for block in bundle.split(begin)[1:]]
    try:
        found = [base64.b64decode(body, validate=True) for body in bodies]
    except ValueError as error:
        raise CallerError(f"trust_bundle is not PEM: {error}; must be the interception authority's certificate") from error
    if not found or not all(certificate.startswith(b"\x30") for certificate in found):  # a DER sequence
        raise CallerError("trust_bundle holds no certificate; must be the interception authority's certificate as PEM")
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _copy_from_host(making: Path) -> None:
    host = Path("/etc")
    names = [host / name for name in _FROM_HOST] + [path for pattern in _FROM_HOST_PATTERNS for path in host.glob(pattern)]
    left = _COPIED_BYTES_MAX
    for start in names:
        for path in [start, *sorted(start.rglob("*"))] if start.is_dir() and not start.is_symlink() else [start]:
            if path.suffix == ".gz":
                continue  # alternatives of manual pages are half of all, and nobody reads them there
            target = making / path.relative_to(host)
            try:
                if path.is_symlink():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(path.readlink())
                elif path.is_file() and path.stat().st_mode & 0o004 and (left := left - path.stat().st_size) >= 0:
                    _write(target, path.read_bytes())
            except OSError:
                continue  # a file that vanished, or one that only root of this machine may read: not for a sandbox


def _open_to_all(making: Path) -> None:
    """Readable by the run's uid whatever our umask: nothing in it is private."""
    making.chmod(0o755)
    for path in making.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
