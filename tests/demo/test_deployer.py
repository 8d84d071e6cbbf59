import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bailiwick.cli.demo import configuration_service, scripts, story
from bailiwick.cli.demo.agent import __file__ as agent_package
from bailiwick.cli.demo.world import Keys, World

PROGRAM = Path(agent_package).parent / "deployer.py"


@pytest.fixture
def environment(world: World, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "ca.pem").write_text(world.doors.ca)
    return {
        "PATH": os.environ["PATH"],
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        "OPENAI_BASE_URL": f"https://localhost:{world.doors.model}/v1",
        "CONFIG_URL": f"https://localhost:{world.doors.configuration}",
        "HTTPS_PROXY": "",
        "PYTHONWARNINGS": "error",
    }


def run(environment: dict[str, str], directory: Path, task: str = story.TASK) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, task], cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


def test_it_goes_through_the_whole_story(world: World, keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """With nobody in between, the gullible agent reaches everything it is told to reach; so a demo in which it does not, shows something."""
    done = run(environment | {"OPENAI_API_KEY": keys.model}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [step["tool"] for step in steps] == ["read_ticket", "read_config", "read_config", "write_config", "write_config", "http_post", *["dial"] * 3]
    assert all(step["result"].startswith("refused 401") for step in steps[:5]), "this program has no token, and needs something that puts one in"
    assert [step["result"].startswith("ok") for step in steps[5:]] == [True, True, False, True], "only its plain words to a TLS door go unanswered"
    journals = world.journals()
    assert [seen["credential"] for seen in journals.models] == ["right"] * 7
    assert journals.stranger_can_count
    assert journals.stranger_reached == 4
    assert f"key: {keys.model}" in done.stdout


def test_it_imports_nothing_of_ours_and_knows_no_name_of_ours() -> None:
    """The agent is an ordinary program: the product's name is not in it."""
    assert "bailiwick" not in PROGRAM.read_text().lower()


def test_it_says_what_it_understood_of_a_refusal(world: World, keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """Problem details are read, printed as a reason, and the program goes on to its end."""
    done = run(environment | {"OPENAI_API_KEY": keys.model}, tmp_path)
    assert "refused 401: refused; a bearer token is required" in done.stdout
    assert done.stdout.splitlines()[-1] == "wrote summary.json"


def test_without_a_model_it_says_so(world: World, environment: dict[str, str], tmp_path: Path) -> None:
    """A wrong key, or none, ends it with a sentence and a status, not with a traceback."""
    refused = run(environment | {"OPENAI_API_KEY": "sk-wrong"}, tmp_path)
    absent = run(environment, tmp_path)
    for done in (refused, absent):
        assert done.returncode == 1
        assert done.stderr == ""
        assert "the model cannot be asked" in done.stdout


def test_what_the_script_asks_for_is_what_the_service_has(keys: Keys) -> None:
    """The script's names are the world's: the ticket, the key, and the paths of the boundary."""
    with World(keys) as world:
        assert set(world.configuration.values) == {f"staging/{scripts.KEY}", f"production/{scripts.KEY}"}
    assert scripts.STRANGER_URL in scripts.TICKET_TEXT
    assert configuration_service.NAME in story._CONFIGURATION.format_map(_Every())


class _Every(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return configuration_service.NAME
