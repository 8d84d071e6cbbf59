"""The linter: what is dangerous is refused whatever it looks like, and what is ordinary is not."""

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.errors import CallerError
from bailiwick.sandbox.spec import SandboxLimits, SandboxSpec, lint, lint_workspace_at


def spec(**given: object) -> SandboxSpec:
    return SandboxSpec(**{"command": ["/bin/true"], "environment": {}, "trust_bundle": "x", **given})


def refused(said: str, *, state: Path | None = None, **given: object) -> None:
    with pytest.raises(CallerError, match=said):
        lint(spec(**given), state=state)


def verdict(**given: object) -> str:
    """What is said against it; empty when nothing is."""
    try:
        lint(spec(**given))
    except CallerError as error:
        return str(error)
    return ""


def test_an_ordinary_specification_passes(tmp_path: Path) -> None:
    """A command, placeholders, a workspace, a tree and some ports are nothing to refuse."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tree").mkdir()
    environment = {
        "OPENAI_API_KEY": "bailiwick-lends-this-key",
        "OPENAI_BASE_URL": "http://198.18.0.2/openai/v1",
        "MODE": "x",
        "TOKENIZERS_PARALLELISM": "false",
    }
    lint(
        spec(environment=environment, workspace=str(tmp_path / "work"), trees=[str(tmp_path / "tree"), "/usr/share"], ports=[5432, 65_535]),
        state=tmp_path / "state",
    )


@pytest.mark.parametrize(
    "tree", ["/", "/home", "/root", "/var", "/usr", "/tmp", "/proc", "/sys", "/dev", "/etc", "/boot", "/run", "/proc/1", "/dev/shm", "/etc/ssl"]
)
def test_trees_that_hold_what_is_not_the_agents(tree: str, tmp_path: Path) -> None:
    """Such a place is refused under its own name and through a link."""
    if not Path(tree).exists():
        pytest.skip("not on this machine")
    refused("trees: ", trees=[tree])
    (tmp_path / "link").symlink_to(tree)
    refused("trees: ", trees=[str(tmp_path / "link")])


@pytest.mark.parametrize("tree", ["usr/share", "", "/usr/../etc", "/usr//share", "/usr/share/", "/usr/./share", "/usr/share\0", "/no/such/tree"])
def test_trees_that_are_no_plain_path(tree: str) -> None:
    """Nothing that could be read in two ways is taken."""
    refused("trees: ", trees=[tree])


def test_sockets_devices_and_state(tmp_path: Path) -> None:
    """A socket, a pipe, our own directory, what holds it and what lies in it are refused, as tree and as workspace."""
    state = tmp_path / "holder" / "state"
    (state / "broker").mkdir(parents=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "docker.sock"))
    import os

    os.mkfifo(tmp_path / "pipe")
    refused("engine's socket", trees=[str(tmp_path / "docker.sock")], state=state)
    refused("device or pipe", trees=[str(tmp_path / "pipe")], state=state)
    sock.close()
    for place in (state, state / "broker", state.parent):
        refused("keeps its record and keys", trees=[str(place)], state=state)
        refused("keeps its record and keys", workspace=str(place), state=state)
    (tmp_path / "link").symlink_to(state / "broker")
    refused("keeps its record and keys", workspace=str(tmp_path / "link"), state=state)


@pytest.mark.parametrize(
    "workspace",
    ["relative", "/no/such", "/", "/etc", "/usr", "/home", "/proc/self", "/etc/passwd", "/a\0b", "/etc/ssl", "/run/lock", "/var/lib", "/usr/share", "/tmp/.."],
)
def test_workspaces_that_are_none(workspace: str) -> None:
    """Each is refused by name."""
    refused("workspace: ", workspace=workspace)


@pytest.mark.parametrize(
    "place", ["/root/.ssh", "/root/.cache/x", "/home/ana", "/home/ana/.aws", "/home/ana/.config/gh", "/var/log", "/boot/grub", "/run/user/7"]
)
def test_workspaces_that_hold_what_is_not_the_agents(place: str) -> None:
    """Whole homes, what is hidden in one, and the system's own places are refused by where they are, whatever they were called."""
    with pytest.raises(CallerError, match=r"workspace: '\./deployer' is"):
        lint_workspace_at("workspace: './deployer'", Path(place), None)
    for fine in ("/root/project", "/home/ana/project", "/home/ana/work/.hidden", "/var/lib/app/project", "/srv/project"):
        lint_workspace_at("workspace: 'x'", Path(fine), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GITHUB_TOKEN", "abc123def456"), ("DB_PASSWORD", "hunter2hunter2"), ("aws_secret_access_key", "abcd/efgh"), ("API_KEY", "k-123-456"),
        ("X", "AKIA" + "A" * 16), ("HARMLESS", "ghp_" + "a" * 36), ("NOTE", "sk-" + "b" * 40), ("PEM", "-----BEGIN RSA PRIVATE KEY-----\nMII"), ("URL", "postgres://user:hunter2@db/x"),
        ("SLACK", "xoxb-1234567890-abc"), ("J", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig"), ("SERVICE_AUTH", "s3cr3tvalue"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_refused_and_not_shown(name: str, value: str) -> None:
    """The error names the variable and never the value."""
    with pytest.raises(CallerError, match=f"environment: {name} looks like a secret") as caught:
        lint(spec(environment={name: value}))
    assert value not in str(caught.value)


@given(name=st.text(max_size=20), value=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_environment_is_taken_or_refused_by_name(name: str, value: str) -> None:
    """Only names a shell knows pass, no NUL does, and a refusal is always a CallerError about the environment."""
    said = verdict(environment={name: value})
    named = name.isascii() and name.isidentifier() and "\0" not in value
    assert said.startswith("environment: ") or (said == "" and named)


@given(command=st.lists(st.text(max_size=10), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_command_is_taken_or_refused_by_name(command: list[str]) -> None:
    """Not empty, and without NUL; nothing else is asked of it here."""
    expected = bool(command) and bool(command[0]) and not any("\0" in word for word in command)
    said = verdict(command=command)
    assert said == "" if expected else said.startswith("command: ")


@given(ports=st.lists(st.integers(-10, 70_000), max_size=5))
@settings(max_examples=150, deadline=None)
def test_ports(ports: list[int]) -> None:
    """1 to 65535 and not 53."""
    expected = all(1 <= port <= 65_535 and port != 53 for port in ports)
    said = verdict(ports=ports)
    assert said == "" if expected else said.startswith("ports: ")


@pytest.mark.parametrize(
    "limits",
    [
        SandboxLimits(cpu=0), SandboxLimits(cpu=-1), SandboxLimits(cpu=float("nan")), SandboxLimits(cpu=float("inf")), SandboxLimits(memory_bytes=0),
        SandboxLimits(pids=0), SandboxLimits(open_files=1), SandboxLimits(disk_bytes=0), SandboxLimits(memory_bytes=1 << 60),
        SandboxLimits(required=frozenset({"gpu"})),
    ],
)  # fmt: skip
def test_limits_bound_something(limits: SandboxLimits) -> None:
    """Zero, endless, negative and not-a-number are no limits; a required one that nobody knows cannot be kept."""
    refused("limits", limits=limits)
