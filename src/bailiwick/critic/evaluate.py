"""The critic: an action and a compiled boundary in, Allow, Deny or Hold out. A pure function of the action's facts, and therefore cached under them.

Three outcomes of two evaluations: as it is, and as if signed off. Allowed as it is: Allow. Allowed only when signed off: Hold. Else Deny. Cedar leaves
out a policy whose evaluation errs, so that a broken `forbid` would let a request through: any diagnostic error is a Deny.

Only policies that could match are asked. What sorts the others out (action, host, the first segments of the path) is necessary for their match, so
leaving them out changes no decision; a property test holds it to that.
"""

import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_never

import cedarpy

from bailiwick.critic.action import Action, HttpResource, ModelResource, Verb
from bailiwick.critic.boundary import ACTIONS, MODEL_CALL, CompiledBoundary, Policy
from bailiwick.critic.decision import Allow, Decision, Deny, Hold
from bailiwick.critic.pattern import is_ambiguous, normal_host, normal_path
from bailiwick.critic.policyfile import EVERY_FACT
from bailiwick.critic.visible import visible
from bailiwick.kernel.errors import CallerError

VERDICTS_MAX = 2_048  # remembered by a critic; a run that asks for ever new paths turns them over
HANDLES_MAX = 256  # parsed sets of candidate policies
HOSTS_MAX = 512
_LEAD_MAX = 3  # segments of a path by which policies are sorted
_KEY_CHARACTERS_MAX = 1_024  # longer facts are decided afresh each time, so that what is remembered stays within a few MiB a run
_RESOURCE_CHARACTERS_MAX = 300  # of a resource, in a reason

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Recent(OrderedDict[Key, Value], Generic[Key, Value]):
    """The most recent entries, at most so many."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def find(self, key: Key) -> Value | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def keep(self, key: Key, value: Value) -> None:
        self[key] = value
        if len(self) > self._size:
            self.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of Cedar, to one question: the policies that decided, and what went wrong."""

    allowed: bool
    policies: tuple[str, ...]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Both answers; `signed` is asked only where it matters."""

    plain: _Answer | None
    signed: _Answer | None


class _Undecided(Exception):
    """The critic or its engine failed; the text is how."""

    def deny(self) -> Deny:
        return Deny(rules=(), reason=f"the critic failed ({self}); denied, since nothing undecided is done")


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Policies that could match, parsed together, and the facts they read."""

    handle: cedarpy.PolicySet
    reads: tuple[str, ...] | None  # None: all of them


class Critic:
    """Decides for one agent by one boundary. Raises CallerError for a boundary whose policies or schema do not parse."""

    def __init__(self, boundary: CompiledBoundary) -> None:
        self.boundary = boundary
        self.digest = boundary.digest
        try:
            self._schema = cedarpy.Schema.from_str(boundary.cedar_schema)
            cedarpy.PolicySet.from_str("\n".join(policy.text for policy in boundary.policies))
        except ValueError as error:
            raise CallerError(f"compiled boundary of {boundary.agent} does not parse: {error}") from error
        self._entities = cedarpy.Entities.from_json_str("[]")
        self._principal = {"type": "Agent", "id": boundary.agent}
        self._by_id = {policy.id: policy for policy in boundary.policies}
        self._index = {action: _Index(boundary.policies, action) for action in ACTIONS}
        self._permitted = frozenset(action for policy in boundary.policies if policy.effect == "permit" for action in policy.actions)
        self._handles: _Recent[tuple[int, ...], _Candidates] = _Recent(HANDLES_MAX)
        self._verdicts: _Recent[Hashable, _Verdict] = _Recent(VERDICTS_MAX)  # by the facts that the candidates read
        self._decisions: _Recent[Hashable, Decision] = _Recent(VERDICTS_MAX)  # by the resource as it came

    def may_permit(self, action: str) -> bool:
        """Whether there is a policy that could ever permit it; without one the answer is Deny, whatever the facts."""
        return action in self._permitted

    def decide(self, action: Action, *, signed_off: bool = False) -> Decision:
        """With `signed_off`, whether the action may be done now that its hold is granted: Allow or Deny, never Hold."""
        # The resource is every fact there is (a query is none: neither a policy nor a reason reads it), so the same one needs no second thought.
        match action.resource:
            case HttpResource() as http:
                key: Hashable = (action.agent, action.verb, signed_off, http.scheme, http.host, http.port, http.method, http.path, http.ambiguous)
                size = len(http.path) + len(http.host) + len(http.method)
            case ModelResource() as model:
                key = (action.agent, action.verb, signed_off, model.provider, model.model, model.endpoint, model.host)
                size = len(model.model) + len(model.host)
            case never:
                assert_never(never)
        known = self._decisions.find(key)
        if known is None:
            try:
                known = self._decide(action, signed_off, remember=True)
            except _Undecided as error:
                return error.deny()  # not remembered: the next may be decided
            if size <= _KEY_CHARACTERS_MAX:
                self._decisions.keep(key, known)
        return known

    def decide_afresh(self, action: Action, *, signed_off: bool = False) -> Decision:
        """The same, asked of Cedar even if the answer is known: for the benchmark, and to hold the memory to it."""
        try:
            return self._decide(action, signed_off, remember=False)
        except _Undecided as error:
            return error.deny()

    def _decide(self, action: Action, signed_off: bool, *, remember: bool) -> Decision:
        try:
            return self._by_policy(action, signed_off, remember=remember)
        except BaseException as error:
            # Whatever fails here, the action is not decided. A panic of the engine (Rust) is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise _Undecided(type(error).__name__) from error

    def _by_policy(self, action: Action, signed_off: bool, *, remember: bool) -> Decision:
        if action.agent != self.boundary.agent:
            return Deny(rules=(), reason=f"the boundary is of agent {self.boundary.agent} and the action of {visible(action.agent)}; open the run again")
        asked = _question(action, self.boundary)
        if isinstance(asked, Deny):
            return asked
        return self._weigh(action, asked, self._verdict(asked, signed_off, remember))

    def _verdict(self, asked: "_Question", signed_off: bool, remember: bool) -> _Verdict:
        chosen = self._index[asked.action].candidates(asked)
        if not chosen:
            nothing = _Answer(False, ())
            return _Verdict(None if signed_off else nothing, nothing)
        candidates = self._candidates(chosen)
        key: Hashable = None
        if remember:
            facts = asked.context
            values = tuple(facts.items()) if candidates.reads is None else tuple(facts[fact] for fact in candidates.reads if fact in facts)
            if sum(len(value) for value in values if isinstance(value, str)) <= _KEY_CHARACTERS_MAX:
                key = (asked.action, asked.resource, chosen, values, signed_off)
                if known := self._verdicts.find(key):
                    return known
        context = json.dumps(asked.context)[:-1]
        plain = None if signed_off else self._ask(asked, candidates.handle, context, "false")
        signed = None
        if plain is None or not (plain.allowed or plain.errors):
            signed = self._ask(asked, candidates.handle, context, "true")
        verdict = _Verdict(plain, signed)
        if key is not None:
            self._verdicts.keep(key, verdict)
        return verdict

    def _ask(self, asked: "_Question", handle: cedarpy.PolicySet, context: str, signed_off: str) -> _Answer:
        request = {
            "principal": self._principal,
            "action": {"type": "Action", "id": asked.action},
            "resource": {"type": asked.kind, "id": asked.resource},
            "context": f'{context}, "signed_off": {signed_off}}}',
        }
        result = cedarpy.is_authorized(request, handle, self._entities, schema=self._schema)
        diagnostics = result.diagnostics
        errors = tuple(diagnostics.errors)
        if not errors and result.decision is cedarpy.Decision.NoDecision:
            errors = ("no decision",)
        names = diagnostics.id_annotations_by_reason
        return _Answer(result.allowed, tuple(sorted(names.get(reason, reason) for reason in diagnostics.reasons)), errors)

    def _candidates(self, chosen: tuple[int, ...]) -> _Candidates:
        known = self._handles.find(chosen)
        if known is not None:
            return known
        policies = [self.boundary.policies[index] for index in chosen]
        reads = {fact for policy in policies for fact in policy.reads}
        handle = cedarpy.PolicySet.from_str("\n".join(policy.text for policy in policies))
        made = _Candidates(handle, None if EVERY_FACT in reads else tuple(sorted(reads - {"signed_off"})))
        self._handles.keep(chosen, made)
        return made

    def _weigh(self, action: Action, asked: "_Question", verdict: _Verdict) -> Decision:
        plain, signed = verdict.plain, verdict.signed
        for answer in (plain, signed):
            if answer is not None and answer.errors:
                text = visible(answer.errors[0])[:_RESOURCE_CHARACTERS_MAX]
                return Deny(rules=self._rules(answer.policies), reason=f"policy evaluation failed: {text}; the operator must correct the policy")
        if plain is not None and plain.allowed:
            return Allow(rules=self._rules(plain.policies))
        if signed is None or not signed.allowed:
            return self._refusal(action, asked, signed)
        if plain is None:
            return Allow(rules=self._rules(signed.policies))
        # Those that forbid it unsigned, and those that permit it signed only.
        holds = [rule for rule in self._rules((*plain.policies, *signed.policies)) if rule in self.boundary.holds]
        if not holds:
            return Deny(rules=self._rules(signed.policies), reason="a rule asks for sign-off and names no approvers; the operator must name some")
        return self._hold(holds)

    def _hold(self, rules: Sequence[str]) -> Hold:
        """The strictest of what the rules ask: every group of each, the most signatures, the shortest times."""
        terms = [self.boundary.holds[rule] for rule in rules]
        return Hold(
            rules=tuple(rules),
            approvers=tuple(sorted({group for term in terms for group in term.approvers})),
            quorum=max(term.quorum for term in terms),
            wait_seconds=min(term.wait_seconds for term in terms),
            expires_seconds=min(term.expires_seconds for term in terms),
            four_eyes=any(term.four_eyes for term in terms),
        )

    def _refusal(self, action: Action, asked: "_Question", answer: _Answer | None) -> Deny:
        what = f"{action.verb} on {named(action)}"
        rules = self._rules(answer.policies) if answer is not None else ()
        if rules:
            return Deny(rules=rules, reason=f"{', '.join(rules)} denies {what}; a deny is final")
        unclear = "; its path may be read in two ways, so no rule with a path grants it: send it without escaped slashes, empty or dot segments"
        note = unclear if asked.context.get("ambiguous") else "; ask the operator for a rule if the task needs it"
        return Deny(rules=(), reason=f"no rule of {self.boundary.agent} allows {what}{note}")

    def _rules(self, policies: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(policy.rule if (policy := self._by_id.get(name)) else name for name in policies))


@dataclass(frozen=True, slots=True)
class _Question:
    """An action as Cedar is asked about it. `context` lacks only `signed_off`."""

    action: str
    kind: str
    resource: str
    context: dict[str, Any]
    segments: tuple[str, ...] = ()


def _question(action: Action, boundary: CompiledBoundary) -> _Question | Deny:
    match action.resource:
        case HttpResource() as http if f"http.{action.verb.value}" in ACTIONS:
            return _http(f"http.{action.verb.value}", http, boundary)
        case ModelResource() as model if action.verb is Verb.CALL_MODEL:
            host = normal_host(model.host)
            context = {"provider": model.provider, "model": model.model, "endpoint": model.endpoint, "host": host or "", "tainted": False}
            return _Question(MODEL_CALL, "Model", f"{model.provider}/{model.model}", context)
        case _:
            return Deny(rules=(), reason=f"no rule can allow {action.verb} on {named(action)}; rules for it do not exist in this version")


def _http(name: str, http: HttpResource, boundary: CompiledBoundary) -> _Question | Deny:
    host = normal_host(http.host)
    if host is None:
        return Deny(rules=(), reason=f"{visible(http.host)[:_RESOURCE_CHARACTERS_MAX]!r} is not a host name; no rule can name it")
    path = normal_path(http.path)
    segments = tuple(path[1:].split("/"))
    context = {
        "scheme": http.scheme,
        "host": host,
        "port": http.port,
        "method": http.method.upper(),
        "path": path,
        "segments": len(segments),
        "ambiguous": http.ambiguous or is_ambiguous(path),
        "tainted": False,
    }
    for index in range(boundary.front):
        context[f"front{index + 1}"] = segments[index] if index < len(segments) else ""
    for index in range(boundary.back):
        context[f"back{index + 1}"] = segments[-1 - index] if index < len(segments) else ""
    return _Question(name, "Host", host, context, segments)


class _Index:
    """The policies of one action by what they need of a host and of a path's first segments."""

    def __init__(self, policies: Sequence[Policy], action: str) -> None:
        self._exact: dict[str, list[int]] = {}
        self._below: dict[str, list[int]] = {}
        self._anywhere: list[int] = []
        self._leads = [tuple(policy.lead[:_LEAD_MAX]) for policy in policies]
        self._tables: _Recent[str, dict[tuple[str, ...], list[int]]] = _Recent(HOSTS_MAX)
        for number, policy in enumerate(policies):
            if action not in policy.actions:
                continue
            if policy.host is not None:
                self._exact.setdefault(policy.host, []).append(number)
            elif policy.below is not None:
                self._below.setdefault(policy.below, []).append(number)
            else:
                self._anywhere.append(number)

    def candidates(self, asked: _Question) -> tuple[int, ...]:
        host = asked.resource if asked.kind == "Host" else ""
        table = self._tables.find(host)
        if table is None:
            table = {}
            for number in self._of_host(host):
                table.setdefault(self._leads[number], []).append(number)
            self._tables.keep(host, table)
        if asked.context.get("ambiguous"):  # a forbid matches it whatever its path
            return tuple(sorted(number for numbers in table.values() for number in numbers))
        found: list[int] = []
        for depth in range(min(_LEAD_MAX, len(asked.segments)) + 1):
            found += table.get(asked.segments[:depth], ())
        return tuple(sorted(found))

    def _of_host(self, host: str) -> list[int]:
        found = [*self._anywhere, *self._exact.get(host, ())]
        parent = host
        while "." in parent:
            parent = parent.partition(".")[2]
            found += self._below.get(parent, ())
        return found


def named(action: Action) -> str:
    """The action's resource as a reason shows it: without the query, which may hold what nobody should read, and with nothing hidden."""
    shown = visible(str(action.resource).partition("?")[0])
    return shown if len(shown) <= _RESOURCE_CHARACTERS_MAX else shown[:_RESOURCE_CHARACTERS_MAX] + "..."
