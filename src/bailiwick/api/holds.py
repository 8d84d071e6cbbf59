"""Routes of sign-off: what waits for a person, and the person's answer."""

from typing import Annotated, Literal

import msgspec
from fastapi import Request, Response

from bailiwick.api.declare import HoldPath, Routes, answer, body_of, operator_of
from bailiwick.api.governance import Governance
from bailiwick.governor.views import HoldView
from bailiwick.kernel.ids import HoldId

WHY_CHARACTERS_MAX = 2_000

HoldState = Literal["pending", "granted", "denied", "redeemed", "expired", "void"]
Why = Annotated[str, msgspec.Meta(max_length=WHY_CHARACTERS_MAX)]


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why = ""


class Denial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A refusal says why: the agent is told, and the record keeps it."""

    why: Annotated[str, msgspec.Meta(min_length=1, max_length=WHY_CHARACTERS_MAX)]


def routes(governance: Governance) -> Routes:
    part = Routes()

    @part.add("GET", "/holds", "viewer", answer=list[HoldView])
    async def holds(state: HoldState | None = None) -> Response:
        """Holds, of one state where asked."""
        return answer(governance.holds(state=state))

    @part.add("GET", "/holds/{hold}", "viewer", answer=HoldView)
    async def hold(hold: HoldPath) -> Response:
        """One hold: what would be done, exactly."""
        return answer(governance.hold(HoldId(hold)))

    @part.add("POST", "/holds/{hold}/approve", "approver", answer=HoldView, takes=Approval)
    async def approve(hold: HoldPath, request: Request) -> Response:
        """Grants the hold, for exactly the action shown, once, before it expires. The boundary says whose approval counts."""
        body = await body_of(request, Approval)
        return answer(await governance.settle_hold(HoldId(hold), operator_of(request), granted=True, why=body.why))

    @part.add("POST", "/holds/{hold}/deny", "approver", answer=HoldView, takes=Denial)
    async def deny(hold: HoldPath, request: Request) -> Response:
        """Refuses the hold; the agent is told why."""
        body = await body_of(request, Denial)
        return answer(await governance.settle_hold(HoldId(hold), operator_of(request), granted=False, why=body.why))

    return part
