import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bailiwick.cli import command_installation
from bailiwick.cli.entry import application
from bailiwick.cli.exits import Exit, of_error
from bailiwick.kernel import errors
from bailiwick.kernel.document import Finding, Invalid

ROOT = Path(__file__).parents[2]


def commands() -> dict[str, Any]:
    from typer.main import get_command

    found = {}

    def walk(command: Any, name: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
        for each, below in (inner or {}).items():
            walk(below, f"{name} {each}".strip())

    walk(get_command(application), "")
    return found


def test_help_is_fast() -> None:
    """0.3 s at most, the best of five; and it loads no web framework, no YAML, no rich, no cryptography."""
    best = 9.0
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "bailiwick.cli", "--help"], check=True, capture_output=True)
        best = min(best, time.monotonic() - began)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[1:] = ['--help']; import bailiwick.cli.entry; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert not {"fastapi", "pydantic", "yaml", "rich", "cryptography", "asyncio", "anyio", "msgspec", "http.client"} & set(loaded)
    assert best <= 0.3


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_is_documented(alone: Any, name: str) -> None:
    """Help with an example; a page of the reference that names the command and each of its options."""
    command = commands()[name]
    assert f"bailiwick {name}" in alone(*name.split(), "--help") or name == "version"
    page = (ROOT / "docs/reference/cli.md").read_text()
    _, _, section = page.partition(f"\n## bailiwick {name}\n")
    section = section.partition("\n## ")[0]
    assert section, f"docs/reference/cli.md has no section `bailiwick {name}`"
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--help", "--state"):
                assert option in section, f"docs/reference/cli.md does not say what {option} of {name} does"


def test_every_exit_status_is_documented() -> None:
    """The page and the program agree."""
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    assert {int(line.split("|")[1]) for line in page.splitlines() if line.startswith("| ") and line.split("|")[1].strip().isdigit()} == {
        int(each) for each in Exit
    }


@pytest.mark.parametrize(
    "args",
    [["ps"], ["logs", "last"], ["trace", "last"], ["holds"], ["approve", "last"], ["kill", "last"], ["diff", "last"], ["status"], ["down"], ["record", "key"]],
)
def test_with_nothing_up_each_command_says_so(alone: Any, args: list[str]) -> None:
    """Status 6, where it looked, and how to start it."""
    alone(*args, status=6)
    assert f"error: nothing is up at {alone.state}" in alone.err
    assert "bailiwick up" in alone.err


def test_an_error_is_one_line_and_no_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is; the traceback is there for who asks for it."""
    monkeypatch.setattr(command_installation.options, "client", lambda _: 1 / 0)
    cli("status", status=5)
    assert cli.err.startswith("error: internal error: ZeroDivisionError")
    assert "BAILIWICK_DEBUG=1" in cli.err
    result = subprocess.run(
        [sys.executable, "-m", "bailiwick.cli", "kill", "nonsense"],
        capture_output=True,
        text=True,
        env={**os.environ, "BAILIWICK_STATE": str(cli.state), "BAILIWICK_DEBUG": "1"},
    )
    assert "Traceback" in result.stderr


def test_a_reader_that_leaves_is_no_error(cli: Any) -> None:
    """`| head` ends the program quietly."""
    run = cli("run", "deployer", "--detach").strip()
    cli.do(lambda: [cli.governance.commit("name.asked", run=run, resource="x" * 500) for _ in range(2_000)])
    process = cli.start("trace", run)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Invalid([Finding("f", 1, 1, "", "x")]), Exit.CONFIGURATION), (errors.NotFound("x"), Exit.REFUSED), (errors.CallerError("x"), Exit.REFUSED),
        (errors.BackendError("x"), Exit.BROKEN), (errors.PeerError("x"), Exit.BROKEN),
    ],
    ids=repr,
)  # fmt: skip
def test_whose_fault_it_was(error: errors.BailiwickError, status: Exit) -> None:
    """A wrong configuration, what is refused, and what of ours broke have a status each."""
    assert of_error(error) is status
