import os
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("BAILIWICK_CONFIG", raising=False)
    return place


def test_the_starter_is_valid_as_written(alone: Any, here: Path) -> None:
    """`check` passes on what `init` wrote, and the agent is a program."""
    assert "bailiwick.yaml" in alone("init")
    assert "is valid" in alone("check")
    assert alone.json("check") == []
    compile((here / "agents/hello/agent.py").read_text(), "agent.py", "exec")
    assert "permit" in alone("policy", "show", "hello")
    alone("policy", "show", "nobody", status=4)
    assert "known: hello" in alone.err


def test_what_the_starter_explains_is_valid_too(alone: Any, here: Path) -> None:
    """Every commented section, uncommented, still checks."""
    alone("init")
    text = (here / "bailiwick.yaml").read_text()
    keys = ("operators:", "hosts:", "credentials:", "models:", "  ana:", "  bo:", "  config.internal:", "  config-token:")
    lines = []
    for line in text.splitlines():
        bare = line.lstrip().removeprefix("# ")
        lines.append(line.replace("# ", "", 1) if line.lstrip().startswith("#") and bare.startswith(keys) else line)
    uncommented = "\n".join(lines).replace(f"[{os.environ.get('USER', 'root')}]", "[ana]").replace("user: ana", "uid: 5001").replace("user: bo", "uid: 5002")
    assert {"operators", "hosts", "credentials"} <= set(yaml.safe_load(uncommented))
    assert {"models", "credentials"} <= set(yaml.safe_load(uncommented)["agents"]["hello"])
    (here / "bailiwick.yaml").write_text(uncommented.replace("operators: [root]", "operators: [ana]"))
    assert "is valid" in alone("check"), alone.err


def test_init_overwrites_nothing(alone: Any, here: Path) -> None:
    """Unless told to; and then a link is replaced, not written through."""
    (here / "bailiwick.yaml").write_text("mine")
    alone("init", status=4)
    assert "--force" in alone.err
    assert [path.name for path in here.iterdir()] == ["bailiwick.yaml"]
    other = here.parent / "other"
    other.write_text("precious")
    (here / "bailiwick.yaml").unlink()
    (here / "bailiwick.yaml").symlink_to(other)
    alone("init", status=4)
    alone("init", "--force")
    assert other.read_text() == "precious"
    alone("init", "elsewhere")
    assert (here / "elsewhere" / "policies" / "README.md").exists()


def test_check_names_every_finding(alone: Any, here: Path) -> None:
    """File, line, column, what, and the way out; for a program as objects; status 3."""
    (here / "bailiwick.yaml").write_text("trust_domain: UPPER\nagents:\n  a:\n    command: []\n    colour: red\n")
    shown = alone("check", status=3)
    for place in ("bailiwick.yaml:1:1: trust_domain", "bailiwick.yaml:4:5: agents.a.command", "bailiwick.yaml:5:5: agents.a.colour: is not a known key"):
        assert place in shown
    assert len(alone.json("check", status=3)) == len(shown.splitlines())
    alone("check", "nowhere", status=3)
    assert "bailiwick init" in alone.err
    (here / "bailiwick.yaml").write_bytes(b"a: \xff\x1b[31m\n")
    assert "\x1b" not in alone("check", str(here), status=3)


def test_what_needs_a_configuration_says_so(alone: Any, here: Path) -> None:
    """`up` and an agent's run without one: status 3 and how to get one."""
    for args in (["up"], ["up", "-c", "none.yaml"], ["run", "hello"], ["run", "-c", "none.yaml", "hello"]):
        alone(*args, status=3)
        assert "bailiwick init" in alone.err


def test_down_orders_the_end(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an admin, and it waits until nothing answers any more."""
    from bailiwick.cli import command_run

    up = iter([True, False])
    monkeypatch.setattr(command_run, "_is_up", lambda _: next(up))
    assert "down" in cli("down")
    assert cli.governance.stopped_by is not None
