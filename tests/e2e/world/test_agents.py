"""Two real agents against the scripted model, outside any sandbox: what drives them is right before anything of ours stands in between."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.world import agents

from bailiwick.cli.demo.model_server import ModelServer

KEY = "sk-scripted"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(module) for module in ("minisweagent", "agents")),
        reason="needs mini-swe-agent and openai-agents (dependency group e2e)",
    ),
]


def run(command: list[str], environment: dict[str, str], directory: Path, server: ModelServer) -> subprocess.CompletedProcess[str]:
    nowhere = "http://127.0.0.1:9"  # whatever they would like to ask of the world, they cannot
    surroundings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(directory),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(command, cwd=directory, env=surroundings | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)


def test_mini_swe_agent_edits_a_file_and_calls_an_api(tmp_path: Path) -> None:
    """mini-swe-agent, unmodified, does the two commands of its script and submits."""
    (tmp_path / "settings.ini").write_text("level = low\n")
    with ModelServer(key=KEY) as api_and_model:
        url = f"http://127.0.0.1:{api_and_model.port}/v1/models"
        edit = "sed -i s/low/high/ settings.ini"
        ask = f'curl --silent --output answer --write-out "%{{http_code}}" -H "authorization: Bearer $OPENAI_API_KEY" {url}'
        api_and_model.follow("scripted-engineer", agents.engineer(edit, ask))
        command, environment = agents.mini_swe_agent("Raise the level.", program=str(Path(sys.executable).parent / "mini"))
        done = run(command, environment, tmp_path, api_and_model)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        paths = [seen.path for seen in api_and_model.seen]
    assert (tmp_path / "settings.ini").read_text() == "level = high\n"
    assert '"scripted-engineer"' in (tmp_path / "answer").read_text()
    assert paths == ["/v1/chat/completions", "/v1/chat/completions", "/v1/models", "/v1/chat/completions"]


def test_openai_agents_calls_two_tools(tmp_path: Path) -> None:
    """An agent on the openai-agents SDK uses both tools over the Responses API and ends with the model's last word."""
    with ModelServer(key=KEY, scripts={"scripted-clerk": agents.TOOLS_SCRIPT}) as server:
        command, environment = agents.tools_agent(tmp_path, "What of order 17?", python=sys.executable)
        done = run(command, environment, tmp_path, server)
        assert done.stdout == "Order 17 is paid; I left a note.\n", done.stderr
        assert [seen.path for seen in server.seen] == ["/v1/responses"] * 3
        assert {seen.credential for seen in server.seen} == {"right"}
    assert (tmp_path / "note.txt").read_text() == "order 17 is paid"
