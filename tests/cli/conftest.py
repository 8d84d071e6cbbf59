import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.governance import FakeGovernance
from tests.fakes.served import Served, served
from typer.testing import CliRunner

from bailiwick.api.application import create
from bailiwick.api.operators import Directory
from bailiwick.cli.entry import application
from bailiwick.kernel.layout import Layout


class Cli:
    """The program, in this process or in one of its own, against a served API over a fake governor."""

    def __init__(self, state: Path, server: Served | None, governance: FakeGovernance) -> None:
        self.state = state
        self.server = server
        self.governance = governance
        self.status = 0
        self.err = ""

    def __call__(self, *args: str, status: int = 0, input: str | None = None) -> str:
        result = CliRunner().invoke(application, list(args), input=input, env={"BAILIWICK_STATE": str(self.state), "COLUMNS": "80", "NO_COLOR": "1"})
        self.err = result.stderr
        assert result.exit_code == status, f"{args}: {result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert "Traceback" not in result.output
        return result.stdout

    def json(self, *args: str, status: int = 0) -> Any:
        return json.loads(self(*args, "--json", status=status))

    def start(self, *args: str, **options: Any) -> "subprocess.Popen[str]":
        environment = {**os.environ, "BAILIWICK_STATE": str(self.state), "COLUMNS": "80", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "bailiwick.cli", *args]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(command, text=True, env=environment, **pipes)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        assert self.server is not None
        return self.server.call(function, *args)


@pytest.fixture
def governance() -> FakeGovernance:
    return FakeGovernance()


@pytest.fixture
def cli(governance: FakeGovernance, tmp_path: Path) -> Iterator[Cli]:
    directory = Directory({}, starter_uid=os.getuid(), separate=os.getuid() == 0)
    state = tmp_path / "state"
    with served(create(governance, directory.authenticate), Path(Layout(state).socket("api"))) as server:
        yield Cli(state, server, governance)


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """Nothing is up."""
    return Cli(tmp_path / "state", None, FakeGovernance())
