"""A leaf of the tree: an event with what the recorder knows of it, as canonical JSON. These bytes are what is hashed, and may never be written differently.

`previous` is the sequence number of the run's event before this one (0: none), absent for an event of no run: so that an export of one run shows
that nothing is missing between its events without showing anything of the others.
"""

import msgspec

from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError

LEAF_BYTES_MAX = limits.EVENT_BYTES_MAX + 256


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields stand in the order of their names, which is the order they are written in."""

    event: msgspec.Raw
    received: str
    seq: int
    writer: str
    previous: int | None = None


_decoder = msgspec.json.Decoder(Leaf)


def assemble(event: bytes, *, previous: int | None, received: str, seq: int, writer: str) -> bytes:
    """`event` is in canonical form already; `received` and `writer` hold nothing that JSON would escape."""
    if previous is None:
        return b'{"event":%b,"received":"%b","seq":%d,"writer":"%b"}' % (event, received.encode(), seq, writer.encode())
    return b'{"event":%b,"previous":%d,"received":"%b","seq":%d,"writer":"%b"}' % (event, previous, received.encode(), seq, writer.encode())


def disassemble(raw: bytes) -> Leaf:
    """Raises CallerError for bytes that `assemble` would not have written. The event inside is not looked at."""
    try:
        leaf = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallerError(f"leaf is not understood: {error}") from error
    written = assemble(bytes(leaf.event), previous=leaf.previous, received=leaf.received, seq=leaf.seq, writer=leaf.writer)
    if written != raw:
        raise CallerError("leaf is not in canonical form")
    return leaf
