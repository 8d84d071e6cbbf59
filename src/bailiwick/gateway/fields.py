"""The header fields of a held request: what of them is forwarded, and how an approver is shown it. What was not signed is not sent."""

import hashlib
from typing import Any, Final

from bailiwick.broker.inject import CREDENTIAL_FIELDS
from bailiwick.gateway.layers.heads import Fields
from bailiwick.gateway.layers.http1 import end_to_end

VALUE_BYTES_MAX: Final = 1_000  # of a value that is shown; a longer one is shown by its digest

# They say who asks, in which form the answer is read, and when; a retry may say it otherwise. `host` is the resource's, which is verified.
UNSIGNED: Final = frozenset(
    {b"host", b"user-agent", b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"date", b"traceparent", b"tracestate"}
)


def signed_fields(fields: Fields, *, lent: bool) -> tuple[Fields, tuple[dict[str, Any], ...]]:
    """The fields to forward, and those that are signed, by name, those of one name as they were sent. Where the broker lends for the host the agent's
    own credentials are in neither."""
    kept = tuple(field for field in end_to_end(fields) if not (lent and field[0] in CREDENTIAL_FIELDS))
    return kept, tuple(_shown(name, value) for name, value in sorted(kept, key=lambda field: field[0]) if name not in UNSIGNED)


def _shown(name: bytes, value: bytes) -> dict[str, Any]:
    """No two values are shown alike: one that is a credential, long or no text stands there as its digest, under another key."""
    if name not in CREDENTIAL_FIELDS and len(value) <= VALUE_BYTES_MAX:
        try:
            return {"name": name.decode("ascii"), "value": value.decode("utf-8")}
        except UnicodeDecodeError:
            pass
    return {"name": name.decode("ascii"), "sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
