"""When a checkpoint is due, who waits for one, and what is kept of it."""

import logging
import selectors
from dataclasses import dataclass
from typing import Generic, TypeVar

from bailiwick.kernel import limits
from bailiwick.kernel.clock import Clock, timestamp
from bailiwick.kernel.errors import BailiwickError, CallerError, PeerError
from bailiwick.record.checkpoint import Checkpoint, NoteRefused, Verifier, verify_checkpoint
from bailiwick.record.commit import Committer
from bailiwick.record.repository import StoredCheckpoint, StoreError
from bailiwick.record.signer_link import SignerLink
from bailiwick.record.signing import SignCheckpoint

TAKE_SECONDS_MAX = 5.0
WAITING_MAX = 256

_log = logging.getLogger(__name__)

W = TypeVar("W")


@dataclass(slots=True)
class _Waiting(Generic[W]):
    who: W
    size: int
    until: float


class Checkpointing(Generic[W]):
    """Asks the signer for a head at least every limits.CHECKPOINT_SECONDS_MAX while events come, and whenever somebody waits (`W`) for one."""

    def __init__(self, path: str, selector: selectors.BaseSelector, clock: Clock, committer: Committer) -> None:
        self._clock = clock
        self._committer = committer
        self._signer = SignerLink(path, selector, clock)
        self._waiting: list[_Waiting[W]] = []
        self._asked: Checkpoint | None = None
        self._verifier = ""
        self._next_at = clock.monotonic()
        self._last = committer.store().last_checkpoint()
        self._trouble = ""

    def take(self, who: W) -> None:
        """CallerError when there is nothing to sign yet."""
        if not self._committer.size:
            raise CallerError("the record is empty; there is nothing to sign yet", code="conflict")
        if len(self._waiting) >= WAITING_MAX:
            raise CallerError(f"{WAITING_MAX} others wait for a checkpoint; ask again later", code="conflict")
        self._waiting.append(_Waiting(who, self._committer.size, self._clock.monotonic() + TAKE_SECONDS_MAX))

    def wakes_at(self) -> float | None:
        times = [waiting.until for waiting in self._waiting]
        at = self._signer.wakes_at() or 0.0
        if self._signer.state in ("describing", "signing"):
            times.append(at)
        elif self._is_behind():
            times.append(max(0.0 if self._waiting else self._next_at, at))
        return min(times, default=None)

    def happened(self, mask: int) -> None:
        """The signer's socket has something to say."""
        signed = self._signer.happened(mask)
        if signed is None or self._asked is None:
            return
        asked, self._asked = self._asked, None
        try:
            if verify_checkpoint(signed.note, Verifier.parse(self._verifier)) != asked or signed.size != asked.size:
                raise NoteRefused(f"it signed another head than that of {asked.size} events")
            self._keep(StoredCheckpoint(asked.size, signed.note))
        except NoteRefused as error:
            self._signer.drop(str(error))
        except StoreError as error:
            self._signer.drop(f"its checkpoint could not be kept: {error}")

    def close(self) -> None:
        self._signer.drop("the recorder stops")

    def turn(self) -> list[tuple[W, str | BailiwickError]]:
        """Asks for a checkpoint if one is due. Returns whose waiting is over: with the note, or with why there is none."""
        now = self._clock.monotonic()
        self._signer.expire()
        if self._is_behind() and (self._waiting or now >= self._next_at) and self._signer.ready():
            self._ask()
        if self._is_behind() and self._signer.state == "closed":
            self._complain()
        over: list[tuple[W, str | BailiwickError]] = []
        for waiting in list(self._waiting):
            if self._last is not None and self._last.size >= waiting.size:
                over.append((waiting.who, self._last.note))
            elif now >= waiting.until:
                what = f"signer has not signed the record of {waiting.size} events within {TAKE_SECONDS_MAX:g} s: {self._signer.trouble}"
                over.append((waiting.who, PeerError(what)))
            else:
                continue
            self._waiting.remove(waiting)
        return over

    def _is_behind(self) -> bool:
        return self._committer.size > (self._last.size if self._last else 0)

    def _ask(self) -> None:
        size, signed = self._committer.size, self._signer.size
        if signed > size:
            self._signer.drop(f"it has signed {signed} events already and the record has {size}: the record was set back")
            return
        try:
            if self._verifier != self._signer.verifier:
                Verifier.parse(self._signer.verifier)
                self._committer.store().append_verifier(self._signer.verifier, since=timestamp(self._clock.now()))
                self._verifier = self._signer.verifier
            proof = self._committer.store().consistency(signed, size)
        except StoreError as error:
            self._committer.recover()
            self._signer.drop(f"the proof for it cannot be made: {error}")
            return
        except CallerError as error:
            self._signer.drop(str(error))
            return
        self._asked = Checkpoint(Verifier.parse(self._verifier).name, size, self._committer.root)
        self._next_at = self._clock.monotonic() + limits.CHECKPOINT_SECONDS_MAX
        request = SignCheckpoint(self._asked.origin, size, self._asked.root.hex(), [each.hex() for each in proof])
        try:
            self._signer.sign(request)
        except OSError as error:
            self._signer.drop(f"the connection broke: {error.strerror}")

    def _keep(self, checkpoint: StoredCheckpoint) -> None:
        try:
            self._committer.store().append_checkpoint(checkpoint.size, checkpoint.note, time=timestamp(self._clock.now()))
        except StoreError:
            self._committer.recover()
            raise
        if self._trouble:
            _log.warning("the signer signs again; the record of %d events is signed", checkpoint.size)
        self._last, self._trouble = checkpoint, ""

    def _complain(self) -> None:
        if self._signer.trouble != self._trouble:
            self._trouble = self._signer.trouble
            _log.warning("no checkpoint is signed: signer: %s", self._trouble)
