"""What most end-to-end tests stand on: the servers of the demo, whatever else a test pins, and an installation that knows them all by name.

with Stage({"engineer": {"command": [...], "boundary": [...]}}) as stage:
    done = stage.run("engineer", "the task")
    assert stage.arrived("PUT", "/v1/staging/level")
"""

import contextlib
import json
import site
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.installation import TREES, Installation

from bailiwick.cli.demo import configuration_service
from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.configuration_service import Arrival, ConfigurationService
from bailiwick.cli.demo.model_server import ModelServer
from bailiwick.cli.demo.world import Keys

OPENAI, ANTHROPIC, CONFIG = "api.openai.com", "api.anthropic.com", configuration_service.NAME
PROGRAMS = Path(__file__).parent / "programs"

LIBRARIES = [  # packages that lie beside the interpreter's own trees
    place for place in site.getsitepackages() + sys.path if "site-packages" in place and not any(Path(place).is_relative_to(tree) for tree in [*TREES, "/usr"])
]
_LENT = [
    {"use": "config-token", "for": CONFIG, "as": "Authorization: Bearer {value}"},
    {"use": "model-key", "for": OPENAI, "as": "Authorization: Bearer {value}"},
    {"use": "model-key", "for": ANTHROPIC, "as": "x-api-key: {value}"},
]


class Stage(Installation):
    """`agents` are as in bailiwick.yaml; what they leave out of trees and credentials is given. `pins` are further entries of `hosts`; `values` are what
    the configuration service starts with; `more` is the rest of the configuration. `programs` lie in each workspace named by an agent."""

    def __init__(
        self,
        agents: Mapping[str, dict[str, Any]],
        *,
        pins: Callable[["Stage"], Mapping[str, dict[str, Any]]] | None = None,
        values: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes] | None = None,
        more: Mapping[str, Any] | None = None,
        workers: int = 1,
    ) -> None:
        self.keys = Keys.fresh()
        self.authority = Authority.create("end-to-end authority")
        tls = self.authority.server_context
        self.model = ModelServer(key=self.keys.model, tls=tls(OPENAI, ANTHROPIC))
        self.config = ConfigurationService(token=self.keys.configuration, values=values, tls=tls(CONFIG))
        with contextlib.ExitStack() as servers:
            servers.enter_context(self.model)
            servers.enter_context(self.config)
            self.servers = servers.pop_all()
        pinned = {
            OPENAI: self.pin(self.model.port),
            ANTHROPIC: self.pin(self.model.port),
            CONFIG: self.pin(self.config.port),
        }
        configuration = {
            "trust_domain": "test.internal",
            "hosts": pinned | dict(pins(self) if pins else {}),
            "agents": {name: {"trees": list(dict.fromkeys([*TREES, *LIBRARIES])), "credentials": _LENT} | agent for name, agent in agents.items()},
            "credentials": {
                "config-token": {"source": "file", "path": "secrets/config"},
                "model-key": {"source": "environment", "variable": "STAGE_MODEL_KEY"},
            },
            **(more or {}),
        }
        super().__init__(
            json.dumps(configuration, indent=1),  # which is YAML, too
            files={"ca.pem": self.authority.pem, "secrets/config": self.keys.configuration, **(files or {})},
            environment={"STAGE_MODEL_KEY": self.keys.model},
            workers=workers,
        )
        (self.directory / "secrets" / "config").chmod(0o600)

    @staticmethod
    def pin(port: int, *, ca: str | None = "ca.pem", tls: bool = True) -> dict[str, Any]:
        """An entry of `hosts` that leads to a server of this machine."""
        return {"address": f"127.0.0.1:{port}", "tls": tls} | ({"ca": ca} if ca and tls else {})

    def __enter__(self) -> "Stage":
        try:
            super().__enter__()
        except BaseException:
            self.servers.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        try:
            super().__exit__(*details)
        finally:
            self.servers.close()

    def arrived(self, method: str, path: str) -> list[Arrival]:
        return [arrival for arrival in self.config.arrivals if (arrival.method, arrival.path) == (method, path)]


def program(name: str) -> str:
    """The text of an agent's program in `programs/`, to be put into a workspace."""
    return (PROGRAMS / name).read_text()


def decided(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Every action of a run as (verb, resource, decision), in order."""
    return [(event["verb"], event["resource"], event["decision"]) for event in events if event["kind"] == "action.decided"]


def positions(events: list[dict[str, Any]], kind: str, **wanted: Any) -> list[int]:
    """Where in the record events of this kind stand whose fields, or fields of their body, are as wanted."""
    return [
        index
        for index, event in enumerate(events)
        if event["kind"] == kind and all(event.get(name, event["body"].get(name)) == value for name, value in wanted.items())
    ]
