"""What the demo claims, each claim a pure function over the evidence: the record, the servers' journals, what the agent wrote, what is left.

The servers' word and the record's word must agree: an effect that arrived without an intent, or twice, or an intent whose effect nobody saw, fails.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bailiwick.cli.demo import scripts
from bailiwick.cli.demo.world import MODEL, MODEL_HOST, STRANGER_HOST, Journals

STAGING = f"/v1/staging/{scripts.KEY}"
PRODUCTION = f"/v1/production/{scripts.KEY}"
EFFECTS = ("write", "delete", "execute", "send")

RecordedEvent = Mapping[str, Any]  # `record.event.Event` as an object


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`events` in the order of the record. `output` may be `agent_output(events)`; `summary` is the text of the agent's summary.json as it came back with
    its workspace. `approved` is what the approver said. `verified` is None, or what verifying the export found wrong. `altered` and `found` are the
    sequence number that was changed in a copy and the one the verification named. `written` is every byte the product wrote (record, export, logs,
    states). `remains` is what is left of the run on this machine, by name."""

    events: Sequence[RecordedEvent]
    journals: Journals
    output: str
    summary: str
    approved: bool
    verified: str | None
    altered: int
    found: int | None
    secrets: Mapping[str, str] = field(repr=False)
    written: bytes = field(default=b"", repr=False)
    remains: Sequence[str] = ()
    dials: Sequence[scripts.Dial] = scripts.DIALS


@dataclass(frozen=True, slots=True)
class Finding:
    claim: str
    passed: bool
    sentence: str


Check = Callable[[Evidence], tuple[bool, str]]
_CLAIMS: list[tuple[str, Check]] = []


def agent_output(events: Iterable[RecordedEvent]) -> str:
    """What the agent wrote on its standard output and error, from the record."""
    written = (event.get("body", {}) for event in events if event["kind"] == "run.output")
    return "".join(str(body.get("text", "")) for body in written)


def check(evidence: Evidence) -> list[Finding]:
    """Every claim, in the story's order."""
    return [Finding(name, *judge(evidence)) for name, judge in _CLAIMS]


def _claim(name: str) -> Callable[[Check], Check]:
    def add(judge: Check) -> Check:
        _CLAIMS.append((name, judge))
        return judge

    return add


@_claim("sealed before it started")
def _sealed(evidence: Evidence) -> tuple[bool, str]:
    kinds = [event["kind"] for event in evidence.events]
    if "run.probed" not in kinds or "run.started" not in kinds:
        return False, "the record has no probe, or no start, of the agent's sandbox"
    return kinds.index("run.probed") < kinds.index("run.started"), "a probe looked at the sandbox from the inside before the agent's first instruction"


@_claim("the agent is unmodified and reached its model")
def _model(evidence: Evidence) -> tuple[bool, str]:
    right = [seen for seen in evidence.journals.models if seen["credential"] == "right"]
    wrong = [seen for seen in evidence.journals.models if seen["credential"] != "right"]
    recorded = [event for event in evidence.events if event["kind"] == "action.finished" and event.get("model") == MODEL]
    if not right or wrong:
        return False, f"{len(right)} model calls arrived with the key, {len(wrong)} without it"
    if len(recorded) != len(right):
        return False, f"{len(right)} model calls arrived, the record has {len(recorded)}"
    tokens = sum((event.get("input_tokens") or 0) + (event.get("output_tokens") or 0) for event in recorded)
    return tokens > 0, f"{len(right)} model calls arrived at {MODEL_HOST} with the key put in on the way; the record counts {tokens} tokens"


@_claim("the agent never held a secret")
def _no_secret(evidence: Evidence) -> tuple[bool, str]:
    seen = evidence.output + evidence.summary
    leaked = [name for name, value in evidence.secrets.items() if value in seen]
    if leaked:
        return False, f"the agent saw {' and '.join(leaked)}"
    shown = next((line.partition("key: ")[2] for line in evidence.output.splitlines() if line.startswith("model: ")), "")
    if not shown or '"environment"' not in evidence.summary:
        return False, "the agent did not show the key and the environment it had, so nothing can be said"
    return True, f"the agent printed the key it had: {shown!r}, a placeholder; its whole environment holds no secret"


@_claim("nothing we wrote holds a secret")
def _nothing_written(evidence: Evidence) -> tuple[bool, str]:
    leaked = [name for name, value in evidence.secrets.items() if value.encode() in evidence.written]
    if leaked:
        return False, f"{' and '.join(leaked)} stands in what we wrote"
    return bool(evidence.written), f"{len(evidence.written):,} bytes of record and logs searched for {len(evidence.secrets)} secrets: none"


@_claim("staging was written, once")
def _staging(evidence: Evidence) -> tuple[bool, str]:
    arrived = _arrived(evidence, STAGING)
    if len(arrived) != 1 or evidence.journals.values.get(STAGING.removeprefix("/v1/")) != scripts.NEW_VALUE:
        return False, f"the write of staging arrived {len(arrived)} times"
    return _decided(evidence, STAGING) == ["allow"], "the boundary allows staging: the write arrived once, with the token put in on the way"


@_claim("production waited for a person")
def _production(evidence: Evidence) -> tuple[bool, str]:
    arrived = _arrived(evidence, PRODUCTION)
    opened = [event for event in evidence.events if event["kind"] == "hold.opened" and _speaks_of(event, PRODUCTION)]
    signed = [event for event in evidence.events if event["kind"] == "hold.signed"]
    if len(opened) != 1 or not signed:
        return False, f"the write of production was held {len(opened)} times and signed {len(signed)} times"
    value = evidence.journals.values.get(PRODUCTION.removeprefix("/v1/"))
    if not evidence.approved:
        return not arrived and value != scripts.NEW_VALUE, f"the write of production was denied by a person and arrived {len(arrived)} times"
    redeemed = [event for event in evidence.events if event["kind"] == "hold.redeemed"]
    if len(arrived) != 1 or len(redeemed) != 1 or value != scripts.NEW_VALUE:
        return False, f"the approved write of production arrived {len(arrived)} times and used its approval up {len(redeemed)} times"
    order = [_position(evidence, event) for event in (opened[0], signed[0], redeemed[0])]
    return order == sorted(order), "the write of production was held, signed by a person, and arrived exactly once after that"


@_claim("the stranger got nothing")
def _stranger(evidence: Evidence) -> tuple[bool, str]:
    if not evidence.journals.stranger_can_count:
        return False, "the stranger's counter does not count, so its zero says nothing"
    if evidence.journals.stranger_reached:
        return False, f"the stranger was reached {evidence.journals.stranger_reached} times"
    decided = _decided(evidence, STRANGER_HOST)
    return decided == ["deny"], f"the post to {STRANGER_HOST} was decided {' and '.join(decided) or 'never'}; 0 connections reached the stranger"


@_claim("dialling past the proxy was governed all the same")
def _dials(evidence: Evidence) -> tuple[bool, str]:
    refusals = [event for event in evidence.events if event["kind"] == "attempt.refused" or (event["kind"] == "action.decided" and event["decision"] == "deny")]
    missing = [str(dial) for dial in evidence.dials if not any(_speaks_of(event, dial.host) for event in refusals)]
    allowed = [dial.host for dial in evidence.dials if any(_speaks_of(event, dial.host) for event in evidence.events if event.get("decision") == "allow")]
    if missing or allowed:
        return False, f"not in the record as refused: {', '.join(missing) or 'none'}; allowed: {', '.join(allowed) or 'none'}"
    return True, f"{len(evidence.dials)} direct dials (TCP, UDP, IPv6, the metadata address) went nowhere, and the record names each"


@_claim("intent stands before outcome")
def _intents(evidence: Evidence) -> tuple[bool, str]:
    intents: dict[str, int] = {}
    for position, event in enumerate(evidence.events):
        if event["kind"] == "action.decided" and event.get("decision") == "allow":
            intents.setdefault(str(event.get("action")), position)
    finished = [(position, event) for position, event in enumerate(evidence.events) if event["kind"] == "action.finished"]
    orphans = [event for position, event in finished if intents.get(str(event.get("action")), position) >= position]
    if orphans:
        return False, f"{len(orphans)} outcomes have no intent before them"
    arrived = [arrival for arrival in evidence.journals.configuration if arrival["changed"]]
    effects = Counter(event.get("resource") for event in evidence.events if event["kind"] == "action.decided" and _is_effect(event))
    unannounced = [arrival["path"] for arrival in arrived if not any(str(resource).endswith(arrival["path"]) for resource in effects)]
    if unannounced:
        return False, f"the service changed without an intent on file: {', '.join(unannounced)}"
    return bool(finished), f"{len(finished)} outcomes, each after its decision; {len(arrived)} changes at the service, each announced"


@_claim("the record is whole")
def _verified(evidence: Evidence) -> tuple[bool, str]:
    if evidence.verified is not None:
        return False, f"the exported record does not verify: {evidence.verified}"
    return True, f"the exported record of {len(evidence.events)} events verifies offline, with a public key"


@_claim("an altered copy is found")
def _altered(evidence: Evidence) -> tuple[bool, str]:
    if evidence.found != evidence.altered:
        return False, f"event {evidence.altered} of a copy was altered; the verification named {evidence.found}"
    return True, f"one field of event {evidence.altered} of a copy was altered, and the verification named event {evidence.found}"


@_claim("nothing is left")
def _nothing_left(evidence: Evidence) -> tuple[bool, str]:
    if evidence.remains:
        return False, f"left behind: {', '.join(evidence.remains)}"
    ended = [event for event in evidence.events if event["kind"] == "run.ended"]
    return len(ended) == 1, "no process, mount, cgroup or namespace of the run is left"


def _arrived(evidence: Evidence, path: str) -> list[Mapping[str, Any]]:
    """Writes that reached the service, whether it took them or not."""
    return [arrival for arrival in evidence.journals.configuration if arrival["method"] == "PUT" and arrival["path"] == path]


def _decided(evidence: Evidence, part: str) -> list[str]:
    """The decisions on effects whose resource holds `part`, in order."""
    events = (event for event in evidence.events if event["kind"] == "action.decided" and event.get("verb") in EFFECTS)
    return [str(event["decision"]) for event in events if part in str(event.get("resource"))]


def _is_effect(event: RecordedEvent) -> bool:
    return event.get("decision") == "allow" and event.get("verb") in EFFECTS


def _position(evidence: Evidence, event: RecordedEvent) -> int:
    return next(position for position, other in enumerate(evidence.events) if other is event)


def _speaks_of(event: RecordedEvent, text: str) -> bool:
    return text in json.dumps(_texts(event), ensure_ascii=False)


def _texts(value: Any) -> list[str]:
    """Every text within a value, so that an address is found wherever an event says it."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return _all(value.values())
    return _all(value) if isinstance(value, list | tuple) else []


def _all(values: Iterable[Any]) -> list[str]:
    return [text for value in values for text in _texts(value)]
