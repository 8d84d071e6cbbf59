import dataclasses
from typing import Any

import cedarpy
import msgspec
import pytest
from bench.oracle import outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.critic import evaluate
from bailiwick.critic.action import Action, HttpResource, ModelResource, Verb
from bailiwick.critic.boundary import ApproverGroup, CompiledBoundary, ModelRules, Rule, compile_boundary
from bailiwick.critic.decision import Allow, Decision, Deny, Hold
from bailiwick.critic.evaluate import Critic
from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.ids import RunId

GROUPS = {
    "oncall": ApproverGroup(operators=["ana", "bo"], expires="2h"),
    "leads": ApproverGroup(operators=["cy", "di", "ed"], quorum=2, expires="1h"),
}
MODELS = ModelRules(provider="openai", allow=["gpt-5.2", "o*"])


def compiled(*rules: dict[str, Any], policies: str = "", models: ModelRules | None = MODELS) -> CompiledBoundary:
    written = {"policies/house.cedar": policies} if policies else {}
    return compile_boundary("deployer", [Rule.model_validate(rule) for rule in rules], models, GROUPS, policies=written)


def http(verb: str, host: str, path: str = "/", *, port: int = 443, method: str = "", ambiguous: bool = False) -> Action:
    said = method or {"read": "GET", "write": "PUT", "delete": "DELETE"}.get(verb, "POST")
    resource = HttpResource(scheme="https", host=host, port=port, method=said, path=path, ambiguous=ambiguous)
    return Action(run=RunId("run-1"), agent="deployer", verb=Verb(verb), resource=resource)


def model(name: str, provider: str = "openai") -> Action:
    resource = ModelResource(provider=provider, model=name, endpoint="responses", host="api.openai.com")
    return Action(run=RunId("run-1"), agent="deployer", verb=Verb.CALL_MODEL, resource=resource)


def word(decision: Decision) -> str:
    return type(decision).__name__.lower()


STAGING = {"allow": ["write", "delete"], "http": "config.internal", "path": "/v1/staging/**"}
PRODUCTION = {"hold": ["write"], "http": "config.internal", "path": "/v1/production/**", "approvers": ["oncall"], "wait": "10m"}
READ = {"allow": ["read"], "http": "config.internal"}


def test_the_three_outcomes_name_their_rules() -> None:
    """What is granted is allowed, what needs a person is held, what no rule names is denied with a reason an agent can act on."""
    critic = Critic(compiled(READ, STAGING, PRODUCTION))
    assert critic.decide(http("read", "config.internal", "/anything")) == Allow(rules=("deployer/boundary/0",))
    assert critic.decide(http("write", "config.internal", "/v1/staging/a")) == Allow(rules=("deployer/boundary/1",))
    held = critic.decide(http("write", "config.internal", "/v1/production/a"))
    assert held == Hold(rules=("deployer/boundary/2",), approvers=("oncall",), quorum=1, wait_seconds=600.0, expires_seconds=7200.0, four_eyes=False)
    denied = critic.decide(http("write", "evil.example", "/exfiltrate?secret=1"))
    assert isinstance(denied, Deny)
    assert denied.reason.startswith("no rule of deployer allows write on https://evil.example/exfiltrate;")
    assert denied.retry == "never"


def test_a_signed_action_is_allowed_and_only_that() -> None:
    """With `signed_off` what was held is allowed, what was denied stays denied, and nothing is held again."""
    critic = Critic(compiled(READ, STAGING, PRODUCTION, {"deny": ["write"], "http": "config.internal", "path": "/v1/production/root/**"}))
    assert isinstance(critic.decide(http("write", "config.internal", "/v1/production/a")), Hold)
    assert critic.decide(http("write", "config.internal", "/v1/production/a"), signed_off=True) == Allow(rules=("deployer/boundary/2",))
    for signed_off in (False, True):
        assert isinstance(critic.decide(http("write", "config.internal", "/v1/production/root/a"), signed_off=signed_off), Deny)
        assert isinstance(critic.decide(http("delete", "config.internal", "/v1/production/a"), signed_off=signed_off), Deny)


@pytest.mark.parametrize("kept", ["permit", "forbid"])
def test_either_policy_of_a_hold_alone_allows_nothing_unsigned(kept: str) -> None:
    """The permit asks for the signature itself, and the forbid stands in the way of any other permit: neither leans on the other."""
    whole = compiled(PRODUCTION)
    half = msgspec.structs.replace(whole, policies=[policy for policy in whole.policies if policy.effect == kept])
    critic = Critic(half)
    action = http("write", "config.internal", "/v1/production/a")
    assert word(critic.decide(action)) == ("hold" if kept == "permit" else "deny")
    assert word(critic.decide(action, signed_off=True)) == ("allow" if kept == "permit" else "deny")


def test_a_deny_wins_and_a_hold_goes_before_an_allow() -> None:
    """The strictest rule that matches decides, in whatever order they are written."""
    allow = {"allow": ["write"], "http": "*.internal"}
    hold = {"hold": ["write"], "http": "a.internal", "approvers": ["oncall"]}
    deny = {"deny": ["write"], "http": "*.a.internal"}
    for rules in ([allow, hold, deny], [deny, hold, allow]):
        critic = Critic(compiled(*rules))
        assert word(critic.decide(http("write", "b.internal"))) == "allow"
        assert word(critic.decide(http("write", "a.internal"))) == "hold"
        assert word(critic.decide(http("write", "x.a.internal"))) == "deny"


def test_several_holds_make_the_strictest() -> None:
    """Rules that hold the same action together ask for every group, the most signatures, four eyes if one does, and the shortest times."""
    first = {"hold": ["write"], "http": "a.internal", "approvers": ["oncall"], "wait": "5m", "four_eyes": True}
    second = {"hold": ["write"], "http": "*.internal", "path": "/x/**", "approvers": ["leads"], "wait": "7m"}
    decided = Critic(compiled(first, second)).decide(http("write", "a.internal", "/x/y"))
    assert decided == Hold(
        rules=("deployer/boundary/0", "deployer/boundary/1"),
        approvers=("leads", "oncall"),
        quorum=2,
        wait_seconds=300.0,
        expires_seconds=3600.0,
        four_eyes=True,
    )


@pytest.mark.parametrize("path", ["/v1/staging//a", "/v1/staging/%2e%2e/production/a", "/v1/staging/..%2Fproduction", "//v1/staging/a", "/v1/staging/..;/a"])
def test_an_ambiguous_path_is_granted_by_no_rule_with_a_path(path: str) -> None:
    """A path two servers may read differently is not inside /v1/staging for us."""
    decided = Critic(compiled(STAGING, PRODUCTION)).decide(http("write", "config.internal", path))
    assert isinstance(decided, Deny)
    assert "two ways" in decided.reason


def test_an_ambiguous_path_is_refused_by_every_rule_with_a_path() -> None:
    """A deny or hold on some path cannot be dodged by writing the path so that we read it otherwise than the server."""
    critic = Critic(compiled(READ, {"deny": ["read"], "http": "config.internal", "path": "/secret/**"}))
    assert word(critic.decide(http("read", "config.internal", "/x"))) == "allow"
    for path in ("/secret/a", "//secret/a", "/x/../secret/a", "/%2Fsecret", "/x/%2e%2e/secret/a"):
        assert word(critic.decide(http("read", "config.internal", path))) == "deny"
    assert word(critic.decide(http("read", "config.internal", "/x", ambiguous=True))) == "deny"
    held = Critic(compiled({"allow": ["write"], "http": "config.internal"}, PRODUCTION))
    assert word(held.decide(http("write", "config.internal", "/v1//production/a"))) == "hold"


def test_escapes_do_not_dodge_a_rule() -> None:
    """A path is compared with its needless escapes undone and the others in capitals."""
    critic = Critic(compiled(READ, {"deny": ["read"], "http": "config.internal", "path": "/s:crét/**"}))
    for path in ("/s:cr%C3%A9t/a", "/s%3Acr%c3%a9t/a", "/%73%3acr%C3%A9t/a", "/%73:cr%C3%A9t/a", "/s%3Acr%C3%A9t/a"):
        assert word(critic.decide(http("read", "config.internal", path))) == "deny"
    assert word(Critic(compiled(STAGING)).decide(http("write", "config.internal", "/v1/%73taging/a"))) == "allow"


def test_a_verdict_is_of_one_action() -> None:
    """A policy that looks at the action in its conditions is asked again for another verb, although all other facts are the same."""
    house = '@id("house/verb") forbid (principal, action, resource is Host) when { action == Action::"http.delete" };'
    critic = Critic(compiled(STAGING, policies=house))
    said = [word(critic.decide(http(verb, "config.internal", "/v1/staging/a", method="PUT"))) for verb in ("write", "delete", "write")]
    assert said == ["allow", "deny", "allow"]


def test_a_host_is_one_host_however_it_is_written() -> None:
    """Case and a final dot make no difference; a name that only looks alike is another."""
    critic = Critic(
        compiled({"allow": ["read"], "http": "API.Example.org."}, {"deny": ["read"], "http": "*.bad.example"}, {"allow": ["read"], "http": "*.example"})
    )
    for host in ("api.example.org", "API.EXAMPLE.ORG", "api.example.org."):
        assert word(critic.decide(http("read", host))) == "allow"
    for host in ("xapi.example.org", "api.example.org.evil.com", "example.org", "a.bad.example", "A.BAD.EXAMPLE."):
        assert word(critic.decide(http("read", host))) == "deny"
    for host in ("api.example.org..", "api.example.org\x00.evil.com", "api.example.org/x", "", "0x7f.1"):
        decided = critic.decide(http("read", host))
        assert isinstance(decided, Deny)
        assert "not a host name" in decided.reason


def test_a_port_is_granted_narrowly_and_refused_widely() -> None:
    """An allow without a port is for 80 and 443, a deny without one for all, and a port that is named is that port alone."""
    critic = Critic(
        compiled({"allow": ["read"], "http": "a.internal"}, {"allow": ["read"], "http": "b.internal:8443"}, {"deny": ["read"], "http": "c.internal"})
    )
    assert [word(critic.decide(http("read", "a.internal", port=port))) for port in (80, 443, 8443, 22)] == ["allow", "allow", "deny", "deny"]
    assert [word(critic.decide(http("read", "b.internal", port=port))) for port in (80, 443, 8443)] == ["deny", "deny", "allow"]
    wide = Critic(compiled({"allow": ["read"], "http": "c.internal:8443"}, {"deny": ["read"], "http": "c.internal", "path": "/x/**"}))
    assert [word(wide.decide(http("read", "c.internal", path, port=8443))) for path in ("/y/", "/x/")] == ["allow", "deny"]


def test_methods_narrow_a_rule() -> None:
    """A rule with methods is for those, in capitals or not."""
    critic = Critic(compiled({"allow": ["write"], "http": "a.internal", "methods": ["PUT"]}))
    assert [word(critic.decide(http("write", "a.internal", method=method))) for method in ("PUT", "put", "POST")] == ["allow", "allow", "deny"]


def test_models_are_allowed_by_name_or_beginning() -> None:
    """A model is allowed if its provider's list names it, or the beginning of its name; another provider's model of that name is not."""
    critic = Critic(compiled(READ))
    assert [word(critic.decide(model(name))) for name in ("gpt-5.2", "gpt-5.2-pro", "o3", "gpt-4", "")] == ["allow", "deny", "allow", "deny", "deny"]
    assert word(critic.decide(model("gpt-5.2", provider="anthropic"))) == "deny"


def test_what_has_no_rules_is_denied() -> None:
    """Another agent's action, a verb without a protocol, an empty boundary: denied, each saying why."""
    critic = Critic(compiled(READ))
    other = critic.decide(dataclasses.replace(http("read", "config.internal"), agent="intruder"))
    assert isinstance(other, Deny)
    assert "intruder" in other.reason
    assert word(critic.decide(http("send", "config.internal"))) == "deny"
    assert word(critic.decide(dataclasses.replace(model("gpt-5.2"), verb=Verb.READ))) == "deny"
    assert word(Critic(compiled(models=None)).decide(http("read", "config.internal"))) == "deny"


def broken(boundary: CompiledBoundary) -> CompiledBoundary:
    """A boundary whose deny errs when it is evaluated: what a schema check would have refused, handed over all the same."""
    (index,) = [number for number, policy in enumerate(boundary.policies) if policy.effect == "forbid"]
    policy = msgspec.structs.replace(boundary.policies[index], text=boundary.policies[index].text.replace("context.method", "context.nothing"))
    return msgspec.structs.replace(boundary, policies=[*boundary.policies[:index], policy, *boundary.policies[index + 1 :]])


@pytest.mark.parametrize("signed_off", [False, True])
def test_an_evaluation_error_is_a_deny_that_names_it(signed_off: bool) -> None:
    """Cedar leaves out a forbid that errs; we do not: the action is denied, in either evaluation."""
    boundary = broken(compiled(READ, {"deny": ["read"], "http": "config.internal", "methods": ["TRACE"]}))
    decided = Critic(boundary).decide(http("read", "config.internal"), signed_off=signed_off)
    assert isinstance(decided, Deny)
    assert "evaluation failed" in decided.reason
    assert "nothing" in decided.reason


def test_an_error_that_only_signing_brings_out_is_a_deny() -> None:
    """The second evaluation is looked at for errors as well as the first."""
    house = '@id("house/x") @approvers("oncall") forbid (principal, action, resource is Host) when { context.signed_off && context.method == "TRACE" };'
    boundary = broken(compiled({"allow": ["read"], "http": "a.internal"}, policies=house))
    held = Critic(compiled(PRODUCTION, policies=house))
    assert word(held.decide(http("write", "config.internal", "/v1/production/a"))) == "hold"
    assert word(Critic(boundary).decide(http("read", "a.internal"))) == "allow"
    assert word(Critic(boundary).decide(http("read", "a.internal"), signed_off=True)) == "deny"


def test_a_request_the_schema_refuses_is_a_deny() -> None:
    """A fact of the wrong type, a surrogate, a port beyond 64 bits: denied, nothing raised."""
    critic = Critic(compiled(READ))
    for changed in ({"scheme": 7}, {"method": "\ud800"}, {"port": 2**70}, {"port": True}):
        action = http("read", "config.internal")
        resource = dataclasses.replace(action.resource, **changed)  # type: ignore[arg-type]
        assert word(critic.decide(dataclasses.replace(action, resource=resource))) == "deny"


class PanicException(BaseException):
    """As the engine's own, which cannot be imported, is called."""


@pytest.mark.parametrize("error", [RuntimeError("out of order"), ValueError("?"), RecursionError(), MemoryError(), PanicException("a bug of the engine")])
def test_a_policy_engine_that_fails_is_a_deny(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Whatever the engine raises, a panic included, the action is denied and the critic named; what is not its own is let through."""
    failing = [error]

    def fails(*_arguments: object, **_named: object) -> object:
        raise failing[0]

    critic = Critic(compiled(READ))
    with monkeypatch.context() as broken_engine:
        broken_engine.setattr(cedarpy, "is_authorized", fails)
        for decided in (critic.decide(http("read", "config.internal")), critic.decide_afresh(http("read", "config.internal"))):
            assert isinstance(decided, Deny)
            assert decided.reason.startswith(f"the critic failed ({type(error).__name__})")
    assert isinstance(critic.decide(http("read", "config.internal")), Allow)  # a failure is not remembered
    monkeypatch.setattr(cedarpy, "is_authorized", fails)
    failing[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        critic.decide_afresh(http("read", "config.internal", "/other"))


def test_no_decision_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that neither allows nor denies, and does not say why, is not taken for one that found no rule."""
    critic = Critic(compiled(READ))
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_, **__: cedarpy.AuthzResult({"decision": "NoDecision"}))
    decided = critic.decide(http("read", "config.internal"))
    assert isinstance(decided, Deny)
    assert "evaluation failed: no decision" in decided.reason


def test_an_operators_policy_tightens_and_holds() -> None:
    """A house policy may forbid what rules allow, and hold it for the people its annotation names."""
    house = """
    // nobody deletes on a schedule
    @id("house/no-deletes") forbid (principal, action == Action::"http.delete", resource);
    @id("house/posts-are-signed") @approvers("leads") @wait("1m") @four_eyes("true")
    forbid (principal, action, resource is Host) when { context.method == "POST" && !context.signed_off };
    """
    critic = Critic(compiled(STAGING, policies=house))
    assert word(critic.decide(http("delete", "config.internal", "/v1/staging/a"))) == "deny"
    assert word(critic.decide(http("write", "config.internal", "/v1/staging/a"))) == "allow"
    held = critic.decide(http("write", "config.internal", "/v1/staging/a", method="POST"))
    assert held == Hold(rules=("house/posts-are-signed",), approvers=("leads",), quorum=2, wait_seconds=60.0, expires_seconds=3600.0, four_eyes=True)
    assert word(critic.decide(http("write", "evil.example", "/", method="POST"))) == "deny"


def test_a_boundary_that_does_not_parse_is_refused_at_once() -> None:
    """Not at the first action."""
    boundary = compiled(READ)
    with pytest.raises(CallerError, match="does not parse"):
        Critic(msgspec.structs.replace(boundary, policies=[msgspec.structs.replace(boundary.policies[0], text="permit (")]))
    with pytest.raises(CallerError, match="does not parse"):
        Critic(msgspec.structs.replace(boundary, cedar_schema="entity"))


HOSTS = ["a.internal", "b.internal", "x.a.internal", "internal", "y.x.a.internal", "c.example.org"]
PATTERNS = ["a.internal", "b.internal", "*.internal", "*.a.internal", "a.internal:8443", "*.internal:8443", "c.example.org", "A.Internal"]
GLOBS = ["/v1/**", "/v1/a/**", "/v1/*/b", "/**", "/**/b", "/v1", "/v1/a*/**", "/*", "/v1/a/b/c/**", "/v1/*/**/c", "/"]
PARTS = ["v1", "a", "b", "c", "ab", ".."]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["allow", "allow", "hold", "deny"]))
    rule: dict[str, Any] = {
        kind: draw(st.lists(st.sampled_from(["read", "write", "delete"]), min_size=1, unique=True)),
        "http": draw(st.sampled_from(PATTERNS)),
    }
    if draw(st.booleans()):
        rule["path"] = draw(st.sampled_from(GLOBS))
    if draw(st.integers(0, 4)) == 0:
        rule["methods"] = draw(st.lists(st.sampled_from(["PUT", "POST", "GET"]), min_size=1, unique=True))
    if kind == "hold":
        rule["approvers"] = ["oncall"]
    return rule


@st.composite
def actions(draw: st.DrawFn) -> Action:
    verb = draw(st.sampled_from(["read", "write", "delete"]))
    path = "/" + "/".join(draw(st.lists(st.sampled_from(PARTS), max_size=5)))
    return http(
        verb,
        draw(st.sampled_from(HOSTS)),
        path + draw(st.sampled_from(["", "/", "//", "%2F"])),
        port=draw(st.sampled_from([80, 443, 8443])),
        method=draw(st.sampled_from(["PUT", "POST", "GET"])),
        ambiguous=draw(st.integers(0, 9)) == 0,
    )


def unchecked(written: list[dict[str, Any]], policies: str = "") -> CompiledBoundary:
    """Compiled although rules may add nothing to each other, which `check` would complain of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bailiwick.critic.boundary.check", lambda *_: [])
        return compiled(*written, policies=policies)


@settings(max_examples=150, deadline=None)
@given(st.lists(rules(), max_size=8), st.lists(actions(), min_size=1, max_size=12))
def test_a_decision_is_what_the_oracle_says(written: list[dict[str, Any]], asked: list[Action]) -> None:
    """Cedar, index, compiled globs and all decide as a page of plain Python does; and what is remembered is what is decided afresh."""
    critic = Critic(unchecked(written))
    for action in asked:
        resource = action.resource
        assert isinstance(resource, HttpResource)
        expected = outcome(
            written,
            verb=action.verb.value,
            host=resource.host,
            port=resource.port,
            method=resource.method,
            path=resource.path,
            ambiguous=resource.ambiguous,
        )
        fresh = critic.decide_afresh(action)
        assert word(fresh) == expected
        assert critic.decide(action) == fresh
        assert critic.decide(action) == fresh
        signed = critic.decide_afresh(action, signed_off=True)
        assert word(signed) == ("deny" if expected == "deny" else "allow")
        assert critic.decide(action, signed_off=True) == signed


@settings(max_examples=60, deadline=None)
@given(st.lists(rules(), max_size=8), st.lists(actions(), min_size=1, max_size=6))
def test_leaving_policies_out_changes_no_decision(written: list[dict[str, Any]], asked: list[Action]) -> None:
    """The policies the index chooses decide as all policies of the action do."""
    scope = '@id("house/x") @approvers("leads") forbid (principal, action, resource is Host)'
    boundary = unchecked(written, policies=scope + ' when { context has path && context.path like "*b" && !context.signed_off };')
    narrow, wide = Critic(boundary), Critic(boundary)
    for index in wide._index.values():
        index.candidates = lambda _asked: tuple(range(len(boundary.policies)))  # type: ignore[method-assign]
    for action in asked:
        assert word(narrow.decide_afresh(action)) == word(wide.decide_afresh(action))


HOUSE = [
    '@id("house/scheme") forbid (principal, action, resource is Host) when { context.scheme == "http" };',
    '@id("house/segments") permit (principal, action == Action::"http.read", resource) when { context.segments == 2 && context.front2 like "a*" };',
    '@id("house/back") @approvers("leads") permit (principal, action, resource is Host) when { context.signed_off && context.back1 == "b" };',
    '@id("house/host") permit (principal == Agent::"deployer", action == Action::"http.read", resource) when { resource == Host::"b.internal" };',
    '@id("house/any") @approvers("oncall") forbid (principal, action, resource is Host) when { context.method == "POST" && !context.signed_off };',
    '@id("house/model") forbid (principal, action, resource is Model) when { context.endpoint == "responses" };',
    '@id("house/verb") forbid (principal, action, resource is Host) when { action == Action::"http.delete" };',
    '@id("house/unclear") forbid (principal, action in [Action::"http.write", Action::"http.delete"], resource) unless { !context.ambiguous };',
]
ASKED = st.lists(st.tuples(actions(), st.sampled_from(["http", "https"]), st.booleans()), max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.lists(rules(), max_size=4), st.sets(st.sampled_from(HOUSE)), ASKED)
def test_what_is_remembered_is_what_is_decided(written: list[dict[str, Any]], house: set[str], asked: list[tuple[Action, str, bool]]) -> None:
    """Whatever facts the operator's policies read, in whatever order questions come, a remembered decision is the one a critic without memory gives."""
    boundary = unchecked(written, policies="\n".join(sorted(house)))
    critic, forgetful = Critic(boundary), Critic(boundary)
    for action, scheme, signed_off in asked:
        assert isinstance(action.resource, HttpResource)
        action = dataclasses.replace(action, resource=dataclasses.replace(action.resource, scheme=scheme))
        assert critic.decide(action, signed_off=signed_off) == forgetful.decide_afresh(action, signed_off=signed_off)
        critic._decisions.clear()  # so that the verdicts under the facts are what is tried


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that asks for ever new paths, hosts and long names makes nothing grow without end."""
    monkeypatch.setattr(evaluate, "VERDICTS_MAX", 10)
    critic = Critic(compiled(READ, {"allow": ["read"], "http": "*.example.org", "path": "/a/*"}))
    for number in range(50):
        critic.decide(http("read", f"h{number}.example.org", f"/a/{number}"))
        critic.decide(http("read", "config.internal", f"/{number}" + "x" * 5_000))
    assert len(critic._decisions) <= 10
    assert len(critic._verdicts) <= 10
    assert all(len(str(key)) < 2_000 for key in [*critic._decisions, *critic._verdicts])


def test_facts_no_policy_reads_share_a_verdict() -> None:
    """A verdict is kept under the facts that the candidates read: paths nobody asks about are one entry."""
    critic = Critic(compiled(READ))
    for number in range(20):
        critic.decide(http("read", "config.internal", f"/{number}"))
    assert len(critic._verdicts) == 1


def test_a_reason_holds_no_query_and_nothing_hidden() -> None:
    """What is shown of a refused resource cannot carry a secret of its query or rewrite a terminal."""
    action = http("write", "evil.example", "/\x1b[2J\u202e" + "a" * 1_000)
    assert isinstance(action.resource, HttpResource)
    decided = Critic(compiled(READ)).decide(dataclasses.replace(action, resource=dataclasses.replace(action.resource, query="token=hush")))
    assert isinstance(decided, Deny)
    assert "hush" not in decided.reason
    assert decided.reason.isprintable()
    assert len(decided.reason) < 700
