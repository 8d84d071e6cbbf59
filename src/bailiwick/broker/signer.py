"""The signer: holds the checkpoint key and signs a tree head only when it extends the one it signed last.

What it signed last is durable before the signature leaves. So a recorder that was taken over, or whose database was set back, cannot have two
histories signed: it gets no signature at all. Whose calls are answered (the recorder's) is decided by who serves this.
"""

import fcntl
import os
import secrets
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bailiwick.kernel.channel import Channel, Received, Reply
from bailiwick.kernel.errors import BackendError, CallerError, Conflict
from bailiwick.record.checkpoint import Checkpoint, NoteSigner
from bailiwick.record.merkle import HASH_BYTES, ProofRefused, verify_consistency
from bailiwick.record.signing import CheckpointSigned, DescribeKey, KeyDescribed, SignCheckpoint

KEY = "checkpoint.key"  # the Ed25519 seed, 32 bytes
STATE = "checkpoint.state"
LOCK = "checkpoint.lock"
PROOF_HASHES_MAX = 64
_SEED_BYTES = 32


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was signed last; bound to the key, so that a state brought from elsewhere is noticed."""

    verifier: str
    size: int
    root: str


class Signer:
    """Owns the key and the state in `directory` (the broker's, private). `origin` is the log's name, and the key's.

    Raises BackendError when the directory is in use by another signer, or holds a key without its state: a key that forgot what it signed could sign
    a second history.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise BackendError(f"checkpoint key in {directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._note_signer = NoteSigner(origin, self._key_of(origin))
            self._last = self._read_state()
        except BaseException as error:
            self.close()
            if isinstance(error, BlockingIOError):
                raise BackendError(f"{directory} is in use by another signer; one process holds the checkpoint key") from error
            if isinstance(error, OSError):
                raise BackendError(f"checkpoint key in {directory} cannot be used: {error.strerror}") from error
            raise

    @property
    def verifier(self) -> str:
        """The public half, as a C2SP vkey."""
        return str(self._note_signer.verifier)

    def close(self) -> None:
        """Gives the directory up; nothing may be signed after."""
        os.close(self._lock)

    async def handle(self, channel: Channel, received: Received) -> Reply:
        match received.message:
            case SignCheckpoint() as asked:
                return Reply(self.sign(asked))
            case DescribeKey():
                return Reply(KeyDescribed(self.verifier, self._last.size))
            case other:
                raise CallerError(f"signer does not answer {type(other).__name__}; must be SignCheckpoint or DescribeKey")

    def sign(self, asked: SignCheckpoint) -> CheckpointSigned:
        """Conflict for a head that does not extend the last one signed, CallerError for what is no head of this log, BackendError when it cannot be made
        durable: nothing is signed then."""
        if asked.origin != self._note_signer.name:
            raise CallerError(f"checkpoint of the log {asked.origin!r}; this key signs for {self._note_signer.name!r} only")
        if not 0 < asked.size < 2**63:
            raise CallerError(f"checkpoint of size {asked.size}; must be 1 to 2**63 - 1")
        if len(asked.consistency) > PROOF_HASHES_MAX:
            raise CallerError(f"consistency proof of {len(asked.consistency)} hashes; must be at most {PROOF_HASHES_MAX}")
        root, proof = _hash(asked.root), [_hash(text) for text in asked.consistency]
        if asked.size < self._last.size:
            raise Conflict(f"checkpoint of size {asked.size} after one of {self._last.size}; the record has lost events or was set back")
        if self._last.size:
            try:
                verify_consistency(self._last.size, asked.size, proof, bytes.fromhex(self._last.root), root)
            except ProofRefused as error:
                raise Conflict(f"checkpoint of size {asked.size} does not extend the last one signed: {error}") from error
        elif proof:
            raise CallerError("consistency proof for the first checkpoint; must be empty")
        if asked.size > self._last.size:
            self._remember(_Signed(self.verifier, asked.size, root.hex()))
        return CheckpointSigned(self._note_signer.sign(Checkpoint(asked.origin, asked.size, root).text()), self._last.size)

    def _key_of(self, origin: str) -> Ed25519PrivateKey:
        path = self._directory / KEY
        if not path.exists():
            seed = secrets.token_bytes(_SEED_BYTES)
            key = Ed25519PrivateKey.from_private_bytes(seed)
            # The state first: a key is never there without one.
            self._write(STATE, msgspec.json.encode(_Signed(str(NoteSigner(origin, key).verifier), 0, "")))
            self._write(KEY, seed)
            return key
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode & 0o777
            seed = file.read(_SEED_BYTES + 1)
        if mode & 0o077:
            raise BackendError(f"{path} has mode {mode:04o}; must be 0600: others could sign as this installation, so replace the key")
        if len(seed) != _SEED_BYTES:
            raise BackendError(f"{path} is {len(seed)} bytes; must be {_SEED_BYTES}: restore it from a backup")
        return Ed25519PrivateKey.from_private_bytes(seed)

    def _read_state(self) -> _Signed:
        path = self._directory / STATE
        try:
            state = msgspec.json.decode(path.read_bytes(), type=_Signed)
            if state.size and len(bytes.fromhex(state.root)) != HASH_BYTES:
                raise ValueError("root is not 32 bytes")
        except FileNotFoundError as error:
            raise BackendError(f"{path} is missing, and {KEY} may not sign without it; restore it, or move both away to begin with a new key") from error
        except (msgspec.MsgspecError, ValueError) as error:
            raise BackendError(f"{path} is damaged ({error}); restore it, or move it and {KEY} away to begin with a new key") from error
        if state.verifier != self.verifier:
            raise BackendError(f"{path} belongs to the key {state.verifier}; the key here is {self.verifier}: was the trust domain renamed?")
        return state

    def _remember(self, signed: _Signed) -> None:
        try:
            self._write(STATE, msgspec.json.encode(signed))
        except OSError as error:
            raise BackendError(f"what was signed cannot be made durable in {self._directory}: {error.strerror}") from error
        self._last = signed

    def _write(self, name: str, content: bytes) -> None:
        """Whole or not at all, and on the disk when this returns."""
        temporary = self._directory / f".{name}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(self._directory / name)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _hash(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise CallerError(f"hash {text[:70]!r} is not hexadecimal") from error
    if len(raw) != HASH_BYTES:
        raise CallerError(f"hash of {len(raw)} bytes; must be {HASH_BYTES}")
    return raw
