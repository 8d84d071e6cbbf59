"""What one run is held to, frozen when it is dispatched: a configuration that changes later changes the next run, never this one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bailiwick.broker.inject import PLACEHOLDER
from bailiwick.critic.boundary import CompiledBoundary, compile_boundary
from bailiwick.critic.enforcement import BudgetLimits, HostPin, ModelRoute
from bailiwick.critic.rules import ApproverGroup, ModelRules, grants_port
from bailiwick.governor.configuration import PROVIDERS, Agent, RunLimits
from bailiwick.governor.runtime import Runtime, search_path
from bailiwick.governor.views import RunRequest
from bailiwick.kernel.errors import CallerError, NotFound
from bailiwick.kernel.ids import RunId
from bailiwick.sandbox.spec import SandboxSpec

AD_HOC = "command"
"""The agent name of a command that the configuration does not declare."""

MODELS_ADDRESS = "198.18.0.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What of the configuration the governor acts on; names are those of the file."""

    trust_domain: str
    agents: Mapping[str, Agent]
    hosts: Mapping[str, HostPin]
    approvers: Mapping[str, ApproverGroup]
    credential_ttls: Mapping[str, float]  # seconds a lease of it lives at most
    policies: Mapping[str, str]  # file name: Cedar text, of policies/*.cedar
    runtimes: Mapping[str, Runtime]  # of each agent, found with the starter's rights: the governor may not look into everybody's directories
    directory: Path  # of the configuration: relative paths in it start here
    trust_bundle: str  # PEM of the interception authority


class LeaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    credential: str
    hosts: list[str]
    verbs: list[str]
    template: str
    ttl_seconds: float


class RunDefinition(msgspec.Struct, frozen=True, kw_only=True):
    spec: SandboxSpec
    wall_seconds: float
    boundary: str  # CompiledBoundary as JSON
    policy: str  # its digest
    observe: bool
    hosts: dict[str, HostPin]
    models: list[ModelRoute]
    budget: BudgetLimits
    leases: list[LeaseTerms]
    workspace: str | None


def define(run: RunId, request: RunRequest, installation: Installation) -> RunDefinition:
    """Raises NotFound for an unknown agent and CallerError, naming the field, for what cannot be run as declared."""
    if request.agent is None:
        return _define(run, AD_HOC, _ad_hoc(request), Runtime(request.command, request.trees), request, installation)
    agent = installation.agents.get(request.agent)
    if agent is None:
        known = ", ".join(sorted(installation.agents)) or "none; add one to bailiwick.yaml"
        raise NotFound(f"agent {request.agent!r} is not in the configuration; known: {known}")
    return _define(run, request.agent, agent, installation.runtimes[request.agent], request, installation)


def compiled(name: str, agent: Agent, installation: Installation) -> CompiledBoundary:
    return compile_boundary(name, agent.boundary, agent.models, installation.approvers, policies=installation.policies)


def _ad_hoc(request: RunRequest) -> Agent:
    if not request.command:
        raise CallerError("neither an agent nor a command is given; name an agent of the configuration, or a command after `--`")
    return Agent(command=request.command, workspace=request.workspace, observe=request.observe, limits=RunLimits())


def _define(run: RunId, name: str, agent: Agent, runtime: Runtime, request: RunRequest, installation: Installation) -> RunDefinition:
    boundary = compiled(name, agent, installation)
    # Links are not followed here: the launcher judges who made them as it opens what they lead to.
    workspace = os.path.normpath(installation.directory / agent.workspace) if agent.workspace is not None else None
    routes = [_route(rules) for rules in agent.models]
    environment = _environment(run, request.task, agent, runtime.trees)
    return RunDefinition(
        spec=SandboxSpec(
            command=[part.replace("{task}", request.task) for part in runtime.command],
            environment=environment,
            trees=runtime.trees,
            workspace=workspace,
            ports=list(grants_port(agent.boundary)),
            limits=agent.limits.sandbox(),
            trust_bundle=installation.trust_bundle,
            backend=agent.sandbox,
        ),
        wall_seconds=agent.limits.wall,
        boundary=boundary.to_json(),
        policy=boundary.digest,
        observe=agent.observe or request.observe,
        hosts=dict(installation.hosts),
        models=routes,
        budget=_budget(agent),
        leases=[
            LeaseTerms(
                credential=use.use,
                hosts=[use.host],
                verbs=list(use.verbs),
                template=use.template,
                ttl_seconds=installation.credential_ttls[use.use],
            )
            for use in agent.credentials
        ],
        workspace=workspace,
    )


def _route(rules: ModelRules) -> ModelRoute:
    dialect, host, *_ = PROVIDERS[rules.provider]
    return ModelRoute(provider=rules.provider, dialect=dialect, host=host)


def _environment(run: RunId, task: str, agent: Agent, trees: list[str]) -> dict[str, str]:
    environment = {"PATH": search_path(trees), "BAILIWICK_RUN": run, "BAILIWICK_TASK": task, "LANG": "C.UTF-8"}
    for rules in agent.models:
        _, _, base, base_variable, key_variable = PROVIDERS[rules.provider]
        environment[base_variable] = f"http://{MODELS_ADDRESS}{base}"
        environment[key_variable] = PLACEHOLDER
    return environment | agent.environment


def _budget(agent: Agent) -> BudgetLimits:
    tokens = [rules.budget.tokens for rules in agent.models if rules.budget.tokens is not None]
    money = [rules.budget.microusd for rules in agent.models if rules.budget.microusd is not None]
    return BudgetLimits(
        calls=agent.limits.calls,
        writes=agent.limits.writes,
        tokens=sum(tokens) if tokens else None,
        microusd=sum(money) if money else None,
        egress_bytes=agent.limits.egress,
    )
