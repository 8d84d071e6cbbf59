"""What a whole fresh decision costs: an action in, Allow, Hold or Deny out, nothing remembered; 80 % allowed, 10 % held, 10 % denied.

    python -m bench.decision [--rounds 5] [--checked 1500]

Boundaries of 10, 100 and 1,000 Cedar policies, spread over hosts as an agent's rules are, and, as the hard case, 1,000 that all name one host. Every
request that is timed, and as many again that are random, are first answered by `bench.oracle`, which shares no code with the critic: a mismatch fails
the run. For comparison: the same questions asked of all policies at once (parsed handles), and of policy text that is parsed on each call.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cedarpy
from bench.oracle import outcome

from bailiwick.critic.action import Action, HttpResource, Verb
from bailiwick.critic.boundary import ApproverGroup, CompiledBoundary, Rule, compile_boundary
from bailiwick.critic.decision import Decision
from bailiwick.critic.evaluate import Critic
from bailiwick.kernel.ids import RunId

MIX = {"allow": 0.8, "hold": 0.1, "deny": 0.1}
BARS_US = {"10": 100.0, "100": 150.0, "1000": 200.0}
GROUPS = {"oncall": ApproverGroup(operators=["ana", "bo"])}
METHODS = {"read": "GET", "write": "PUT", "delete": "DELETE"}


def spread(number: int) -> list[dict[str, Any]]:
    """Rules as an operator writes them for one more service: read it, write a part, ask for another, never touch a third."""
    host = f"service-{number}.example.org"
    return [
        {"allow": ["read"], "http": host, "path": "/v1/**"},
        {"allow": ["write", "delete"], "http": host, "path": "/v1/staging/**"},
        {"hold": ["write"], "http": host, "path": "/v1/production/**", "approvers": ["oncall"]},
        {"deny": ["read", "write", "delete"], "http": host, "path": "/v1/*/secrets/**"},
        {"allow": ["write"], "http": f"*.eu-{number}.example.org", "path": "/v2/*/items/*.json", "methods": ["PUT"]},
        {"deny": ["delete"], "http": f"*.eu-{number}.example.org"},
        {"hold": ["delete"], "http": host, "path": "/v1/production/*/old", "approvers": ["oncall"]},
        {"allow": ["read"], "http": f"cdn-{number}.example.org:8443"},
    ]


def one_host(number: int) -> list[dict[str, Any]]:
    """Rules for one more team of the same service."""
    return [rule | {"http": "service-0.example.org", "path": rule.get("path", "/v1/**").replace("/v1", f"/v1/team-{number}", 1)} for rule in spread(number)[:4]]


def rules_of(count: int, more: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Enough rules for `count` Cedar policies: a hold makes two."""
    rules: list[dict[str, Any]] = []
    policies = number = 0
    while True:
        for rule in more(number):
            cost = 2 if "hold" in rule else 1
            if policies + cost > count:
                if policies == count:
                    return rules
                continue
            rules.append(rule)
            policies += cost
        number += 1


def request(random_: random.Random, services: int) -> Action:
    number = random_.randrange(services)
    host = random_.choice(
        [f"service-{number}.example.org"] * 5 + [f"a.b.eu-{number}.example.org", f"cdn-{number}.example.org", "elsewhere.example.net", "service-0.example.org"]
    )
    verb = random_.choice(list(METHODS))
    area = random_.choice(["staging", "production", "secrets", "x", f"team-{number}/staging", f"team-{number}/production", f"team-{number}"])
    rest = random_.choice(["a", "secrets/b", "db/old", "c//d", "items/e.json", "../f", f"g-{random_.randrange(1000)}"])
    path = random_.choice([f"/v1/{area}/{rest}"] * 8 + [f"/v2/{area}/{rest}", "/", f"/v1/{area}"])
    resource = HttpResource(scheme="https", host=host, port=random_.choice([443] * 9 + [8443]), method=METHODS[verb], path=path)
    return Action(run=RunId("run-bench"), agent="deployer", verb=Verb(verb), resource=resource)


def expected(rules: Sequence[dict[str, Any]], action: Action) -> str:
    http = action.resource
    assert isinstance(http, HttpResource)
    return outcome(rules, verb=action.verb.value, host=http.host, port=http.port, method=http.method, path=http.path)


def word(decision: Decision) -> str:
    return type(decision).__name__.lower()


def mixed(rules: Sequence[dict[str, Any]], random_: random.Random, services: int, wanted: int) -> list[Action]:
    """Random requests in the proportions of MIX, each of the class the oracle puts it in."""
    missing = {kind: round(share * wanted) for kind, share in MIX.items()}
    chosen: list[Action] = []
    while any(missing.values()):
        action = request(random_, services)
        kind = expected(rules, action)
        if missing[kind]:
            missing[kind] -= 1
            chosen.append(action)
    random_.shuffle(chosen)
    return chosen


def microseconds(ask: Callable[[Action], object], actions: Sequence[Action]) -> list[float]:
    taken = []
    for action in actions:
        begun = time.perf_counter_ns()
        ask(action)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return taken


def all_at_once(boundary: CompiledBoundary) -> Critic:
    """The critic without its index: every policy is asked every time."""
    critic = Critic(boundary)
    everything = tuple(range(len(boundary.policies)))
    for index in critic._index.values():
        index.candidates = lambda _asked: everything  # type: ignore[method-assign]
    return critic


def parsed_each_time(boundary: CompiledBoundary) -> Callable[[Action], object]:
    text, schema = "\n".join(policy.text for policy in boundary.policies), boundary.cedar_schema

    def ask(action: Action) -> object:
        http = action.resource
        assert isinstance(http, HttpResource)
        context = {"scheme": http.scheme, "host": http.host, "port": http.port, "method": http.method, "path": http.path, "segments": http.path.count("/")}
        context |= {f"front{n}": "" for n in range(1, boundary.front + 1)} | {f"back{n}": "" for n in range(1, boundary.back + 1)}
        asked = {
            "principal": {"type": "Agent", "id": "deployer"},
            "action": {"type": "Action", "id": f"http.{action.verb.value}"},
            "resource": {"type": "Host", "id": http.host},
            "context": context | {"ambiguous": False, "tainted": False, "signed_off": False},
        }
        return cedarpy.is_authorized(asked, text, "[]", schema=schema)

    return ask


def measure(name: str, rules: list[dict[str, Any]], services: int, rounds: int, checked: int) -> dict[str, Any]:
    boundary = compile_boundary("deployer", [Rule.model_validate(rule) for rule in rules], None, GROUPS)
    random_ = random.Random(f"bailiwick {name}")
    critic, whole, text = Critic(boundary), all_at_once(boundary), parsed_each_time(boundary)
    actions = mixed(rules, random_, services, 500)
    asked = [*actions, *(request(random_, services) for _ in range(checked))]
    mismatches = sum(word(critic.decide_afresh(action)) != expected(rules, action) or critic.decide(action) != critic.decide_afresh(action) for action in asked)
    fresh: list[float] = []
    others: dict[str, list[float]] = {"remembered": [], "all_at_once": [], "parsed_each_time": []}
    for _ in range(rounds):  # interleaved, so that the machine's moods meet all of them
        fresh += microseconds(critic.decide_afresh, actions)
        others["remembered"] += microseconds(critic.decide, actions)
        others["all_at_once"] += microseconds(whole.decide_afresh, actions[:50])
        others["parsed_each_time"] += microseconds(text, actions[:4])
    ordered = sorted(fresh)
    return {
        "policies": len(boundary.policies),
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[int(len(ordered) * 0.99)], 1),
        "checked": len(asked),
        "mismatches": mismatches,
    } | {kind: round(statistics.median(taken), 1) for kind, taken in others.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checked", type=int, default=1_500, help="random requests compared with the oracle, for each boundary")
    chosen = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name, count, more, services in [("10", 10, spread, 2), ("100", 100, spread, 12), ("1000", 1_000, spread, 105), ("1000_one_host", 1_000, one_host, 205)]:
        found[name] = measure(name, rules_of(count, more), services, chosen.rounds, chosen.checked)
        print(f"{name:>14}: {found[name]}", file=sys.stderr)
    mismatches = sum(part["mismatches"] for part in found.values())
    line = {
        "p50_us": {name: part["p50"] for name, part in found.items()},
        "p99_us": {name: part["p99"] for name, part in found.items()},
        "bars_us": BARS_US,
        "remembered_p50_us": {name: part["remembered"] for name, part in found.items()},
        "all_policies_at_once_p50_us": {name: part["all_at_once"] for name, part in found.items()},
        "parsed_each_time_p50_us": {name: part["parsed_each_time"] for name, part in found.items()},
        "checked": sum(part["checked"] for part in found.values()),
        "mismatches": mismatches,
    }
    print(json.dumps(line))
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
