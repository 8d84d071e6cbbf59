"""An export: the record, or one run of it, in one file that `record.verify` can check without us.

JSON lines, each exactly as written here, so that the same events make the same file and no byte can differ:

    {"format":"bailiwick-record-export","version":1,"run":RUN or null,"size":N,"verifier":VKEY,"checkpoint":NOTE}   the header; NOTE signs N events
    {"hash":HEX,"leaf":LEAF}        the next event: the bytes of LEAF are what was hashed
    {"hash":HEX,"level":L}          the next 2**L events, of which only the root is shown (of one run: what is between its events)
    {"checkpoint":NOTE}             a tree head that was signed when the record ended here

What a whole export proves, given the public key: these are all events before its last checkpoint, unchanged and in order. What one run's export proves:
each event stands where it says in the signed record, and none of the run is missing between them (each leaf names the run's event before it).
It does not show that the run's last event shown is its last; `run.ended` does. Of other runs it shows hashes only; whoever can guess an event of theirs
to the microsecond can confirm the guess.
"""

import msgspec

from bailiwick.kernel.ids import RunId

FORMAT = "bailiwick-record-export"
VERSION = 1


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str = FORMAT
    version: int = VERSION
    run: RunId | None
    size: int
    verifier: str
    checkpoint: str


def header_line(header: Header) -> bytes:
    return msgspec.json.encode(header) + b"\n"


def leaf_line(hash_hex: str, leaf: bytes) -> bytes:
    return b'{"hash":"%b","leaf":%b}\n' % (hash_hex.encode(), leaf)


def subtree_line(hash_hex: str, level: int) -> bytes:
    return b'{"hash":"%b","level":%d}\n' % (hash_hex.encode(), level)


def checkpoint_line(note: str) -> bytes:
    return b'{"checkpoint":%b}\n' % msgspec.json.encode(note)
