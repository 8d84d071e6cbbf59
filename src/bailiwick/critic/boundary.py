"""A boundary compiled: Cedar policies and the schema they were checked against, each policy with what is needed to find it and to explain it.

A rule becomes one policy, a hold two: a permit that asks for `context.signed_off`, and a forbid for as long as it is not, which is what makes the hold
go before an allow. Everything an operator wrote is in the JSON, approver groups included, so the digest changes whenever the boundary does.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from bailiwick.critic import policyfile
from bailiwick.critic.pattern import DEFAULT_PORTS, SEGMENTS_MAX, like, literal, literals
from bailiwick.critic.policyfile import Clauses
from bailiwick.critic.rules import HTTP_VERBS, ApproverGroup, ModelRules, Models, Rule, as_list, check, grants_port
from bailiwick.critic.visible import visible
from bailiwick.kernel.document import Finding, Invalid
from bailiwick.kernel.errors import CallerError

__all__ = ["ApproverGroup", "CompiledBoundary", "HoldTerms", "ModelRules", "Policy", "Rule", "Signers", "check", "compile_boundary"]

MODEL_CALL = "model.call"
_UNSIGNED = "/unsigned"  # ends the id of the second policy of a hold
ACTIONS = (*(f"http.{verb.value}" for verb in HTTP_VERBS), MODEL_CALL)


class HoldTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rule asks of a sign-off. `quorum` and `expires_seconds` are the strictest of its groups."""

    approvers: list[str]
    quorum: int
    wait_seconds: float
    expires_seconds: float
    four_eyes: bool


class Signers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    operators: list[str]
    quorum: int
    expires_seconds: float


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host`, `below` and `lead` are necessary for a match, never sufficient: they only say where it need not be asked. `reads` are the facts of the
    context that its text mentions."""

    id: str
    rule: str
    effect: Literal["permit", "forbid"]
    actions: list[str]
    text: str
    written: str
    host: str | None = None
    below: str | None = None
    lead: list[str] = []
    reads: list[str] = []


class CompiledBoundary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`front` and `back` are how many segments of a path the policies are told from either end. `ports` are those, besides 80 and 443, that rules
    name; `hosts` the exact names rules let be reached."""

    version: Literal[1] = 1
    agent: str
    # (named `cedar_schema` and not `schema`: it is Cedar's, and not this document's)
    cedar_schema: str
    policies: list[Policy]
    holds: dict[str, HoldTerms]
    approvers: dict[str, Signers]
    front: int
    back: int
    ports: list[int]
    hosts: list[str]

    def to_json(self) -> str:
        return msgspec.json.encode(self, order="deterministic").decode()

    @classmethod
    def from_json(cls, text: str) -> "CompiledBoundary":
        """CallerError for what is not a compiled boundary of this version."""
        try:
            return msgspec.json.decode(text.encode(), type=cls)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise CallerError(f"compiled boundary is not understood: {error}; compile it with this version") from error

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.to_json().encode()).hexdigest()}"


def compile_boundary(
    agent: str, rules: Sequence[Rule], models: Models, approvers: Mapping[str, ApproverGroup], *, policies: Mapping[str, str] | None = None
) -> CompiledBoundary:
    """`policies` are the operator's own, Cedar text by file name. Invalid, with file and line, for one that does not fit the schema; CallerError for
    rules that `check` finds fault with."""
    if problems := check(agent, rules, models, approvers):
        raise CallerError("; ".join(message for _, message in problems), code="invalid")
    own, findings = policyfile.read_all(policies or {})
    front = max([rule.glob.depths[0] for rule in rules if rule.glob] + [_depth(own, "front")], default=0)
    back = max([rule.glob.depths[1] for rule in rules if rule.glob] + [_depth(own, "back")], default=0)
    schema = cedar_schema(min(front, SEGMENTS_MAX), min(back, SEGMENTS_MAX))
    findings += [finding for clauses in own for finding in policyfile.check(clauses, schema, agents=None, approvers=frozenset(approvers))]

    compiled: list[Policy] = []
    holds: dict[str, HoldTerms] = {}
    for index, rule in enumerate(rules):
        name = f"{agent}/boundary/{index}"
        compiled += _from_rule(agent, name, rule)
        if rule.approvers and rule.hold is not None:
            holds[name] = _terms([approvers[group] for group in rule.approvers], rule.approvers, rule.wait_seconds, bool(rule.four_eyes))
    for index, entry in enumerate(as_list(models)):
        compiled.append(_from_models(agent, f"{agent}/models/{index}", entry))
    taken = {policy.id for policy in compiled}
    for clauses in own:
        if clauses.id in taken:
            findings.append(Finding(clauses.file, clauses.line, 1, "", f"policy id {clauses.id!r} is taken; choose another"))
        taken.add(clauses.id)
    if findings:
        raise Invalid(findings)
    for clauses in own:
        if clauses.principal not in (None, agent):
            continue  # it can only match another agent
        compiled.append(_from_clauses(clauses))
        if clauses.approvers:
            groups = [approvers[group] for group in clauses.approvers]
            holds[clauses.id] = _terms(groups, clauses.approvers, clauses.wait_seconds, clauses.four_eyes)
    boundary = CompiledBoundary(
        agent=agent,
        cedar_schema=schema,
        policies=compiled,
        holds=holds,
        approvers={
            name: Signers(operators=sorted(group.operators), quorum=group.quorum, expires_seconds=group.expires) for name, group in sorted(approvers.items())
        },
        front=min(front, SEGMENTS_MAX),
        back=min(back, SEGMENTS_MAX),
        ports=list(grants_port(rules)),
        hosts=sorted({rule.host.name for rule in rules if rule.kind != "deny" and not rule.host.below}),
    )
    policyfile.must_validate("\n".join(policy.text for policy in compiled), schema)
    return boundary


def cedar_schema(front: int, back: int) -> str:
    """What policies may speak of. `front1` is a path's first segment, `back1` its last; empty where it has fewer."""
    segments = [f"front{index}: String" for index in range(1, front + 1)] + [f"back{index}: String" for index in range(1, back + 1)]
    http = ["scheme: String", "host: String", "port: Long", "method: String", "path: String", "segments: Long", "ambiguous: Bool", *segments]
    model = ["provider: String", "model: String", "endpoint: String", "host: String"]
    always = ["tainted: Bool", "signed_off: Bool"]
    verbs = ", ".join(literal(action) for action in ACTIONS if action != MODEL_CALL)
    return (
        "entity Agent;\nentity Host;\nentity Model;\n"
        f"type Http = {{ {', '.join(http + always)} }};\n"
        f"type ModelCall = {{ {', '.join(model + always)} }};\n"
        f"action {verbs} appliesTo {{ principal: [Agent], resource: [Host], context: Http }};\n"
        f'action "{MODEL_CALL}" appliesTo {{ principal: [Agent], resource: [Model], context: ModelCall }};\n'
    )


def _depth(own: Sequence[Clauses], end: str) -> int:
    numbers = [fact.removeprefix(end) for clauses in own for fact in clauses.reads if fact.startswith(end)]
    return max((int(number) for number in numbers if number.isdigit() and len(number) < 3), default=0)


def _terms(groups: Sequence[ApproverGroup], names: Sequence[str], wait: float, four_eyes: bool) -> HoldTerms:
    return HoldTerms(
        approvers=list(names),
        quorum=max(group.quorum for group in groups),
        wait_seconds=wait,
        expires_seconds=min(group.expires for group in groups),
        four_eyes=four_eyes,
    )


def _from_rule(agent: str, name: str, rule: Rule) -> list[Policy]:
    match rule.kind:
        case "allow":
            return [_policy(agent, name, name, rule, permit=True, extra=[])]
        case "deny":
            return [_policy(agent, name, name, rule, permit=False, extra=[])]
        case "hold":
            return [
                _policy(agent, name, name, rule, permit=True, extra=["context.signed_off"]),
                _policy(agent, f"{name}{_UNSIGNED}", name, rule, permit=False, extra=["!context.signed_off"]),
            ]


def _policy(agent: str, name: str, rule_name: str, rule: Rule, *, permit: bool, extra: list[str]) -> Policy:
    """A permit is narrow: default ports, plain paths. A forbid is wide: every port, and any path that is ambiguous."""
    host, glob = rule.host, rule.glob
    asked: list[str] = []
    if host.below:
        asked.append(f"context.host like {like('*', '.' + host.name)}")
    if host.port is not None:
        asked.append(f"context.port == {host.port}")
    elif permit:
        asked.append(f"[{', '.join(map(str, DEFAULT_PORTS))}].contains(context.port)")
    if rule.methods is not None:
        asked.append(f"{literals(rule.methods)}.contains(context.method)")
    if glob is not None:
        path = " && ".join(glob.conditions())
        asked.append(f"!context.ambiguous && {path}" if permit else f"(context.ambiguous || ({path}))")
    asked += extra
    actions = [f"http.{verb.value}" for verb in rule.verbs]
    text = _text(
        name,
        "permit" if permit else "forbid",
        agent,
        actions,
        "resource" if host.below else f"resource == Host::{literal(host.name)}",
        asked,
    )
    return Policy(
        id=name,
        rule=rule_name,
        effect="permit" if permit else "forbid",
        actions=actions,
        text=text,
        written=rule.written(),
        host=None if host.below else host.name,
        below=host.name if host.below else None,
        lead=list(glob.lead) if glob else [],
        reads=policyfile.reads_of(text),
    )


def _from_models(agent: str, name: str, entry: ModelRules) -> Policy:
    exact = [model for model in entry.allow if not model.endswith("*")]
    asked = [f"{literals(exact)}.contains(context.model)"] if exact else []
    asked += [f"context.model like {like(model[:-1], '*')}" for model in entry.allow if model.endswith("*")]
    provider = f"context.provider == {literal(entry.provider)}"
    text = _text(name, "permit", agent, [MODEL_CALL], "resource", [provider, f"({' || '.join(asked)})"])
    written = f"models: {{provider: {entry.provider}, allow: [{', '.join(entry.allow)}]}}"
    return Policy(id=name, rule=name, effect="permit", actions=[MODEL_CALL], text=text, written=written, reads=policyfile.reads_of(text))


def _text(name: str, effect: str, agent: str, actions: list[str], resource: str, asked: list[str]) -> str:
    scope = f"principal == Agent::{literal(agent)}, action in [{', '.join(f'Action::{literal(action)}' for action in actions)}], {resource}"
    when = f"\n  when {{ {' && '.join(asked)} }}" if asked else ""
    return f"@id({literal(name)})\n{effect} ({scope}){when};"


def _from_clauses(clauses: Clauses) -> Policy:
    return Policy(
        id=clauses.id,
        rule=clauses.id,
        effect=clauses.effect,
        actions=list(ACTIONS) if clauses.actions is None else list(clauses.actions),
        text=clauses.text,
        written=f"{clauses.file}:{clauses.line}",
        host=clauses.host,
        reads=list(clauses.reads),
    )


def render_policy(boundary: CompiledBoundary) -> str:
    """The boundary as Cedar to read: each policy under the line of the configuration it came from."""
    blocks = [
        f"// {visible(boundary.agent)}: {len(boundary.policies)} policies, {boundary.digest}\n"
        "// a forbid goes before every permit; what no permit allows is denied"
    ]
    for policy in boundary.policies:
        note = ", for as long as nobody has signed: a hold goes before an allow" if policy.id.endswith(_UNSIGNED) else ""
        blocks.append(f"// {visible(policy.written)}{note}\n{policy.text}")
    return "\n\n".join(blocks) + "\n"
