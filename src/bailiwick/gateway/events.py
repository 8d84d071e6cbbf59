"""What the gateway writes down: one function for each kind of event, so that a kind has one shape. Nothing here holds what was injected."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bailiwick.critic.action import Action
from bailiwick.critic.decision import Allow, Decision, Deny, Hold
from bailiwick.kernel.canonical import text
from bailiwick.kernel.ids import ActionId, EventId, RunId
from bailiwick.record.event import Event, Verdict

RESOURCE_CHARACTERS_MAX = 4_096
_INTEGER_MAX = 2**53 - 1


class Stamp:
    """`kernel.clock.timestamp` of now for a hot path: the second is written once."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1  # in ns, as `time.time_ns`
        self._prefix = ""

    def __call__(self, now_ns: Callable[[], int] = time.time_ns) -> str:
        since = now_ns() - self._second
        if not 0 <= since < 1_000_000_000 or self._second < 0:
            since = self._turn(since + self._second)
        return f"{self._prefix}{since // 1_000:06d}Z"

    def _turn(self, moment: int) -> int:
        since = moment % 1_000_000_000
        self._second = moment - since
        self._prefix = datetime.fromtimestamp(self._second // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return since


stamp = Stamp()


@dataclass(init=False)  # defaults stay on the class: most of an outcome is never set
class Outcome:
    """How an action ended. `result` is answered, failed, refused, or unknown: an effect was sent and nobody can say whether it took place."""

    result: str = "failed"
    status: int | None = None
    error: str | None = None
    address: str | None = None
    request_bytes: int = 0
    answer_bytes: int = 0
    request_sha256: str | None = None
    duration_ms: int = 0
    scrubbed: int = 0
    credentials: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None
    usage: dict[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "result": self.result,
            "request_bytes": min(self.request_bytes, _INTEGER_MAX),
            "answer_bytes": min(self.answer_bytes, _INTEGER_MAX),
            "duration_ms": self.duration_ms,
        }
        if self.status is not None:
            body["status"] = self.status
        if self.error is not None:
            body["error"] = self.error
        if self.address is not None:
            body["address"] = self.address
        if self.request_sha256 is not None:
            body["request_sha256"] = self.request_sha256
        if self.usage is not None:
            body["usage"] = self.usage
        if self.scrubbed:
            body["scrubbed"] = self.scrubbed
        return body


def decided(
    identifier: EventId, action_id: ActionId, action: Action, decision: Decision, *, via: str, observed: bool = False, hold: str | None = None
) -> Event:
    """The intent, for an effect. `observed` says that the decision was not enforced; `hold` is the sign-off this decision waits for or rests on."""
    verdict, body = _verdict(decision)
    body["via"] = via
    if action.arguments:
        body["arguments"] = dict(action.arguments)
    if observed:
        body["observed"] = True
    if hold is not None:
        body["hold"] = hold
    if action.body.sha256 is not None:
        body["digest"] = action.digest()
    resource = action.resource
    return Event(
        id=identifier,
        kind="action.decided",
        time=stamp(),
        run=action.run,
        agent=action.agent,
        action=action_id,
        verb=action.verb.value,
        resource=str(resource)[:RESOURCE_CHARACTERS_MAX],
        decision=verdict,
        model=getattr(resource, "model", None),
        body=body | {"method": resource.method} if hasattr(resource, "method") else body,
    )


def _verdict(decision: Decision) -> tuple[Verdict, dict[str, Any]]:
    match decision:
        case Allow(rules=rules):
            return "allow", {"rules": list(rules)}
        case Deny(rules=rules, reason=reason, retry=retry):
            return "deny", {"rules": list(rules), "reason": reason, "retry": retry}
        case Hold(rules=rules, approvers=approvers):
            return "hold", {"rules": list(rules), "approvers": list(approvers)}


def finished(identifier: EventId, action_id: ActionId, action: Action, outcome: Outcome) -> Event:
    return Event(
        id=identifier,
        kind="action.finished",
        time=stamp(),
        run=action.run,
        agent=action.agent,
        action=action_id,
        verb=action.verb.value,
        resource=str(action.resource)[:RESOURCE_CHARACTERS_MAX],
        credential=outcome.credentials,
        model=outcome.model,
        input_tokens=outcome.input_tokens,
        output_tokens=outcome.output_tokens,
        cost_microusd=outcome.cost_microusd,
        body=outcome.body(),
    )


def attempt_refused(identifier: EventId, run: RunId, agent: str, *, what: str, where: str, why: str, suppressed: int = 0) -> Event:
    """`what` is a stable code; `suppressed` counts attempts since the last one written that the run's rate did not let be written."""
    body: dict[str, Any] = {"what": what, "where": where[:RESOURCE_CHARACTERS_MAX], "why": why[:1_000]}
    if suppressed:
        body["suppressed"] = suppressed
    return Event(id=identifier, kind="attempt.refused", time=stamp(), run=run, agent=agent, decision="deny", body=body)


def name_asked(identifier: EventId, run: RunId, agent: str, *, name: str, address: str) -> Event:
    return Event(id=identifier, kind="name.asked", time=stamp(), run=run, agent=agent, resource=name, body={"address": address})


def output(identifier: EventId, run: RunId, agent: str, *, stream: str, raw: bytes, dropped: int = 0) -> Event:
    """`dropped` counts bytes that came faster than the record takes them from one run."""
    body: dict[str, Any] = {"stream": stream, "text": text(raw)}
    if dropped:
        body["dropped_bytes"] = dropped
    return Event(id=identifier, kind="run.output", time=stamp(), run=run, agent=agent, body=body)
