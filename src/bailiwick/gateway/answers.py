"""Heads of answers, remembered by their bytes: what was read once need not be read again."""

from http import HTTPStatus

from bailiwick.gateway.asked import Sightings
from bailiwick.gateway.layers.heads import ResponseHead
from bailiwick.gateway.layers.http1 import end_to_end, response_bytes

HEADS_MAX = 64  # of one run
HEAD_BYTES_MAX = 4_096
REASONS = {int(status): status.phrase.encode() for status in HTTPStatus} | {413: b"Content Too Large"}


class KnownAnswer:
    """A head that was read before, with how it leaves towards an agent that speaks HTTP/1.1. A pure function of its bytes, so found by them (all of them:
    a part finds nothing); only for an answer of known length, on a connection that is kept, whose reason is the usual one."""

    __slots__ = ("encoded", "length", "names", "outgoing", "status")

    def __init__(self, head: ResponseHead) -> None:
        self.status = head.status
        self.length = head.length or 0
        self.encoded = (head.first(b"content-encoding") or b"identity").lower() != b"identity"
        fields = end_to_end(head.fields)
        self.names = frozenset(name for name, _ in fields)
        self.outgoing = response_bytes(head.status, head.reason, [*fields, (b"content-length", b"%d" % self.length)])


class KnownAnswers(dict[bytes, KnownAnswer]):
    """Of one run; forgotten altogether when they are too many, since heads that tell the time are of use for a second."""

    def __init__(self) -> None:
        super().__init__()
        self._sightings = Sightings()

    def add(self, raw: bytes, head: ResponseHead) -> None:
        """When it comes for the second time."""
        usual = head.framing == "length" and head.keep_alive and head.reason == REASONS.get(head.status)
        if usual and len(raw) <= HEAD_BYTES_MAX and self._sightings.again(raw):
            if len(self) >= HEADS_MAX:
                self.clear()
            self[raw] = KnownAnswer(head)
