import re
from typing import Any

import pytest

from bailiwick.critic.rules import ApproverGroup, ModelRules, Rule, check, grants_port
from bailiwick.kernel.document import Invalid, Section, parse, validate

HELD = {"approvers": ["oncall"]}
GROUPS = {"oncall": ApproverGroup(operators=["ana", "bo"])}


class Agent(Section):
    boundary: list[Rule]


def findings(rule: str) -> list[str]:
    """What is said of one rule, standing on line 2."""
    with pytest.raises(Invalid) as caught:
        validate(parse(f"boundary:\n  - {rule}\n".encode(), file="b.yaml"), Agent)
    return [str(finding) for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("rule", "place", "says"),
    [
        ("{http: a.org}", "2:", "none of allow, hold, deny"),
        ("{allow: [read], deny: [read], http: a.org}", "2:", "allow and deny of allow, hold, deny"),
        ("{allow: [raed], http: a.org}", "2:6: boundary[0].allow", "'raed' is unknown for http; must be one of read, write, delete, execute"),
        ("{allow: [call-model], http: a.org}", "2:6", "under `models`"),
        ("{allow: [], http: a.org}", "2:6", "no verb is named"),
        ("{allow: [read, read], http: a.org}", "2:6", "named twice"),
        ("{allow: [read]}", "2:", "is missing"),
        ("{allow: [read], http: 'https://a.org'}", "2:21: boundary[0].http", "not understood"),
        ("{allow: [read], http: a.org, path: v1}", "2:34: boundary[0].path", "does not begin with a slash"),
        ("{allow: [read], http: a.org, methods: [get]}", "2:34: boundary[0].methods", "in capitals"),
        ("{hold: [write], http: a.org}", "2:", "names no approvers"),
        ("{allow: [write], http: a.org, four_eyes: true}", "2:", "four_eyes belongs to a hold"),
        ("{deny: [write], http: a.org, wait: 5m}", "2:", "wait belongs to a hold"),
        ("{hold: [write], http: a.org, approvers: [x, x]}", "2:", "named twice"),
        ("{hold: [write], http: a.org, approvers: [x], wait: soon}", "boundary[0].wait", "a duration such as 30m"),
        ("{allow: [execute], mcp: tickets, tools: [search]}", "2:", "no listener serves MCP in this version; remove the rule"),
        ("{allow: [read], postgres: orders}", "2:", "no listener serves PostgreSQL"),
        ("{allow: [read], git: x}", "2:", "no listener serves git"),
        ("{allow: [read], a2a: x}", "2:", "no listener serves A2A"),
        ("{allow: [read], http: a.org, patch: /x}", "boundary[0].patch", "not a known key"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_where_it_stands(rule: str, place: str, says: str) -> None:
    """Each mistake has its line, what was expected and the way out."""
    said = findings(rule)
    assert any(place in line and says in line for line in said), said


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({"operators": []}, "no operators"),
        ({"operators": ["a", "a"]}, "named twice"),
        ({"operators": ["a"], "quorum": 2}, "quorum 2 is more than the group's 1"),
        ({"operators": ["a"], "quorum": 0}, "greater than or equal to 1"),
        ({"operators": ["a"], "expires": 0}, "more than 0"),
    ],
)
def test_a_group_that_could_never_sign_is_refused(group: dict[str, Any], says: str) -> None:
    """A quorum must be reachable, in time that is left."""
    with pytest.raises(ValueError, match=re.escape(says)):
        ApproverGroup.model_validate(group)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"provider": "openai", "allow": []}, "no model is named"),
        ({"provider": "Open AI", "allow": ["x"]}, "lower case"),
        ({"provider": "openai", "allow": ["*"]}, "not understood"),
        ({"provider": "openai", "allow": ["a*b"]}, "not understood"),
        ({"provider": "openai", "allow": ["x"], "budget": {"usd": -1}}, "US dollars"),
        ({"provider": "openai", "allow": ["x"], "budget": {"tokens": -1}}, "greater than or equal to 0"),
    ],
)
def test_models_that_are_wrong_are_refused(models: dict[str, Any], says: str) -> None:
    """A provider, some models, and a budget that is an amount."""
    with pytest.raises(ValueError, match=re.escape(says)):
        ModelRules.model_validate(models)


def test_money_is_exact() -> None:
    """US dollars become millionths without passing through a float."""
    assert ModelRules.model_validate({"provider": "openai", "allow": ["x"], "budget": {"usd": 0.29}}).budget.microusd == 290_000
    assert ModelRules(provider="openai", allow=["x"]).budget.microusd is None


def checked(*rules: dict[str, Any], models: Any = None) -> list[tuple[tuple[str | int, ...], str]]:
    return check("deployer", [Rule.model_validate(rule) for rule in rules], models, GROUPS)


def test_a_group_nobody_declared_is_found_where_it_is_named() -> None:
    """With the path in the document, from its root."""
    ((path, message),) = checked({"hold": ["write"], "http": "a.org", "approvers": ["oncall", "ghosts"]})
    assert path == ("agents", "deployer", "boundary", 0, "approvers", 1)
    assert message == "approver group 'ghosts' is not declared; oncall declared under `approvers`"


@pytest.mark.parametrize(
    ("rules", "dead", "says"),
    [
        ([{"deny": ["write"], "http": "*.org"}, {"allow": ["write"], "http": "a.org", "path": "/x"}], 1, "boundary[0] denies all of it"),
        ([{"allow": ["read"], "http": "a.org"}, {"deny": ["read", "write"], "http": "a.org"}], 0, "boundary[1] denies all of it"),
        (
            [{"hold": ["write"], "http": "a.org", "approvers": ["oncall"]}, {"allow": ["write"], "http": "a.org", "path": "/x/**"}],
            1,
            "boundary[0] holds all of it",
        ),
        (
            [{"allow": ["read"], "http": "a.org", "path": "/x/**"}, {"allow": ["read", "write"], "http": "A.org.", "path": "/x/**"}],
            0,
            "boundary[1] says it already",
        ),
        ([{"allow": ["read"], "http": "a.org"}, {"allow": ["read"], "http": "a.org"}], 1, "boundary[0] says it already"),
        ([{"deny": ["read"], "http": "a.org"}, {"deny": ["read"], "http": "a.org", "path": "/x/y/**"}], 1, "boundary[0] says it already"),
        ([{"hold": ["write"], "http": "a.org", "approvers": ["oncall"]}] * 2, 1, "same actions as boundary[0]"),
    ],
)
def test_a_rule_that_changes_nothing_is_found(rules: list[dict[str, Any]], dead: int, says: str) -> None:
    """Once, at the rule that is dead, naming the one that makes it so."""
    ((path, message),) = checked(*rules)
    assert path == ("agents", "deployer", "boundary", dead)
    assert says in message


@pytest.mark.parametrize(
    "rules",
    [
        [{"allow": ["read"], "http": "a.org"}, {"allow": ["read"], "http": "a.org:8443"}],
        [{"allow": ["read"], "http": "*.org"}, {"allow": ["read"], "http": "org"}],
        [{"allow": ["write"], "http": "a.org"}, {"hold": ["write"], "http": "a.org", "path": "/x/**", "approvers": ["oncall"]}],
        [{"allow": ["write"], "http": "a.org"}, {"deny": ["write"], "http": "a.org", "path": "/x/**"}],
        [{"deny": ["write"], "http": "a.org", "methods": ["PUT"]}, {"allow": ["write"], "http": "a.org"}],
        [{"deny": ["write"], "http": "a.org", "path": "/x/**"}, {"allow": ["write"], "http": "a.org", "path": "/x"}],
        [{"deny": ["write"], "http": "a.org:8443"}, {"allow": ["write"], "http": "a.org"}],
    ],
)
def test_rules_that_narrow_each_other_are_not_complained_of(rules: list[dict[str, Any]]) -> None:
    """Overlap is how exceptions are written."""
    assert checked(*rules) == []


def test_providers_stand_once_and_budgets_too() -> None:
    """A run has one budget."""
    budget = {"tokens": 5}
    models = [ModelRules.model_validate({"provider": name, "allow": ["x"], "budget": budget}) for name in ("openai", "anthropic", "openai")]
    paths = [path for path, _ in checked(models=models)]
    assert paths == [
        ("agents", "deployer", "models", 1, "budget"),
        ("agents", "deployer", "models", 2, "provider"),
        ("agents", "deployer", "models", 2, "budget"),
    ]


def test_ports_that_rules_grant_are_told() -> None:
    """A listener must be where a rule lets the agent go, and needs to be nowhere else."""
    written = [
        {"allow": ["read"], "http": "a.org:8443"},
        {"hold": ["write"], "http": "a.org:9000", "approvers": ["oncall"]},
        {"deny": ["read"], "http": "a.org:22"},
        {"allow": ["read"], "http": "b.org:443"},
    ]
    assert grants_port([Rule.model_validate(rule) for rule in written]) == (8443, 9000)
