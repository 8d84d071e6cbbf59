"""Enforcement: what the governor tells a gateway worker to hold a run to, and what the worker asks of the governor.

It lives with the critic because neither side may know the other, and both know boundaries, budgets and sign-off. `kernel.channel.Heartbeat` is told
too: without it the worker denies everything, naming the governor."""

from typing import Any

import msgspec

from bailiwick.kernel.channel import Message, Service


class HostPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name the configuration pins. `ca` is PEM that verifies it instead of the system's roots; `tls` is whether the upstream speaks TLS whatever the
    agent spoke (None: as the agent did)."""

    address: str
    port: int
    ca: str | None = None
    tls: bool | None = None


class ModelRoute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider whose model endpoints are parsed at `host`: `openai` or `anthropic` is the dialect."""

    provider: str
    dialect: str
    host: str


class BudgetLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard bounds the gateway enforces; None is no bound. Money in millionths of a US dollar."""

    calls: int | None = None
    writes: int | None = None
    tokens: int | None = None
    microusd: int | None = None
    egress_bytes: int | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run has used so far, by the record."""

    calls: int = 0
    writes: int = 0
    tokens: int = 0
    microusd: int = 0
    egress_bytes: int = 0


class OpenRun(Message, frozen=True):
    """From the governor: this run is yours. Opening an open run replaces what it is held to. Nothing is served until the launcher brings its listeners."""

    run: str
    agent: str
    boundary: str  # critic.boundary.CompiledBoundary as JSON
    observe: bool
    hosts: dict[str, HostPin]
    models: list[ModelRoute]
    budget: BudgetLimits
    used: Usage
    leased: list[str]  # names of the hosts for which the broker holds a lease of this run
    names: list[str] = []  # that the run has asked for, in the order of their addresses: what it remembers of them must stay true in another worker


class CloseRun(Message, frozen=True):
    """From the governor: refuse everything of this run from now on, close its connections and listeners. Answered when it is so."""

    run: str
    reason: str


class RunClosed(Message, frozen=True):
    connections: int  # that were open
    unfinished: list[str]  # actions whose outcome was recorded as unknown


class OpenHold(Message, frozen=True):
    """To the governor: this action waits for sign-off. Answered by HoldOpened; one with the same run and digest that is granted and unused is found
    again, so that a retry redeems it."""

    run: str
    agent: str
    action: str
    digest: str
    shown: dict[str, Any]  # Action.shown()
    body_text: str  # first limits.HELD_BODY_SHOWN_BYTES_MAX of the body, control characters visible
    rules: list[str]
    approvers: list[str]
    quorum: int
    wait_seconds: float
    expires_seconds: float
    four_eyes: bool
    policy: str  # digest of the compiled boundary


class HoldOpened(Message, frozen=True):
    """`state` is pending, granted, or denied (an approver's refusal of the same digest is remembered for the run)."""

    hold: str
    state: str
    reason: str = ""


class HoldSettled(Message, frozen=True):
    """From the governor, to the worker that parks it: granted, denied, expired, or void (the boundary changed, the run ended)."""

    hold: str
    state: str
    reason: str


class RedeemHold(Message, frozen=True):
    """To the governor: use the grant up, durably, for this digest and this action, now. Answered by Done for one action per grant, however often that one
    asks; a failure says why not."""

    hold: str
    run: str
    digest: str
    policy: str
    action: str = ""  # which the grant is used for; without it an answer that was lost is asked for in vain


class ReportUsage(Message, frozen=True):
    """To the governor, told now and then and at the end."""

    run: str
    used: Usage
    parked: int  # actions that wait for sign-off: the run's wall clock stands still while there are any


ENFORCEMENT = Service(
    "enforcement",
    1,
    [OpenRun, CloseRun, RunClosed, OpenHold, HoldOpened, HoldSettled, RedeemHold, ReportUsage],
)
