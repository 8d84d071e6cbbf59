"""Leases as the gateway uses them: asked for at the broker, kept for the seconds it allows, added to a head last, scrubbed from the answer."""

from dataclasses import dataclass

from bailiwick.broker.inject import secrets_of
from bailiwick.broker.messages import LeasesUsed, LeaseUse
from bailiwick.gateway.layers.scrub import Patterns, Scrubber


@dataclass(frozen=True, slots=True)
class Lent:
    """The values for one host and verb, with what takes them out of an answer again."""

    uses: tuple[LeaseUse, ...]
    expires: float  # on the loop's clock
    _patterns: Patterns

    @classmethod
    def of(cls, used: LeasesUsed, now: float) -> "Lent":
        return cls(tuple(used.uses), now + used.seconds_max, Patterns(secrets_of(used.uses)))

    def scrubber(self) -> Scrubber:
        """A fresh one for one answer; the patterns, which cost more than the answer, are shared."""
        return Scrubber(self._patterns)

    @property
    def credentials(self) -> str | None:
        return ",".join(sorted({use.credential for use in self.uses})) or None


class LeaseShelf:
    """Of one run. Holds values in memory no longer than the broker allows."""

    def __init__(self) -> None:
        self._lent: dict[tuple[str, str], Lent] = {}

    def get(self, host: str, verb: str, now: float) -> Lent | None:
        lent = self._lent.get((host, verb))
        return lent if lent is not None and now < lent.expires else None

    def put(self, host: str, verb: str, lent: Lent) -> None:
        self._lent[host, verb] = lent

    def sweep(self, now: float) -> None:
        for key in [key for key, lent in self._lent.items() if now >= lent.expires]:
            del self._lent[key]

    def clear(self) -> None:
        self._lent.clear()
