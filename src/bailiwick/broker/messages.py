"""What other processes say to the broker. Only the governor grants and revokes; only the worker a lease names may use it."""

import msgspec

from bailiwick.kernel.channel import Message, Service


class GrantLease(Message, frozen=True):
    """From the governor. `template` is a `broker.template`, as in `Authorization: Bearer {value}`. `expires` is RFC 3339. Granting a live lease again is
    the same grant (a restarted broker is told them all again); with a later `expires` it is extended."""

    lease: str
    run: str
    agent: str
    worker: str  # account name of the gateway worker that serves the run
    credential: str
    hosts: list[str]
    verbs: list[str]
    template: str
    expires: str


class RevokeLeases(Message, frozen=True):
    """From the governor: every lease of the run is dead when this is answered. `reason` is recorded."""

    run: str
    reason: str


class LeasesRevoked(Message, frozen=True):
    leases: list[str]


class UseLease(Message, frozen=True):
    """From a gateway worker: the value of each live lease of `run` for `host` and `verb`; the answer may be kept for `seconds_max`."""

    run: str
    action: str
    host: str
    verb: str


class LeaseUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`value` is the header field's whole value, with the secret in it; `secret` the secret alone, to be scrubbed from answers. Both base64."""

    lease: str
    credential: str
    field: str
    value: str
    secret: str

    def __repr__(self) -> str:
        return f"LeaseUse(lease={self.lease!r}, credential={self.credential!r}, field={self.field!r})"

    __str__ = __repr__


class LeasesUsed(Message, frozen=True):
    uses: list[LeaseUse]
    seconds_max: float = 5.0

    def __repr__(self) -> str:
        return f"LeasesUsed({self.uses!r})"


BROKER = Service("broker", 1, [GrantLease, RevokeLeases, LeasesRevoked, UseLease, LeasesUsed])
