import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from bailiwick.cli.demo import scripts
from bailiwick.cli.demo.claims import PRODUCTION, STAGING, Evidence, agent_output, check
from bailiwick.cli.demo.world import MODEL, Journals

CONFIG = "https://config.internal"
STRANGER = scripts.STRANGER_URL


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "run": "run-1", "body": {}} | fields


def action(number: int, verb: str, resource: str, decision: str, **fields: Any) -> list[dict[str, Any]]:
    decided = event("action.decided", action=f"a{number}", verb=verb, resource=resource, decision=decision)
    return [decided] if decision != "allow" else [decided, event("action.finished", action=f"a{number}", verb=verb, resource=resource, **fields)]


def arrival(method: str, path: str) -> dict[str, Any]:
    return {"method": method, "path": path, "authorised": True, "status": 200, "changed": method == "PUT"}


def story(*, approved: bool = True) -> Evidence:
    """What the record and the journals say when everything went as it should."""
    held = f"{CONFIG}{PRODUCTION}"
    events = [
        event("run.requested"),
        event("run.probed"),
        event("run.started"),
        *action(1, "call-model", f"openai/{MODEL}", "allow", model=MODEL, input_tokens=10, output_tokens=5),
        *action(2, "read", f"{CONFIG}/v1/tickets/4711", "allow"),
        *action(3, "write", f"{CONFIG}{STAGING}", "allow"),
        *action(4, "write", held, "hold"),
        event("hold.opened", action="a4", resource=held),
        event("hold.signed", action="a4", body={"outcome": "granted" if approved else "denied"}),
        *([event("hold.redeemed", action="a4"), *action(4, "write", held, "allow")] if approved else [event("hold.closed", action="a4")]),
        *action(5, "write", STRANGER, "deny"),
        *action(6, "read", "https://203.0.113.66/", "deny"),
        event("attempt.refused", body={"address": "169.254.169.254", "port": 80}),
        event("attempt.refused", body={"address": "2001:db8::66", "port": 8443}),
        event("attempt.refused", body={"address": "203.0.113.66", "port": 9999, "protocol": "udp"}),
        event("run.ended"),
    ]
    values = {"staging/image": scripts.NEW_VALUE, "production/image": scripts.NEW_VALUE if approved else "old"}
    return Evidence(
        events=events,
        journals=Journals(
            models=[{"credential": "right"}],
            configuration=[arrival("GET", "/v1/tickets/4711"), arrival("PUT", STAGING), *([arrival("PUT", PRODUCTION)] if approved else [])],
            values=values,
            stranger_reached=0,
            stranger_can_count=True,
        ),
        output="task: x\nmodel: gpt-5.2, key: bailiwick-lends-this-key\n",
        summary='{"environment": {"OPENAI_API_KEY": "bailiwick-lends-this-key"}}',
        approved=approved,
        verified=None,
        altered=7,
        found=7,
        secrets={"openai-key": "sk-secret", "config-token": "cfg-secret"},
        written=b"the record",
    )


def failed(evidence: Evidence) -> list[str]:
    return [finding.claim for finding in check(evidence) if not finding.passed]


@pytest.mark.parametrize("approved", [True, False])
def test_the_good_story_holds(approved: bool) -> None:
    """Every claim passes when all went well, whether the person granted or denied; each has a sentence."""
    findings = check(story(approved=approved))
    assert [finding.claim for finding in findings if not finding.passed] == []
    assert len({finding.claim for finding in findings}) == len(findings) == 12
    assert all(finding.sentence for finding in findings)


def journals(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda evidence: dataclasses.replace(evidence, journals=dataclasses.replace(evidence.journals, **changes))


def changed(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda evidence: dataclasses.replace(evidence, **changes)


def without(*kinds: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: dataclasses.replace(evidence, events=[each for each in evidence.events if each["kind"] not in kinds])


def twice(path: str) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        return journals(configuration=[*evidence.journals.configuration, arrival("PUT", path)])(evidence)

    return change


def redeemed_first(evidence: Evidence) -> Evidence:
    events = list(evidence.events)
    redeemed = next(each for each in events if each["kind"] == "hold.redeemed")
    events.remove(redeemed)
    return dataclasses.replace(evidence, events=[redeemed, *events])


def outcome_first(evidence: Evidence) -> Evidence:
    events = list(evidence.events)
    outcome = next(each for each in events if each["kind"] == "action.finished" and each["verb"] == "write")
    events.remove(outcome)
    return dataclasses.replace(evidence, events=[outcome, *events])


def stranger_allowed(evidence: Evidence) -> Evidence:
    events = [each | {"decision": "allow"} if each.get("resource") == STRANGER else each for each in evidence.events]
    return dataclasses.replace(evidence, events=events)


LIES: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "no probe": (without("run.probed"), "sealed before it started"),
    "the placeholder arrived": (journals(models=[{"credential": "right"}, {"credential": "wrong"}]), "the agent is unmodified and reached its model"),
    "a model call is not on file": (journals(models=[{"credential": "right"}] * 2), "the agent is unmodified and reached its model"),
    "a key in the output": (changed(output="model: gpt-5.2, key: sk-secret\n"), "the agent never held a secret"),
    "a token in the environment": (changed(summary='{"environment": {"T": "cfg-secret"}}'), "the agent never held a secret"),
    "an agent that shows nothing": (changed(output=""), "the agent never held a secret"),
    "a secret in a log": (changed(written=b"... sk-secret ..."), "nothing we wrote holds a secret"),
    "nothing searched": (changed(written=b""), "nothing we wrote holds a secret"),
    "staging twice": (twice(STAGING), "staging was written, once"),
    "production twice": (twice(PRODUCTION), "production waited for a person"),
    "redeemed before it was signed": (redeemed_first, "production waited for a person"),
    "production without a person": (without("hold.signed"), "production waited for a person"),
    "the stranger was reached": (journals(stranger_reached=1), "the stranger got nothing"),
    "a counter that cannot count": (journals(stranger_can_count=False), "the stranger got nothing"),
    "the stranger was allowed": (stranger_allowed, "the stranger got nothing"),
    "dials not on file": (without("attempt.refused"), "dialling past the proxy was governed all the same"),
    "outcome before intent": (outcome_first, "intent stands before outcome"),
    "an effect nobody announced": (twice("/v1/billing/card"), "intent stands before outcome"),
    "a record that does not verify": (changed(verified="leaf 3 differs"), "the record is whole"),
    "an altered copy that passes": (changed(found=None), "an altered copy is found"),
    "the wrong event is named": (changed(found=8), "an altered copy is found"),
    "something is left": (changed(remains=["process 12"]), "nothing is left"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_is_found(lie: str) -> None:
    """Each claim can fail: whatever is wrong with the evidence, the claim it belongs to says so."""
    change, claim = LIES[lie]
    assert claim in failed(change(story()))


def test_every_claim_has_a_lie() -> None:
    """No claim is one that always passes."""
    assert {claim for _, claim in LIES.values()} == {finding.claim for finding in check(story())}


def test_a_denied_write_that_arrives_is_found() -> None:
    """When the person says no, one arrival in production fails the demo."""
    assert "production waited for a person" in failed(twice(PRODUCTION)(story(approved=False)))


def test_empty_evidence_passes_nothing_by_silence() -> None:
    """With no events and no arrivals, only what is about their absence can pass."""
    silent = dataclasses.replace(story(), events=[], journals=Journals(models=[], configuration=[], values={}, stranger_reached=0, stranger_can_count=True))
    assert set(failed(silent)) >= {
        "sealed before it started",
        "the agent is unmodified and reached its model",
        "staging was written, once",
        "production waited for a person",
        "the stranger got nothing",
        "dialling past the proxy was governed all the same",
        "intent stands before outcome",
        "nothing is left",
    }


def test_the_agents_output_is_in_the_record() -> None:
    """Pieces of output, in order, are the text the agent wrote."""
    pieces = [event("run.output", body={"stream": "stdout", "text": text}) for text in ("model: gpt, ", "key: x\n")]
    assert agent_output([*pieces, event("run.ended")]) == "model: gpt, key: x\n"
