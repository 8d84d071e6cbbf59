"""The broker's part of a configuration: where credentials come from, and which an agent may use for which host."""

import ipaddress
import re
from typing import Annotated, Any, Literal

import pydantic

from bailiwick.broker.template import Template
from bailiwick.critic.action import Verb
from bailiwick.kernel.document import Section
from bailiwick.kernel.errors import CallerError
from bailiwick.kernel.quantity import Seconds

TTL_SECONDS = 15 * 60.0
TTL_SECONDS_MAX = 7 * 24 * 3600.0

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")

_LATER = ("sealed", "vault", "openbao", "postgresql", "github-app", "aws-sts", "oauth")  # sources of later versions
_TAKEN = ("environment", "file")


def _ttl(value: float) -> float:
    if not 0 < value <= TTL_SECONDS_MAX:
        raise ValueError(f"{value:g} s is not a lease's lifetime; must be more than 0 s and at most 7d")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a credential's name; must be 1 to 64 letters, digits, '.', '_' or '-'")
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        # Not shown: who mistakes what belongs here wrote the secret itself.
        raise ValueError("is not a variable's name; must be letters, digits and '_', as in API_TOKEN: the name, never the value")
    return value


def _path(value: str) -> str:
    if not value or "\0" in value or len(value) > 4096:
        raise ValueError("is not a path; must name a file")
    return value


Lifetime = Annotated[Seconds, pydantic.AfterValidator(_ttl)]
CredentialName = Annotated[str, pydantic.AfterValidator(_name)]


class EnvironmentCredential(Section):
    """For development: a variable of the environment that `bailiwick up` was started with."""

    source: Literal["environment"]
    variable: Annotated[str, pydantic.AfterValidator(_variable)]
    ttl: Lifetime = TTL_SECONDS


class FileCredential(Section):
    """For development: a file's content without its last newline. A relative path starts at the configuration's directory."""

    source: Literal["file"]
    path: Annotated[str, pydantic.AfterValidator(_path)]
    ttl: Lifetime = TTL_SECONDS


def _known_source(value: Any) -> Any:
    """Says of a source that is not taken whether it will be: pydantic's own message would list the union's tags."""
    if isinstance(value, pydantic.BaseModel):
        return value
    if not isinstance(value, dict):
        raise ValueError("is not a credential; write it as in {source: environment, variable: API_TOKEN}")
    if "source" not in value:
        raise ValueError(f"has no source; must be one of {', '.join(_TAKEN)}")
    source = value["source"]
    if source in _LATER:
        raise ValueError(f"source {source!r} comes with a later version; use one of {', '.join(_TAKEN)}")
    if source not in _TAKEN:
        raise ValueError(f"source {source!r} is unknown; must be one of {', '.join(_TAKEN)}")
    return value


CredentialConfiguration = Annotated[
    EnvironmentCredential | FileCredential,
    pydantic.Field(discriminator="source"),
    pydantic.BeforeValidator(_known_source),
]


class CredentialUse(Section):
    """One entry of an agent's `credentials`: the credential, the one host it is for (exact; no pattern, no port), the field it fills, and the verbs
    it may be used for (all, unless some are named: the boundary decides first in any case)."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    use: CredentialName
    host: str = pydantic.Field(alias="for")
    template: str = pydantic.Field(alias="as", default="Authorization: Bearer {value}")
    verbs: tuple[Verb, ...] = tuple(Verb)

    @pydantic.field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        host = canonical_host(value)
        if not (_HOST.fullmatch(host) or _is_ipv6(host)):
            raise ValueError(f"{value!r} is not one host; must be a name such as config.internal, without a scheme, port, path or pattern")
        return host

    @pydantic.field_validator("template")
    @classmethod
    def _a_template(cls, value: str) -> str:
        try:
            Template.parse(value)
        except CallerError as error:
            raise ValueError(str(error)) from error
        return value

    @pydantic.field_validator("verbs")
    @classmethod
    def _each_once(cls, value: tuple[Verb, ...]) -> tuple[Verb, ...]:
        if not value:
            raise ValueError("names no verb; name some, or leave it out for all of them")
        if len(set(value)) != len(value):
            raise ValueError("names a verb twice; keep one")
        return value


def _one_credential_a_field(uses: list[CredentialUse]) -> list[CredentialUse]:
    for index, use in enumerate(uses):
        for other in uses[:index]:
            same = Template.parse(use.template).field.lower() == Template.parse(other.template).field.lower()
            if same and use.host == other.host and set(use.verbs) & set(other.verbs):
                raise ValueError(f"{other.use!r} and {use.use!r} fill the same field of {use.host} for the same verb; keep one, or give them different `verbs`")
    return uses


CredentialUses = Annotated[list[CredentialUse], pydantic.AfterValidator(_one_credential_a_field)]


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


def canonical_host(name: str) -> str:
    """As hosts are compared: lower case, without one trailing dot, an IPv6 literal without its brackets."""
    lowered = name.lower().removesuffix(".")
    return lowered[1:-1] if lowered.startswith("[") and lowered.endswith("]") else lowered
