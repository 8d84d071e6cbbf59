"""An agent as the configuration declares it, and the limits of its runs. Boundary and models are the critic's words, credentials the broker's."""

from typing import Annotated, Literal

import pydantic

from bailiwick.broker.configuration import CredentialUses
from bailiwick.critic.rules import ModelRules, Rule
from bailiwick.kernel import limits
from bailiwick.kernel.document import Section
from bailiwick.kernel.quantity import Bytes, Seconds
from bailiwick.sandbox.spec import SandboxLimits

AGENT_NAME = r"^[a-z][a-z0-9-]{0,62}$"  # a SPIFFE path segment and a DNS label

_LATER = {
    "image": "images come with the docker backend of a later version; give `command` and `trees`",
    "delegates_to": "delegation comes with a later version; remove it",
}

PROVIDERS = {  # (dialect, host, base URL's path, variable of the base URL, variable of the key)
    "openai": ("openai", "api.openai.com", "/openai/v1", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "anthropic": ("anthropic", "api.anthropic.com", "/anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
}

Positive = Annotated[int, pydantic.Field(gt=0)]


class RunLimits(Section):
    """Hard bounds on one run. `calls` and `writes` count actions that were forwarded; `wall` stands still while the run waits for sign-off."""

    cpu: Annotated[float, pydantic.Field(gt=0, le=1024)] | None = None
    memory: Bytes | None = None
    pids: Positive | None = None
    open_files: Positive | None = None
    disk: Bytes | None = None
    wall: Seconds = limits.RUN_WALL_SECONDS
    calls: Positive | None = None
    writes: int | None = pydantic.Field(default=None, ge=0)
    egress: Bytes | None = None

    def sandbox(self) -> SandboxLimits:
        given = {
            "cpu": self.cpu,
            "memory_bytes": self.memory,
            "pids": self.pids,
            "open_files": self.open_files,
            "disk_bytes": self.disk,
        }
        written = {name: value for name, value in given.items() if value is not None}
        return SandboxLimits(**written, required=frozenset(written))  # type: ignore[arg-type]


class Agent(Section):
    """A declared workload. `command` may hold `{task}`, which becomes the task's text; it is in BAILIWICK_TASK besides. `trees` are directories of the
    host that appear read-only at their own paths (an interpreter, a virtual environment); `workspace` is copied in, and is the working directory."""

    command: Annotated[list[str], pydantic.Field(min_length=1)]
    workspace: str | None = None
    trees: list[str] = []
    environment: dict[str, str] = {}
    sandbox: Literal["bubblewrap"] = "bubblewrap"
    observe: bool = False
    limits: RunLimits = RunLimits()
    models: list[ModelRules] = []
    boundary: list[Rule] = []
    credentials: CredentialUses = []

    @pydantic.model_validator(mode="before")
    @classmethod
    def _say_what_comes_later(cls, value: object) -> object:
        if isinstance(value, dict):
            for key, message in _LATER.items():
                if key in value:
                    raise ValueError(f"{key}: {message}")
        return value

    @pydantic.field_validator("models")
    @classmethod
    def _served(cls, value: list[ModelRules]) -> list[ModelRules]:
        for rules in value:
            if rules.provider not in PROVIDERS:
                raise ValueError(f"provider {rules.provider!r} is not served; must be one of {', '.join(PROVIDERS)}, or reach it by a rule for its host")
        return value

    @pydantic.field_validator("models", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value
