"""The operator's own policies: `policies/*.cedar`, read statement by statement so that what is wrong has a line, and held to the generated schema.

Each policy has an `@id` of its own. One that asks for `context.signed_off` makes holds, so it says who signs: `@approvers("oncall, leads")`, and if
need be `@wait("10m")` and `@four_eyes("true")`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cedarpy
from cedarpy import pst

from bailiwick.critic.pattern import normal_host
from bailiwick.kernel import limits
from bailiwick.kernel.document import Finding
from bailiwick.kernel.errors import BailiwickError
from bailiwick.kernel.quantity import parse_seconds

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]*(?:/[a-z0-9_.-]+)*")
_ANNOTATIONS = ("id", "approvers", "wait", "four_eyes", "description")
_TOKEN = re.compile(r'//[^\n]*|"(?:[^"\\]|\\.)*"|;|[^/";]+|.', re.DOTALL)
EVERY_FACT = "*"  # a policy that takes the context whole


@dataclass(frozen=True, slots=True)
class Clauses:
    """One policy of a file, taken apart. `principal` and `host` are what its scope fixes; `actions` None is all of them."""

    file: str
    line: int
    id: str
    effect: Literal["permit", "forbid"]
    text: str
    principal: str | None
    actions: tuple[str, ...] | None
    host: str | None
    reads: tuple[str, ...]
    approvers: tuple[str, ...]
    wait_seconds: float
    four_eyes: bool
    template: pst.Template


def read_all(files: Mapping[str, str]) -> tuple[list[Clauses], list[Finding]]:
    """Every policy of every file that can be read, and what is wrong with the others."""
    good: list[Clauses] = []
    findings: list[Finding] = []
    for file, text in sorted(files.items()):
        for line, statement in statements(text):
            read = _read(file, line, statement)
            if isinstance(read, Clauses):
                good.append(read)
            else:
                findings += [Finding(file, line, 1, "", message) for message in read]
    return good, findings


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement with the line it begins on, without the comments before it. What follows the last `;` is one too, if it is anything."""
    begun: list[str] = []
    line = start = 1
    for piece in _TOKEN.findall(text):
        blank = piece.startswith("//") or not piece.strip()
        if begun or not blank:
            if not begun:
                start = line + piece[: len(piece) - len(piece.lstrip())].count("\n")
            begun.append(piece)
        line += piece.count("\n")
        if piece == ";":
            yield start, "".join(begun).strip()
            begun = []
    if begun:
        yield start, "".join(begun).strip()


def _read(file: str, line: int, statement: str) -> Clauses | list[str]:
    try:
        parsed = cedarpy.policies_to_pst(statement)
    except ValueError as error:
        return [f"is not a Cedar policy: {error}"]
    if parsed.templates or len(parsed.static_policies) != 1:
        return ["is a template (?principal or ?resource); write the entity out"]
    (template,) = parsed.static_policies.values()
    notes = template.annotations
    wrong: list[str] = []
    name = notes.get("id", "")
    if not _ID.fullmatch(name):
        wrong.append(f'the policy has {f"the id {name!r}" if name else "no id"}; give it one in lower case, such as @id("house/no-deletes")')
    wrong += [f"annotation @{key} is unknown; must be one of {', '.join('@' + known for known in _ANNOTATIONS)}" for key in notes if key not in _ANNOTATIONS]
    reads = tuple(_reads(template))
    approvers = tuple(part.strip() for part in notes.get("approvers", "").split(",") if part.strip())
    if ("signed_off" in reads or EVERY_FACT in reads) and not approvers:
        wrong.append('the policy asks for a sign-off and names nobody; name approver groups, such as @approvers("oncall")')
    wait = float(limits.HOLD_WAIT_SECONDS)
    try:
        wait = parse_seconds(notes["wait"]) if "wait" in notes else wait
    except ValueError as error:
        wrong.append(f"@wait {error}")
    if notes.get("four_eyes", "false") not in ("true", "false"):
        wrong.append(f'@four_eyes is {notes["four_eyes"]!r}; must be "true" or "false"')
    if wrong:
        return wrong
    return Clauses(
        file=file,
        line=line,
        id=name,
        effect=template.effect,
        text=statement,
        principal=_fixed(template.principal, "Agent"),
        actions=_actions(template.action),
        host=_fixed(template.resource, "Host"),
        reads=reads,
        approvers=approvers,
        wait_seconds=wait,
        four_eyes=notes.get("four_eyes") == "true",
        template=template,
    )


def check(clauses: Clauses, schema: str, *, agents: frozenset[str] | None, approvers: frozenset[str]) -> list[Finding]:
    """What the schema and the configuration say against a policy."""
    messages: list[str] = []
    result = cedarpy.validate_policies(clauses.text, schema)
    if not result.validation_passed:
        messages += [re.sub(r"^for policy `[^`]*`, ", "", error.error) for error in result.errors] or ["does not fit the schema"]
    for group in clauses.approvers:
        if group not in approvers:
            messages.append(f"approver group {group!r} is not declared; {', '.join(sorted(approvers)) or 'none are'} declared under `approvers`")
    for entity in sorted(pst.entity_uids(clauses.template), key=str):
        kind = str(entity.type)
        if kind == "Host" and normal_host(entity.id) != entity.id:
            messages.append(f"host {entity.id!r} matches nothing; write a name in lower case, without port, final dot or *")
        if kind == "Model" and "/" not in entity.id:
            messages.append(f'model {entity.id!r} matches nothing; write provider and model, such as Model::"openai/gpt-5.2"')
        if kind == "Agent" and agents is not None and entity.id not in agents:
            messages.append(f"agent {entity.id!r} is not declared; must be one of {', '.join(sorted(agents))}")
    return [Finding(clauses.file, clauses.line, 1, clauses.id, message) for message in messages]


def reads_of(text: str) -> list[str]:
    """The facts of the context that the one policy in `text` mentions."""
    (template,) = cedarpy.policies_to_pst(text).static_policies.values()
    return _reads(template)


def must_validate(text: str, schema: str) -> None:
    """A check of ourselves: what we compile fits the schema we compile."""
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        raise BailiwickError(f"the compiled policies do not fit their schema: {'; '.join(error.error for error in result.errors)}")


def _fixed(scope: pst.PrincipalOrResourceConstraint, kind: str) -> str | None:
    if isinstance(scope, pst.ScopeEq) and isinstance(scope.entity, pst.EntityUid) and str(scope.entity.type) == kind:
        return scope.entity.id
    return None


def _actions(scope: pst.ActionConstraint) -> tuple[str, ...] | None:
    match scope:
        case pst.ActionEq(entity=entity):
            return (entity.id,)
        case pst.ActionIn(entities=entities):
            return tuple(entity.id for entity in entities)
        case _:
            return None


def _reads(template: pst.Template) -> list[str]:
    found: set[str] = set()
    todo: list[Any] = list(template.clauses)
    while todo:
        node = todo.pop()
        match node:
            case pst.GetAttr(base=pst.Var(name="context"), attr=attr):
                found.add(attr)
            case pst.HasAttr(base=pst.Var(name="context"), attrs=attrs):
                found.add(attrs[0])
            case pst.Var(name="context"):
                found.add(EVERY_FACT)
            case tuple():
                todo += node
            case Mapping():
                todo += node.values()
            case _ if dataclasses.is_dataclass(node) and not isinstance(node, type):
                todo += [getattr(node, field.name) for field in dataclasses.fields(node)]
    return sorted(found)
