"""A decision: Allow, Deny or Hold, each naming the rules that made it. Closed: a `match` over it that forgets a case does not type-check."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Obligation(StrEnum):
    """What the gateway must do besides, before or while it forwards."""

    SHOW_BODY = "show-body"  # read the body whole before parking, so that exactly the bytes shown are what is signed


Retry = Literal["never", "after-signoff", "after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    rules: tuple[str, ...]
    obligations: frozenset[Obligation] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """`reason` is for the agent and the operator: what was refused, by what, and holds no secret."""

    rules: tuple[str, ...]
    reason: str
    retry: Retry = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    rules: tuple[str, ...]
    approvers: tuple[str, ...]  # names of approver groups in the configuration
    quorum: int = 1
    wait_seconds: float = 600.0
    expires_seconds: float = 7200.0
    four_eyes: bool = False
    obligations: frozenset[Obligation] = field(default_factory=lambda: frozenset({Obligation.SHOW_BODY}))


Decision = Allow | Deny | Hold
