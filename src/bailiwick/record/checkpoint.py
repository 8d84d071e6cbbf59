"""Checkpoints: signed tree heads as C2SP signed notes (c2sp.org/signed-note, c2sp.org/tlog-checkpoint), with Ed25519.

A note's text is to be ignored until a trusted key's signature on it was verified; hence `verify_*` is the only way here from a note to its content.
Everything that is base64 must be written in its one standard form, so that no byte of a note can change unnoticed.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bailiwick.kernel.errors import CallerError
from bailiwick.record.merkle import HASH_BYTES, ProofRefused

NOTE_BYTES_MAX = 64 * 1024  # the specification asks for room for 16 signatures
SIZE_MAX = 2**63 - 1
_ED25519 = b"\x01"
_ID_BYTES = 4
_SIGNATURE = re.compile("— ([^ ]+) ([A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile("0|[1-9][0-9]{0,18}")


class NoteRefused(ProofRefused):
    """The note is malformed, or no trusted key signed it."""

    code = "note"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: its first `size` leaves have this root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Extension lines are refused: ours has none, and nobody would see what they say. Raises NoteRefused."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0]:
            raise NoteRefused(f"checkpoint has {len(lines) - 1} lines; must be origin, size and root, each ended by a newline")
        if not _SIZE.fullmatch(lines[1]) or int(lines[1]) > SIZE_MAX:
            raise NoteRefused(f"checkpoint size {lines[1][:40]!r} is not a decimal number without leading zeroes, at most {SIZE_MAX}")
        root = _unbase64(lines[2], "checkpoint root")
        if len(root) != HASH_BYTES:
            raise NoteRefused(f"checkpoint root of {len(root)} bytes; must be {HASH_BYTES}")
        return cls(lines[0], int(lines[1]), root)


@dataclass(frozen=True, slots=True)
class Verifier:
    """The public half of a key, by name. Written as a vkey: `name+hex key id+base64(0x01 || public key)`."""

    name: str
    key: bytes

    @classmethod
    def parse(cls, vkey: str) -> "Verifier":
        """CallerError unless an Ed25519 vkey whose key id is that of its key."""
        name, plus, rest = vkey.strip().partition("+")
        id, second, encoded = rest.partition("+")
        if not plus or not second or not _is_name(name):
            raise CallerError(f"verifier key {vkey[:60]!r}; must be name+id+base64, as `bailiwick record key` prints it")
        try:
            key = _unbase64(encoded, "verifier key")
        except NoteRefused as error:
            raise CallerError(str(error)) from error
        if key[:1] != _ED25519 or len(key) != 33:
            raise CallerError(f"verifier key of {name} is not an Ed25519 key (0x01 and 32 bytes)")
        known = cls(name, key[1:])
        if known.id.hex() != id:
            raise CallerError(f"verifier key of {name} has the id {id[:16]!r}; must be {known.id.hex()}: it was copied wrong")
        return known

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.key)}"


@dataclass(frozen=True, slots=True)
class NoteSigner:
    """The private half. Never in a process that writes the record."""

    name: str
    _key: Ed25519PrivateKey

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise CallerError(f"key name {self.name!r}; must be text without spaces, plus signs and control characters, such as example.org/record")

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.name, self._key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        if not text.endswith("\n") or _has_control(text):
            raise CallerError("a note's text must end in a newline and hold no other control character")
        return f"{text}\n— {self.name} {_base64(self.verifier.id + self._key.sign(text.encode()))}\n"


def verify_note(note: str, verifier: Verifier) -> str:
    """The note's text. Raises NoteRefused unless `verifier` signed it; signatures of other keys are ignored, as the specification demands."""
    text, signatures = _taken_apart(note)
    ours = [signature for name, id, signature in signatures if (name, id) == (verifier.name, verifier.id)]
    if not ours:
        raise NoteRefused(f"note is not signed by {verifier.name}+{verifier.id.hex()}, but by {', '.join(f'{n}+{i.hex()}' for n, i, _ in signatures)}")
    for signature in ours:
        try:
            Ed25519PublicKey.from_public_bytes(verifier.key).verify(signature, text.encode())
        except (InvalidSignature, ValueError) as error:
            raise NoteRefused(f"signature of {verifier.name}+{verifier.id.hex()} does not fit the note's text") from error
    return text


def verify_checkpoint(note: str, verifier: Verifier) -> Checkpoint:
    """The head that `verifier` signed for the log of its own name. Raises NoteRefused."""
    checkpoint = Checkpoint.parse(verify_note(note, verifier))
    if checkpoint.origin != verifier.name:
        raise NoteRefused(f"checkpoint is of the log {checkpoint.origin!r}; must be {verifier.name!r}")
    return checkpoint


def _taken_apart(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    try:
        size = len(note.encode())
    except UnicodeEncodeError as error:
        raise NoteRefused("note is not UTF-8") from error
    if size > NOTE_BYTES_MAX or _has_control(note):
        raise NoteRefused(f"note of {size} bytes; must be at most {NOTE_BYTES_MAX}, without control characters but newlines")
    text, blank, rest = note.rpartition("\n\n")
    if not blank or not rest.endswith("\n"):
        raise NoteRefused("note has no signature; must be a text, an empty line, and lines that begin with an em dash")
    signatures = []
    for line in rest[:-1].split("\n"):
        match = _SIGNATURE.fullmatch(line)
        raw = _unbase64(match[2], "signature") if match else b""
        if match is None or not _is_name(match[1]) or len(raw) <= _ID_BYTES:
            raise NoteRefused(f"signature line {line[:60]!r}; must be an em dash, a key name and base64, with one space between")
        signatures.append((match[1], raw[:_ID_BYTES], raw[_ID_BYTES:]))
    return text + "\n", signatures


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(character.isspace() or ord(character) < 0x20 for character in name)


def _has_control(text: str) -> bool:
    return any(character < " " and character != "\n" for character in text)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unbase64(text: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteRefused(f"{what} is not base64: {error}") from error
    if _base64(raw) != text:
        raise NoteRefused(f"{what} is not base64 in its one standard form")
    return raw
