"""What an operator writes about an agent's boundary: rules, models, approvers. Read from the configuration, checked against each other, no more.

The strictest rule that matches decides: deny before hold before allow. What grants is read narrowly and what refuses widely: an allow without a port
means 80 and 443, a deny all; a path two servers may read differently is granted by no rule with a path, and refused by every one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pydantic

from bailiwick.critic.action import Verb
from bailiwick.critic.pattern import DEFAULT_PORTS, HostPattern, PathPattern
from bailiwick.kernel import limits
from bailiwick.kernel.document import Section
from bailiwick.kernel.quantity import Seconds

Kind = Literal["allow", "hold", "deny"]
Path = tuple[str | int, ...]  # of a value in the document
Problem = tuple[Path, str]

HTTP_VERBS = (Verb.READ, Verb.WRITE, Verb.DELETE, Verb.EXECUTE)
_UNSERVED = {"mcp": "MCP", "postgres": "PostgreSQL", "git": "git", "a2a": "A2A"}
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\*?")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def _known_verbs(verbs: list[str]) -> list[Verb]:
    known = {verb.value: verb for verb in HTTP_VERBS}
    for verb in verbs:
        if verb == Verb.CALL_MODEL:
            raise ValueError("call-model is not a verb of a rule; name the models under `models`")
        if verb not in known:
            raise ValueError(f"verb {verb!r} is unknown for http; must be one of {', '.join(known)}")
    if not verbs:
        raise ValueError(f"no verb is named; name some of {', '.join(known)}")
    if len(set(verbs)) < len(verbs):
        raise ValueError("a verb is named twice; name it once")
    return [known[verb] for verb in verbs]


def _checked_host(text: str) -> str:
    HostPattern.parse(text)
    return text


def _checked_path(text: str) -> str:
    PathPattern.parse(text)
    return text


def _checked_methods(methods: list[str]) -> list[str]:
    for method in methods:
        if not _METHOD.fullmatch(method):
            raise ValueError(f"method {method!r} is not an HTTP method in capitals, such as PUT")
    if not methods:
        raise ValueError("no method is named; name some or leave `methods` out")
    return methods


Verbs = Annotated[list[str], pydantic.AfterValidator(_known_verbs)]


class Rule(Section):
    """One rule of a boundary: exactly one of allow, hold, deny, and where it holds."""

    allow: Verbs | None = None
    hold: Verbs | None = None
    deny: Verbs | None = None
    http: Annotated[str, pydantic.AfterValidator(_checked_host)]
    path: Annotated[str, pydantic.AfterValidator(_checked_path)] | None = None
    methods: Annotated[list[str], pydantic.AfterValidator(_checked_methods)] | None = None
    approvers: list[str] | None = None
    wait: Seconds | None = None
    four_eyes: bool | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key, protocol in _UNSERVED.items():
                if key in value:
                    raise ValueError(f"no listener serves {protocol} in this version; remove the rule, or let the agent reach the service over http")
        return value

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        kinds = [kind for kind in ("allow", "hold", "deny") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"has {' and '.join(kinds) or 'none'} of allow, hold, deny; must have exactly one")
        if self.hold is not None and not self.approvers:
            raise ValueError("a hold names no approvers; name one or more groups under `approvers`")
        extra = [name for name in ("approvers", "wait", "four_eyes") if getattr(self, name) is not None]
        if self.hold is None and extra:
            raise ValueError(f"{extra[0]} belongs to a hold; remove it, or write hold instead of {kinds[0]}")
        if self.approvers and len(set(self.approvers)) < len(self.approvers):
            raise ValueError("an approver group is named twice; name it once")
        return self

    @property
    def kind(self) -> Kind:
        return "allow" if self.allow is not None else "hold" if self.hold is not None else "deny"

    @property
    def verbs(self) -> tuple[Verb, ...]:
        return tuple(Verb(verb) for verb in self.allow or self.hold or self.deny or ())

    @property
    def host(self) -> HostPattern:
        return HostPattern.parse(self.http)

    @property
    def glob(self) -> PathPattern | None:
        return None if self.path is None else PathPattern.parse(self.path)

    @property
    def wait_seconds(self) -> float:
        return float(limits.HOLD_WAIT_SECONDS) if self.wait is None else self.wait

    def written(self) -> str:
        """The rule as a line of the configuration."""
        verbs = ", ".join(self.verbs)
        parts = [f"{self.kind}: [{verbs}]", f"http: {self.http}"]
        parts += [f"path: {self.path}"] if self.path else []
        parts += [f"methods: [{', '.join(self.methods)}]"] if self.methods else []
        parts += [f"approvers: [{', '.join(self.approvers)}]"] if self.approvers else []
        parts += [f"wait: {self.wait:g}s"] if self.wait is not None else []
        parts += [f"four_eyes: {str(self.four_eyes).lower()}"] if self.four_eyes is not None else []
        return "{" + ", ".join(parts) + "}"


class ApproverGroup(Section):
    """People who may sign. A hold that names several groups needs the quorum of each."""

    operators: list[str]
    quorum: Annotated[int, pydantic.Field(ge=1)] = 1
    expires: Seconds = float(limits.HOLD_EXPIRES_SECONDS)
    notify: list[str] = pydantic.Field(default_factory=list)

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> "ApproverGroup":
        if not self.operators:
            raise ValueError("the group has no operators; name at least one")
        if len(set(self.operators)) < len(self.operators):
            raise ValueError("an operator is named twice; name each once")
        if self.quorum > len(self.operators):
            raise ValueError(f"quorum {self.quorum} is more than the group's {len(self.operators)} operators; lower it or add operators")
        if self.expires <= 0:
            raise ValueError("expires must be more than 0, such as 2h")
        return self


def _micro(value: Decimal) -> Decimal:
    if not value.is_finite() or value < 0 or value > 1_000_000_000:
        raise ValueError(f"{value} is not an amount of US dollars; must be within 0 and 1_000_000_000")
    return value


class ModelBudget(Section):
    tokens: Annotated[int, pydantic.Field(ge=0)] | None = None
    usd: Annotated[Decimal, pydantic.AfterValidator(_micro)] | None = None

    @property
    def microusd(self) -> int | None:
        return None if self.usd is None else int(self.usd * 1_000_000)


class ModelRules(Section):
    """Models of one provider that an agent may call: names, or the beginning of names and `*`."""

    provider: str
    allow: list[str]
    budget: ModelBudget = ModelBudget()

    @pydantic.model_validator(mode="after")
    def _names(self) -> "ModelRules":
        if not _NAME.fullmatch(self.provider):
            raise ValueError(f"provider {self.provider!r} is not a name in lower case, such as openai")
        for model in self.allow:
            if not _MODEL.fullmatch(model):
                raise ValueError(f"model {model!r} is not understood; must be a model's name such as gpt-5.2, or its beginning and a * such as gpt-5*")
        if not self.allow:
            raise ValueError("no model is named; name one, or remove the provider")
        return self


Models = ModelRules | Sequence[ModelRules] | None


def as_list(models: Models) -> list[ModelRules]:
    return [] if models is None else [models] if isinstance(models, ModelRules) else list(models)


def check(agent: str, rules: Sequence[Rule], models: Models, approvers: Mapping[str, ApproverGroup]) -> list[Problem]:
    """What is wrong between the parts: groups nobody declared, rules that can never apply. Paths are the configuration's, from its root."""
    found: list[Problem] = []
    for index, rule in enumerate(rules):
        where: Path = ("agents", agent, "boundary", index)
        for at, group in enumerate(rule.approvers or ()):
            if group not in approvers:
                known = ", ".join(sorted(approvers)) or "none are"
                found.append(((*where, "approvers", at), f"approver group {group!r} is not declared; {known} declared under `approvers`"))
    found += [(("agents", agent, "boundary", index), why) for index, why in _dead(rules)]
    named = as_list(models)
    for index, entry in enumerate(named):
        where = ("agents", agent, "models") if isinstance(models, ModelRules) else ("agents", agent, "models", index)
        if any(other.provider == entry.provider for other in named[:index]):
            found.append(((*where, "provider"), f"provider {entry.provider!r} stands here a second time; put its models into one list"))
        if entry.budget != ModelBudget() and any(other.budget != ModelBudget() for other in named[:index]):
            found.append(((*where, "budget"), "a run has one budget, and an earlier provider states it; keep one"))
    return found


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a rule is about, taken apart once: a boundary of a thousand rules is compared with itself."""

    index: int
    kind: Kind
    verbs: frozenset[Verb]
    host: HostPattern
    glob: PathPattern | None
    methods: frozenset[str] | None

    @classmethod
    def of(cls, index: int, rule: Rule) -> "_Reach":
        return cls(index, rule.kind, frozenset(rule.verbs), rule.host, rule.glob, None if rule.methods is None else frozenset(rule.methods))

    def covers(self, narrow: "_Reach") -> bool:
        """Whether every action that `narrow` is about, this is about too; False also where it is too hard to say."""
        if not narrow.verbs <= self.verbs or not self.host.covers(narrow.host):
            return False
        if self.host.port is not None and self.host.port != narrow.host.port:
            return False
        if self.host.port is None and self.kind == "allow" and narrow.host.port not in (None, *DEFAULT_PORTS):
            return False
        if self.methods is not None and (narrow.methods is None or not narrow.methods <= self.methods):
            return False
        return self.glob is None or (narrow.glob is not None and self.glob.covers(narrow.glob))


def _dead(rules: Sequence[Rule]) -> Iterator[tuple[int, str]]:
    """Rules that change nothing, and why."""
    reaches = [_Reach.of(index, rule) for index, rule in enumerate(rules)]
    exact: dict[str, list[_Reach]] = {}
    below: dict[str, list[_Reach]] = {}
    for reach in reaches:
        (below if reach.host.below else exact).setdefault(reach.host.name, []).append(reach)
    for reach in reaches:
        name = reach.host.name
        near = list((below if reach.host.below else exact)[name])
        while "." in name:
            name = name.partition(".")[2]
            near += below.get(name, ())
        covering = (other for other in sorted(near, key=lambda other: other.index) if other.index != reach.index and other.covers(reach))
        if why := next((why for other in covering if (why := _why(other, reach))), None):
            yield reach.index, why


def _why(wide: _Reach, narrow: _Reach) -> str | None:
    """Why a rule that `wide` covers changes nothing, if that is so. Of two that are for the same, the later one is too much."""
    earlier = wide.index < narrow.index or not narrow.covers(wide)
    match wide.kind, narrow.kind:
        case "deny", "allow" | "hold":
            return f"can never apply: boundary[{wide.index}] denies all of it, and a deny is final; narrow that rule or remove this one"
        case "hold", "allow":
            return f"can never apply: boundary[{wide.index}] holds all of it, and a hold goes before an allow; narrow that rule or remove this one"
        case ("allow", "allow") | ("deny", "deny") if earlier:
            return f"adds nothing: boundary[{wide.index}] says it already; remove one of them"
        case "hold", "hold" if wide.index < narrow.index and narrow.covers(wide):
            return f"is for the same actions as boundary[{wide.index}]; make one rule of the two"
        case _:
            return None


def grants_port(rules: Sequence[Rule]) -> tuple[int, ...]:
    """Ports besides 80 and 443 that a rule lets be reached: where a listener must be."""
    return tuple(sorted({port for rule in rules if rule.kind != "deny" and (port := rule.host.port) is not None and port not in DEFAULT_PORTS}))
