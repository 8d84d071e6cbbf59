import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.critic.boundary import ApproverGroup, CompiledBoundary, Rule, compile_boundary
from bailiwick.critic.policyfile import EVERY_FACT, read_all, reads_of, statements
from bailiwick.kernel.document import Invalid

GROUPS = {"oncall": ApproverGroup(operators=["ana"])}
FORBID = '@id("house/x") forbid (principal, action, resource is Host)'


def compiled(text: str, **more: str) -> CompiledBoundary:
    rules = [Rule.model_validate({"allow": ["read"], "http": "a.org"})]
    return compile_boundary("deployer", rules, None, GROUPS, policies={"policies/house.cedar": text} | more)


def findings(text: str, **more: str) -> list[str]:
    with pytest.raises(Invalid) as caught:
        compiled(text, **more)
    return [str(finding) for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("permit (", "is not a Cedar policy"),
        ("forbid (principal, action, resource);", "the policy has no id"),
        ('@id("House") forbid (principal, action, resource);', "the id 'House'"),
        ('@id("house/x") @note("y") forbid (principal, action, resource);', "annotation @note is unknown"),
        ('@id("house/x") forbid (principal == ?principal, action, resource);', "is a template"),
        ('@id("house/x") forbid (principal, action == Action::"http.wirte", resource);', 'unrecognized action `Action::"http.wirte"`'),
        ('@id("house/x") forbid (principal is User, action, resource);', "User"),
        (FORBID + ' when { context.pth == "/" };', "pth"),
        (FORBID + " when { context.path == 1 };", "types"),
        ('@id("house/x") forbid (principal, action, resource == Host::"A.org");', "'A.org' matches nothing"),
        ('@id("house/x") forbid (principal, action, resource == Host::"a.org:443");', "matches nothing"),
        ('@id("house/x") forbid (principal, action, resource == Model::"gpt-5.2");', "provider and model"),
        (FORBID + " when { !context.signed_off };", "names nobody"),
        ('@approvers("ghosts") ' + FORBID + " when { !context.signed_off };", "'ghosts' is not declared"),
        ('@approvers("oncall") @wait("soon") ' + FORBID + " when { !context.signed_off };", "a duration such as 30m"),
        ('@approvers("oncall") @four_eyes("yes") ' + FORBID + " when { !context.signed_off };", "@four_eyes is 'yes'"),
        ('@id("deployer/boundary/0") forbid (principal, action, resource);', "is taken"),
        (FORBID + ";\n" + FORBID + ";", "is taken"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(text: str, says: str) -> None:
    """Whether Cedar, the schema or the configuration is against it, the refusal says what."""
    said = findings(text)
    assert any(says in line for line in said), said


def test_what_is_wrong_has_its_line() -> None:
    """The line of the statement, past comments, strings with semicolons, and other files."""
    good = '// a ; comment\n@id("house/a")\nforbid (principal, action, resource is Host)\n  when { context.path like "*;*" };\n\n'
    said = findings(good + '// another\n\n@id("house/b") forbid (principal, action, resource is Hots);\n', **{"policies/z.cedar": "\n\nforbid"})
    assert list(dict.fromkeys(line.split(": ")[0] for line in said)) == ["policies/house.cedar:8:1", "policies/z.cedar:3:1"]


def test_every_file_and_statement_is_told_of_at_once() -> None:
    """Not only the first."""
    assert len(findings("forbid;\npermit;\n" + FORBID + " when { context.x };", **{"policies/b.cedar": "nonsense"})) >= 4


def test_a_policy_of_another_agent_is_checked_and_left_out() -> None:
    """It cannot match here; what is wrong in it is still said."""
    assert len(compiled('@id("house/x") forbid (principal == Agent::"reviewer", action, resource);').policies) == 1
    assert len(compiled('@id("house/x") forbid (principal == Agent::"deployer", action, resource);').policies) == 2
    assert findings('@id("house/x") forbid (principal == Agent::"reviewer", action == Action::"x", resource);')


def test_segments_a_policy_asks_for_are_told() -> None:
    """An operator may ask for `front3` although no rule does; beyond the limit the schema refuses."""
    assert compiled(FORBID + ' when { context.front3 == "x" && context.back1 == "y" };').front == 3
    assert findings(FORBID + ' when { context.front17 == "x" };')
    assert findings(FORBID + ' when { context.front0 == "x" };')


def test_the_facts_a_policy_reads_are_found_wherever_it_reads_them() -> None:
    """In conditions, sets, branches and `has`; taking the context whole is reading all."""
    scope = "forbid (principal, action, resource)"
    branches = 'if context.a then ["x"].contains(context.b) else !(context.c == 1)'
    assert reads_of(f'{scope} when {{ {branches} }} unless {{ context has d && context["e"] }};') == list("abcde")
    assert reads_of(scope + " when { context == {} };") == [EVERY_FACT]
    assert reads_of(scope + ";") == []


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab";/\\\n @(){}', max_size=40))
def test_a_file_is_cut_without_loss(text: str) -> None:
    """Whatever is in a file that is not a comment is in some statement, in order: nothing is skipped over."""
    cut = [statement for _, statement in statements(text)]
    assert all(statement for statement in cut)
    read_all({"x.cedar": text})
    if "/" not in text:
        assert "".join("".join(cut).split()) == "".join(text.split())
