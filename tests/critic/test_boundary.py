from typing import Any

import cedarpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bailiwick.critic.boundary import ApproverGroup, CompiledBoundary, ModelRules, Rule, compile_boundary, render_policy
from bailiwick.kernel.errors import CallerError

GROUPS = {"oncall": ApproverGroup(operators=["bo", "ana"])}
RULES: list[dict[str, Any]] = [
    {"allow": ["read"], "http": "config.internal"},
    {"hold": ["write"], "http": "config.internal", "path": "/v1/*/production/**", "approvers": ["oncall"], "wait": "5m"},
    {"deny": ["delete"], "http": "*.internal:8443"},
]


def compiled(rules: list[dict[str, Any]] | None = None, agent: str = "deployer", groups: dict[str, ApproverGroup] | None = None) -> CompiledBoundary:
    written = [Rule.model_validate(rule) for rule in (RULES if rules is None else rules)]
    return compile_boundary(agent, written, ModelRules(provider="openai", allow=["gpt-5.2"]), GROUPS if groups is None else groups)


def test_it_travels_as_text() -> None:
    """A compiled boundary comes out of its JSON as it went in, with the digest it had."""
    boundary = compiled()
    again = CompiledBoundary.from_json(boundary.to_json())
    assert again == boundary
    assert again.digest == boundary.digest
    assert boundary.ports == []
    assert boundary.hosts == ["config.internal"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', "\ud800", compiled().to_json().replace('"version":1', '"version":2')])
def test_text_that_is_no_boundary_is_refused(text: str) -> None:
    """Also one of another version."""
    with pytest.raises(CallerError, match="not understood"):
        CompiledBoundary.from_json(text)


def test_the_digest_is_of_everything_that_was_written() -> None:
    """It is the same for the same configuration, and another as soon as a rule, a group or its people change."""
    same = compiled().digest
    assert compiled().digest == same
    changed = [
        compiled(RULES[:2]).digest,
        compiled([*RULES[:1], RULES[1] | {"wait": "6m"}, RULES[2]]).digest,
        compiled([*RULES[:1], RULES[1] | {"four_eyes": True}, RULES[2]]).digest,
        compiled(groups={"oncall": ApproverGroup(operators=["ana", "bo", "cy"])}).digest,
        compiled(groups={"oncall": ApproverGroup(operators=["ana", "bo"], quorum=2)}).digest,
        compiled(groups={"oncall": ApproverGroup(operators=["ana", "bo"], expires="1h")}).digest,
        compiled(agent="other").digest,
    ]
    assert len({same, *changed}) == len(changed) + 1


def test_a_policy_has_the_name_of_its_rule() -> None:
    """A hold is two policies of one rule."""
    assert [(policy.id, policy.rule, policy.effect) for policy in compiled().policies] == [
        ("deployer/boundary/0", "deployer/boundary/0", "permit"),
        ("deployer/boundary/1", "deployer/boundary/1", "permit"),
        ("deployer/boundary/1/unsigned", "deployer/boundary/1", "forbid"),
        ("deployer/boundary/2", "deployer/boundary/2", "forbid"),
        ("deployer/models/0", "deployer/models/0", "permit"),
    ]


def test_what_is_shown_is_what_is_asked() -> None:
    """`bailiwick policy show` prints the Cedar text itself, which parses to the policies that decide, each under its line of the configuration."""
    boundary = compiled()
    shown = render_policy(boundary)
    parsed = cedarpy.policies_to_pst(shown).static_policies.values()
    assert {policy.annotations["id"] for policy in parsed} == {policy.id for policy in boundary.policies}
    assert "// {hold: [write], http: config.internal, path: /v1/*/production/**, approvers: [oncall], wait: 300s}\n@id(" in shown
    assert boundary.digest in shown


def test_rules_with_faults_are_not_compiled() -> None:
    """Whoever compiles without checking is told what checking would have said."""
    with pytest.raises(CallerError, match="'ghosts' is not declared"):
        compiled([{"hold": ["read"], "http": "a.org", "approvers": ["ghosts"]}])


NASTY = st.text(max_size=30) | st.sampled_from(
    [
        '"); permit (principal, action, resource); //',
        "x\n}; permit (principal, action, resource);",
        '\\"',
        "a\r\npermit(principal,action,resource);",
        "\u2028permit (principal, action, resource);",
        "*",
        "\\*",
    ]
)


@settings(max_examples=150, deadline=None)
@given(agent=NASTY, group=NASTY, path=NASTY, host=NASTY, method=NASTY, model=NASTY)
@example(agent='d"', group="x\npermit (principal, action, resource);", path='"*', host="a.org", method="PUT", model="o")
def test_nothing_an_operator_writes_becomes_policy_text(agent: str, group: str, path: str, host: str, method: str, model: str) -> None:
    """Whatever stands in a name, path, method or comment: as many policies as rules make, each for this agent alone, compiled and shown alike."""

    def accepted(rule: dict[str, Any]) -> Rule | None:
        try:
            return Rule.model_validate(rule)
        except ValueError:
            return None

    tried = [
        accepted({"allow": ["read"], "http": "a.org", "path": f"/{path}"}),
        accepted({"allow": ["write"], "http": host}),
        accepted({"allow": ["delete"], "http": "b.org", "methods": [method]}),
        accepted({"hold": ["execute"], "http": "c.org", "approvers": [group]}),
    ]
    rules = [rule for rule in tried if rule is not None]
    try:
        models: ModelRules | None = ModelRules(provider="openai", allow=[model])
    except ValueError:
        models = None
    if any(0xD800 <= ord(character) < 0xE000 for character in agent + group):
        return
    boundary = compile_boundary(agent, rules, models, {group: ApproverGroup(operators=["ana"])})
    expected = len(rules) + sum(rule.kind == "hold" for rule in rules) + (models is not None)
    for text in ("\n".join(policy.text for policy in boundary.policies), render_policy(boundary)):
        parsed = list(cedarpy.policies_to_pst(text).static_policies.values()) if expected else []
        assert len(parsed) == expected
        assert all(policy.principal.entity.id == agent for policy in parsed)
        assert {policy.annotations["id"] for policy in parsed} == {policy.id for policy in boundary.policies}
