"""What the governor shows of its nouns to the API, and what the API asks of it. Frozen; JSON by msgspec."""

from typing import Any, Literal

import msgspec

from bailiwick.kernel.ids import HoldId, RunId

OperatorRole = Literal["viewer", "approver", "operator", "admin"]


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """A person, authenticated. Never a run: no run's identity is an operator's."""

    name: str
    roles: frozenset[OperatorRole]


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either an `agent` of the configuration and a `task`, or a `command` of the operator's own (which needs `observe`, or a boundary that denies all).
    For a command, `workspace` is the operator's directory, and `trees` what `governor.runtime.find_runtime` said it needs, asked with the operator's
    own rights."""

    agent: str | None = None
    task: str = ""
    command: list[str] = []
    workspace: str | None = None
    trees: list[str] = []
    observe: bool = False


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is one of `governor.lifecycle.RunState`. `cause` says why it ended; `status` is the agent's exit status, None when it has none."""

    run: RunId
    agent: str
    task: str
    state: str
    operator: str
    observe: bool
    requested: str
    started: str | None = None
    ended: str | None = None
    cause: str = ""
    detail: str = ""
    status: int | None = None
    worker: str = ""
    spiffe_id: str = ""
    calls: int = 0
    writes: int = 0
    tokens: int = 0
    microusd: int = 0
    held: int = 0
    denied: int = 0


class HoldView(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is pending, granted, denied, redeemed, expired or void. `shown` is `critic.action.Action.shown()`; `body_text` has its control characters
    made visible."""

    hold: HoldId
    run: RunId
    agent: str
    state: str
    opened: str
    expires: str
    digest: str
    shown: dict[str, Any]
    body_text: str
    rules: list[str]
    approvers: list[str]
    quorum: int
    four_eyes: bool
    signed: list[dict[str, str]] = []  # operator, outcome, why, time
    reason: str = ""


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str  # up, starting, down
    pid: int | None
    uid: int | None
    restarts: int
    detail: str = ""


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    started: str
    state_directory: str
    configuration: str
    processes: list[ProcessView]
    runs_live: int
    holds_pending: int
    record_size: int
    record_root: str


class ChangesView(msgspec.Struct, frozen=True, kw_only=True):
    """What a run changed in its workspace; `refused` are paths that are never brought back, with the reason."""

    run: RunId
    workspace: str | None
    changes: list[dict[str, Any]]  # path, change, size, sha256
    refused: list[str]
    applied: str | None = None


class RecordedEvent(msgspec.Struct, frozen=True, kw_only=True):
    sequence: int
    received: str
    writer: str
    event: dict[str, Any]
