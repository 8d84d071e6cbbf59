"""Holds in the governor's database of holds. Every change names the state it was decided in, so that of two who decide one wins; redemption is one
transaction, so that a grant is used once whoever asks, however often, across restarts."""

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from bailiwick.critic.signoff import HeldAction, HoldEvent, HoldState, Signature, after, is_redeemed_by, lapse, require_redeemable
from bailiwick.kernel.clock import timestamp
from bailiwick.kernel.errors import Conflict, NotFound
from bailiwick.kernel.ids import HoldId, RunId
from bailiwick.store import queries
from bailiwick.store.connection import open_writer, transaction

_ROOM = "bailiwick.critic"
OPEN_PER_RUN_MAX = 200  # a run that asks for more is refused: an inbox nobody can read is no review, and each may hold 64 KiB of text


class Holds:
    """Not for two threads; two processes may each have one of the same file."""

    def __init__(self, path: Path) -> None:
        self._connection = open_writer(path, _ROOM)
        self._connection.row_factory = sqlite3.Row
        self._queries = queries.load(_ROOM)

    def close(self) -> None:
        self._connection.close()

    def open(self, asked: HeldAction) -> tuple[HeldAction, bool, list[HeldAction]]:
        """The hold for this run and digest, whether it is new, and what had to end for it.

        An open one is found again, and so is a denial under the same policy: a retry is answered as the first request was. One that is expired, void or
        redeemed is over, and a new one is opened. Conflict when the run has OPEN_PER_RUN_MAX open already.
        """
        with transaction(self._connection):
            ended: list[HeldAction] = []
            latest = self._one("select_latest", run=asked.run, digest=asked.digest)
            if latest is not None:
                if lapsed := lapse(latest, asked.opened, policy=asked.policy):
                    ended.append(self._moved(latest, *lapsed))
                elif latest.state in (HoldState.PENDING, HoldState.GRANTED) or (latest.state is HoldState.DENIED and latest.policy == asked.policy):
                    return latest, False, []
            (count,) = self._connection.execute(self._queries["count_open"], {"run": asked.run}).fetchone()
            if count >= OPEN_PER_RUN_MAX:
                raise Conflict(f"run {asked.run} has {count} actions waiting for sign-off; must be at most {OPEN_PER_RUN_MAX}, sign or deny some first")
            self._connection.execute(self._queries["insert_hold"], _columns(asked))
            return asked, True, ended

    def find(self, run: str, digest: str) -> HeldAction | None:
        """The last hold of this run and digest, in whatever state it is."""
        return self._one("select_latest", run=run, digest=digest)

    def get(self, hold: str) -> HeldAction:
        """Raises NotFound."""
        found = self._one("select_hold", hold=hold)
        if found is None:
            raise NotFound(f"hold {hold!r} is unknown; `bailiwick ps` lists those that wait")
        return found

    def select(self, *, state: HoldState | None = None, run: str | None = None, limit: int = 1_000) -> list[HeldAction]:
        """Newest first."""
        return self._all("select_holds", state=state.value if state else None, run=run, limit=limit)

    def sign(self, held: HeldAction, signature: Signature, event: HoldEvent, reason: str) -> HeldAction:
        """Writes what `signoff.event_of_signature` said of `held`. Conflict when the hold is not as it was then: read it again and decide again.

        An end without a signature (expired, void) is written by `settle`.
        """
        if event not in (HoldEvent.SIGNED, HoldEvent.GRANTED, HoldEvent.DENIED):
            raise Conflict(f"hold {held.hold} is {after(held.state, event)}; the signature does not count any more")
        with transaction(self._connection):
            now = self.get(held.hold)
            if (now.state, now.signatures) != (held.state, held.signatures):
                raise Conflict(f"hold {held.hold} changed while it was being signed; look at it again")
            self._connection.execute(
                self._queries["insert_signature"],
                {
                    "hold": held.hold,
                    "number": len(now.signatures) + 1,
                    "operator": signature.operator,
                    "outcome": signature.outcome,
                    "why": signature.why,
                    "time": timestamp(signature.time),
                },
            )
            self._moved(now, event, reason)
            return self.get(held.hold)

    def settle(self, held: HeldAction, event: HoldEvent, reason: str) -> HeldAction:
        """Ends the hold. Conflict when its state forbids that, or is not `held`'s any more."""
        with transaction(self._connection):
            return self._moved(held, event, reason)

    def redeem(self, hold: str, *, run: str, digest: str, policy: str, now: datetime, action: str = "") -> HeldAction:
        """Uses the grant up: succeeds for one action, and for that one again. Raises NotFound, or Conflict saying why it is not to be had. Durable when
        this returns."""
        with transaction(self._connection):
            held = self.get(hold)
            if is_redeemed_by(held, action, run=run, digest=digest, policy=policy):
                return held
            require_redeemable(held, run=run, digest=digest, policy=policy, now=now)
            self._connection.execute(self._queries["redeem_hold"], {"hold": hold, "reason": f"{held.reason}; used", "action": action})
            return self.get(hold)

    def expire_due(self, now: datetime) -> list[HeldAction]:
        """Ends every open hold whose time is over, and returns them as they are now."""
        with transaction(self._connection):
            ended = []
            for held in self._all("select_due", now=timestamp(now)):
                event, reason = lapse(held, now, policy=held.policy) or (HoldEvent.EXPIRED, "its time is over")
                ended.append(self._moved(held, event, reason))
            return ended

    def next_expiry(self) -> datetime | None:
        (expires,) = self._connection.execute(self._queries["select_next_expiry"]).fetchone()
        return None if expires is None else datetime.fromisoformat(expires)

    def void_run(self, run: str, reason: str) -> list[HeldAction]:
        """Ends what the run left open, and returns it as it is now."""
        with transaction(self._connection):
            return [self._moved(held, HoldEvent.VOIDED, reason) for held in self._all("select_open_of_run", run=run)]

    def void_changed(self, agent: str, policy: str) -> list[HeldAction]:
        """Ends what was held under another boundary of the agent than the one in force, and returns it as it is now."""
        reason = "the boundary changed after the action was held; the agent must ask again"
        with transaction(self._connection):
            return [self._moved(held, HoldEvent.VOIDED, reason) for held in self._all("select_open_of_agent", agent=agent, policy=policy)]

    def _moved(self, held: HeldAction, event: HoldEvent, reason: str) -> HeldAction:
        state = after(held.state, event)
        changed = self._connection.execute(
            self._queries["move_hold"], {"hold": held.hold, "from_state": held.state.value, "state": state.value, "reason": reason}
        ).rowcount
        if changed != 1:
            raise Conflict(f"hold {held.hold} is not {held.state} any more; look at it again")
        return self.get(held.hold)

    def _one(self, query: str, **values: Any) -> HeldAction | None:
        found = self._connection.execute(self._queries[query], values).fetchone()
        return None if found is None else self._held(found)

    def _all(self, query: str, **values: Any) -> list[HeldAction]:
        return [self._held(found) for found in self._connection.execute(self._queries[query], values).fetchall()]

    def _held(self, found: sqlite3.Row) -> HeldAction:
        values = dict(found)
        signatures = tuple(
            Signature(operator=row["operator"], outcome=row["outcome"], why=row["why"], time=datetime.fromisoformat(row["time"]))
            for row in self._connection.execute(self._queries["select_signatures"], {"hold": values["hold"]})
        )
        return HeldAction(
            **values
            | {
                "hold": HoldId(values["hold"]),
                "run": RunId(values["run"]),
                "shown": msgspec.json.decode(values["shown"]),
                "rules": tuple(msgspec.json.decode(values["rules"])),
                "approvers": tuple(msgspec.json.decode(values["approvers"])),
                "four_eyes": bool(values["four_eyes"]),
                "opened": datetime.fromisoformat(values["opened"]),
                "expires": datetime.fromisoformat(values["expires"]),
                "state": HoldState(values["state"]),
                "signatures": signatures,
            }
        )


def _columns(held: HeldAction) -> dict[str, Any]:
    return {
        "hold": held.hold,
        "run": held.run,
        "agent": held.agent,
        "action": held.action,
        "dispatched_by": held.dispatched_by,
        "digest": held.digest,
        "policy": held.policy,
        "shown": msgspec.json.encode(held.shown),
        "body_text": held.body_text,
        "rules": msgspec.json.encode(held.rules),
        "approvers": msgspec.json.encode(held.approvers),
        "quorum": held.quorum,
        "wait_seconds": held.wait_seconds,
        "four_eyes": int(held.four_eyes),
        "opened": timestamp(held.opened),
        "expires": timestamp(held.expires),
        "state": HoldState.PENDING.value,
        "reason": "",
    }
