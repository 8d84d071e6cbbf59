"""Signing: what the recorder asks of the process that holds the checkpoint key. The writer of the record never signs it: each checkpoint must extend
the last one signed (RFC 6962 consistency), so that a compromised writer cannot have a rewritten history signed."""

from bailiwick.kernel.channel import Message, Service


class SignCheckpoint(Message, frozen=True):
    """From the recorder. `consistency` is the RFC 6962 proof (hex hashes) from the last checkpoint the broker signed to this one; empty at first."""

    origin: str
    size: int
    root: str
    consistency: list[str]


class CheckpointSigned(Message, frozen=True):
    """A C2SP signed note. `size` is that of the checkpoint the broker has signed last, so that the recorder can prove from it."""

    note: str
    size: int


class DescribeKey(Message, frozen=True):
    """The public half of the checkpoint key, and the size last signed (0: none)."""


class KeyDescribed(Message, frozen=True):
    verifier: str  # a C2SP vkey
    size: int


SIGNER = Service("signer", 1, [SignCheckpoint, CheckpointSigned, DescribeKey, KeyDescribed])
