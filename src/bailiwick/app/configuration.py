"""The whole of `bailiwick.yaml`, each part in its owner's words, and what must hold across the parts."""

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pydantic

from bailiwick.api.operators import Directory, OperatorSection
from bailiwick.broker.configuration import CredentialConfiguration
from bailiwick.critic.enforcement import HostPin
from bailiwick.critic.rules import ApproverGroup
from bailiwick.critic.rules import check as check_boundary
from bailiwick.governor.configuration import AGENT_NAME, Agent
from bailiwick.governor.definition import Installation, compiled
from bailiwick.governor.runtime import Runtime, find_runtime
from bailiwick.kernel.document import Document, Finding, Invalid, Section, read, validate
from bailiwick.kernel.errors import CallerError

FILE = "bailiwick.yaml"
_HOST_NAME = r"^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$"
_TRUST_DOMAIN = r"^[a-z0-9._-]{1,255}$"  # SPIFFE-ID, section 2.1

HostName = Annotated[str, pydantic.StringConstraints(pattern=_HOST_NAME, max_length=253)]
AgentName = Annotated[str, pydantic.StringConstraints(pattern=AGENT_NAME)]


class HostEntry(Section):
    """Where a name is, when not where DNS says: the only way to a loopback, private or link-local address. `ca` is a PEM file that verifies it;
    `tls` is whether it speaks TLS whatever the agent spoke."""

    address: str
    ca: str | None = None
    tls: bool | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _text_is_an_address(cls, value: object) -> object:
        return {"address": value} if isinstance(value, str) else value

    @pydantic.field_validator("address")
    @classmethod
    def _address_and_port(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        try:
            socket.getaddrinfo(host.strip("[]"), int(port), flags=socket.AI_NUMERICHOST)
        except (ValueError, OSError) as error:
            raise ValueError(f"{value!r} is not an address and a port; write 10.20.0.7:443 or [fd00::7]:443") from error
        if not separator or not 0 < int(port) < 65536:
            raise ValueError(f"{value!r} has no port from 1 to 65535; write 10.20.0.7:443")
        return value

    def pin(self, directory: Path) -> HostPin:
        host, _, port = self.address.rpartition(":")
        return HostPin(address=host.strip("[]"), port=int(port), ca=(directory / self.ca).read_text() if self.ca else None, tls=self.tls)


class ApiSection(Section):
    """Where the API listens besides its unix socket. On TCP an operator is known by a token only, so it stays on this machine."""

    listen: str | None = None

    @pydantic.field_validator("listen")
    @classmethod
    def _on_loopback(cls, value: str | None) -> str | None:
        if value is not None:
            host, _, port = value.rpartition(":")
            try:
                loopback = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 65536
            except ValueError:
                loopback = False
            if not loopback:
                raise ValueError(f"{value!r} is not a loopback address and a port; write 127.0.0.1:8800, and put a proxy that authenticates before it")
        return value

    def address(self) -> tuple[str, int] | None:
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Configuration(Section):
    """One `bailiwick.yaml`; see docs/reference/configuration.md."""

    trust_domain: Annotated[str, pydantic.StringConstraints(pattern=_TRUST_DOMAIN)] = "bailiwick.internal"
    hosts: dict[HostName, HostEntry] = {}
    approvers: dict[str, ApproverGroup] = {}
    agents: dict[AgentName, Agent] = {}
    credentials: dict[str, CredentialConfiguration] = {}
    operators: dict[str, OperatorSection] = {}
    api: ApiSection = ApiSection()
    workers: Annotated[int, pydantic.Field(ge=1, le=64)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _say_what_comes_later(cls, value: object) -> object:
        if isinstance(value, dict) and "schedules" in value:
            raise ValueError("schedules: come with a later version; remove the section and start runs with `bailiwick run`")
        return value


def load_configuration(path: Path) -> Configuration:
    """Raises Invalid with every finding in the file and across it: what it names must exist."""
    document = read(path)
    configuration = validate(document, Configuration)
    findings = list(_across(document, configuration, path.parent))
    if findings:
        raise Invalid(findings)
    return configuration


def check(path: Path) -> list[Finding]:
    """Every finding of the configuration and the policies beside it; none when all is well."""
    try:
        load_configuration(path)
    except Invalid as invalid:
        return invalid.findings
    return []


def _across(document: Document, configuration: Configuration, directory: Path) -> list[Finding]:
    findings = [
        document.finding(path, message)
        for name, agent in configuration.agents.items()
        for path, message in check_boundary(name, agent.boundary, agent.models, configuration.approvers)
    ]

    def must_exist(path: tuple[str | int, ...], name: str, kind: Callable[[Path], bool], what: str) -> None:
        if not kind(directory / name):
            findings.append(document.finding(path, f"{name!r} is not {what} (looked for at {directory / name})"))

    for host, entry in configuration.hosts.items():
        if entry.ca is not None:
            must_exist(("hosts", host, "ca"), entry.ca, Path.is_file, "a file")
    for name, agent in configuration.agents.items():
        at = ("agents", name)
        if agent.workspace is not None:
            must_exist((*at, "workspace"), agent.workspace, Path.is_dir, "a directory")
        for index, tree in enumerate(agent.trees):
            must_exist((*at, "trees", index), tree, Path.is_dir, "a directory")
        try:
            runtime_of(agent, directory)
        except CallerError as error:
            findings.append(document.finding((*at, "command"), str(error)))
        for index, use in enumerate(agent.credentials):
            if use.use not in configuration.credentials:
                known = ", ".join(configuration.credentials) or "none"
                findings.append(document.finding((*at, "credentials", index, "use"), f"credential {use.use!r} is not declared; declared: {known}"))
    for group, approvers in configuration.approvers.items():
        for index, operator in enumerate(approvers.operators):
            if configuration.operators and operator not in configuration.operators:
                known = ", ".join(configuration.operators)
                findings.append(document.finding(("approvers", group, "operators", index), f"operator {operator!r} is not declared; declared: {known}"))
    try:
        Directory(configuration.operators, starter_uid=os.getuid(), separate=os.getuid() == 0)
    except CallerError as error:
        findings.append(document.finding(("operators",), str(error)))
    if not findings:
        findings += _policies(document, configuration, directory)
    return findings


def _policies(document: Document, configuration: Configuration, directory: Path) -> list[Finding]:
    findings: list[Finding] = []
    installed = installation(configuration, directory, trust_bundle="")
    for name, agent in configuration.agents.items():
        try:
            compiled(name, agent, installed)
        except Invalid as invalid:
            findings += invalid.findings
        except CallerError as error:
            findings.append(document.finding(("agents", name), str(error)))
    return list(dict.fromkeys(findings))


def installation(configuration: Configuration, directory: Path, *, trust_bundle: str) -> Installation:
    policies = sorted((directory / "policies").glob("*.cedar"))
    return Installation(
        trust_domain=configuration.trust_domain,
        agents=configuration.agents,
        hosts={name: entry.pin(directory) for name, entry in configuration.hosts.items()},
        approvers=configuration.approvers,
        credential_ttls={name: credential.ttl for name, credential in configuration.credentials.items()},
        policies={str(path): path.read_text() for path in policies},
        directory=directory,
        runtimes={name: runtime_of(agent, directory) for name, agent in configuration.agents.items()},
        trust_bundle=trust_bundle,
    )


def runtime_of(agent: Agent, directory: Path) -> Runtime:
    """CallerError when its program is nowhere."""
    trees = [str((directory / tree).resolve()) for tree in agent.trees]
    return find_runtime(agent.command, trees, os.environ.get("PATH", ""))
