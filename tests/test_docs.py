"""The documents say what is there: every command, setting, event, code, variable and promise, and nothing that is gone."""

import ast
import importlib.machinery
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs
import pytest
import typer
import yaml
from typer.main import get_command

from bailiwick.cli import starter
from bailiwick.cli.entry import application
from bailiwick.gateway.refusal import TITLES
from bailiwick.kernel import environment, limits
from bailiwick.kernel.accounts import RUN_UIDS, UID_BASE, Accounts, Role
from bailiwick.record.event import KINDS
from bailiwick.sandbox.capabilities import survey

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bailiwick"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINES_AWAY_MAX = 100  # of a line anchor from where the name is: a reader still finds it


def page(name: str) -> str:
    return (ROOT / name).read_text()


@cache
def tool(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(f"tools_{name}", str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


# -- what is made from the code is current


def test_the_schema_and_the_tables_of_settings_are_current() -> None:
    """`tools/schema` would change nothing, and something is said of each key."""
    done = subprocess.run([sys.executable, str(ROOT / "tools/schema"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def configurations() -> dict[str, str]:
    """Whole configurations that the documents and `init` show."""
    found = {"starter": starter.CONFIGURATION.replace("@OPERATOR@", "ana")}
    for name in ("docs/reference/configuration.md", "docs/tutorials/first-run.md"):
        blocks = re.findall(r"^```yaml\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
        found[name] = next(block for block in blocks if "\nagents:" in block)
    return found


@pytest.mark.parametrize("name", sorted(configurations()))
def test_the_schema_takes_what_the_product_takes(name: str) -> None:
    """Configurations that are shown as valid are valid by the published schema."""
    validator = jsonschema_rs.validator_for(json.loads(page("docs/reference/bailiwick.schema.json")))
    assert [error.message for error in validator.iter_errors(yaml.safe_load(configurations()[name]))] == []


@pytest.mark.parametrize(
    "text",
    ["agent: {}", "agents: {A: {command: [x]}}", "agents: {a: {command: []}}", "agents: {a: {command: [x], limits: {wall: 3 weeks}}}", "workers: 0",
     "agents: {a: {command: [x], boundary: [{allow: [reed], http: h}]}}",
     "hosts: {a: {address: '1.2.3.4:5', tsl: false}}", "credentials: {a: {source: vault}}"],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(text: str) -> None:
    """An editor that knows the schema marks it."""
    validator = jsonschema_rs.validator_for(json.loads(page("docs/reference/bailiwick.schema.json")))
    assert not validator.is_valid(yaml.safe_load(text))


def test_the_picture_is_of_the_imports_there_are() -> None:
    """`tools/architecture` would draw the same."""
    assert tool("architecture").draw() == page("docs/explanation/architecture.svg"), "run: .venv/bin/python tools/architecture --write"


@pytest.mark.parametrize("name", ["docs/explanation/architecture.md", "docs/explanation/threat-model.md", "SECURITY-INVARIANTS.md"])
def test_what_the_documents_point_at_is_there(name: str) -> None:
    """Each `file.py:name` names something, about at the line its link says."""
    text, architecture = page(name), tool("architecture")
    assert architecture.pointed(text)[1] == []
    for link in architecture.LINK.finditer(text):
        line = architecture.defined(SOURCE / link["path"], link["name"])
        assert abs(line - int(link["line"])) <= LINES_AWAY_MAX, f"{link[0]} is at line {line} now; run: .venv/bin/python tools/architecture --write"


# -- the invariants


def invariants() -> dict[str, str]:
    sections = re.split(r"^## ", page("SECURITY-INVARIANTS.md"), flags=re.MULTILINE)[1:]
    return {section.split("\n", 1)[0]: section for section in sections}


def test_there_are_ten_invariants() -> None:
    """None is dropped."""
    assert [title.split(".")[0] for title in invariants()] == [str(number) for number in range(1, 11)]


@cache
def names_of_tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("title", sorted(invariants()))
def test_each_invariant_is_held_by_tests_that_exist(title: str) -> None:
    """It names where it is kept and at least one test; every test it names is there."""
    text = invariants()[title]
    assert tool("architecture").LINK.search(text), f"{title}: names no code"
    named = re.findall(r"^- `(tests/[\w/]+\.py)::(\w+)`", text, re.MULTILINE)
    assert named, f"{title}: names no test"
    assert [f"{file}::{name}" for file, name in named if not (ROOT / file).exists() or name not in names_of_tests_in(file)] == []


# -- what the program can do


def commands() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        if getattr(command, "commands", None):
            for part, inner in command.commands.items():
                walk(inner, f"{name} {part}".strip())
        else:
            found[name] = command

    walk(get_command(application), "")
    return found


def command_lines() -> Iterator[tuple[str, str]]:
    """Every line of a fenced block that gives a command of ours, by page."""
    for path in PAGES:
        for block in re.findall(r"^```(?:console|text|bash)?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                plain = line.strip().removeprefix("$ ")
                for part in re.split(r"\s(?:&&|\||>)\s", plain):
                    words = part.strip().split(" ")
                    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                        words.pop(0)
                    if words[:1] == ["bailiwick"] and len(words) > 1 and (line.lstrip().startswith("$ ") or path.name == "cli.md"):
                        yield str(path.relative_to(ROOT)), part.strip()


def test_the_commands_that_documents_give_exist() -> None:
    """Each names a command, and only options it has."""
    known, wrong, seen = commands(), [], 0
    for where, line in command_lines():
        words = shlex.split(line, comments=True)
        words = words[words.index("bailiwick") + 1 :]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        if name not in known:
            wrong.append(f"{where}: {line}: no such command")
            continue
        seen += 1
        own = words[: words.index("--")] if "--" in words else words
        options = {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
        wrong += [f"{where}: {line}: no option {word}" for word in own if word.startswith("-") and word != "-" and word.split("=")[0] not in options]
    assert wrong == []
    assert seen > 60


def test_the_changelog_names_every_command() -> None:
    """What a version can do is told with it."""
    text = page("CHANGELOG.md")
    assert {name for name in commands() if f"`{name}`" not in text} == set()


def test_the_makefile_has_the_targets_that_are_named() -> None:
    """`make X` in a document is a target."""
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = {target for path in PAGES for target in re.findall(r"`?make ([a-z-]+)`?(?:\s|$|,)", path.read_text()) if f"make {target}" in path.read_text()}
    fenced = {target for path in PAGES for target in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)}
    assert fenced - targets == set(), named


def test_every_kind_of_event_is_documented() -> None:
    """With its writer, and whether it is an intent; and no kind that there is not."""
    rows = re.findall(r"^\| `([a-z.]+)` \| ([a-z, ]+) \| (yes)? ?\|", page("docs/reference/events.md"), re.MULTILINE)
    assert [kind for kind, _, _ in rows] == list(KINDS)
    for kind, writers, intent in rows:
        assert bool(intent) == KINDS[kind].intent, kind
        assert frozenset(map(Role, writers.split(", "))) <= KINDS[kind].writers, kind
        assert kind == "peer.refused" or frozenset(map(Role, writers.split(", "))) == KINDS[kind].writers, kind


def literals(pattern: str, under: Path = SOURCE) -> set[str]:
    return {found for path in sorted(under.rglob("*.py")) for found in re.findall(pattern, path.read_text())}


def test_every_reason_code_is_documented() -> None:
    """Codes of refusals, attempts and failures are stable: a script matches on them, so the page has each."""
    text = page("docs/reference/gateway.md")
    gateway = SOURCE / "gateway"
    codes = literals(r"(?:ProtocolViolation|TlsFailure|UpstreamFailed|Unclear)\(\s*\"([a-z0-9-]+)\"", gateway)
    codes |= literals(r"refuse_attempt\(\s*\"([a-z0-9-]+)\"", gateway) | set(TITLES)
    assert len(codes) > 60
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_environment_variable_is_documented() -> None:
    """What we read, what we keep, and what an agent finds."""
    text = page("docs/reference/configuration.md") + page("docs/reference/sandbox.md")
    read = literals(r"os\.environ(?:\.get|\.pop)?[\[(]\"([A-Z_]+)\"") | literals(r"\"([A-Z_]+)\" (?:not )?in os\.environ")
    ours = literals(r"\b(BAILIWICK_[A-Z_]+)\b") - {"BAILIWICK_DEMO"}
    named = {name for name in read | ours | set(environment.KEPT) if not re.search(rf"`{name}(=\w+)?`", text)}
    assert named - demo_variables() == set()


def demo_variables() -> set[str]:
    """The demo's own, which no user sets."""
    return literals(r"\"([A-Z_]+)\"", SOURCE / "cli" / "demo")


def test_every_fact_of_doctor_is_documented() -> None:
    """Those of the machine, found by asking it, and those of the installation."""
    text = page("docs/reference/doctor.md")
    own = set(re.findall(r"_fact\(\s*\"([a-z ]+)\"", (SOURCE / "cli/command_installation.py").read_text()))
    facts = {fact.name: fact.required for fact in survey()}
    assert own
    assert {name for name in own | facts.keys() if f"| `{name}` |" not in text} == set()
    for name, required in facts.items():
        assert f"| `{name}` | {'yes' if required else 'no'} |" in text, name


def test_bounds_are_told_as_they_are() -> None:
    """Numbers that an operator plans with."""
    said = {
        "docs/reference/gateway.md": [
            f"{limits.HEAD_BYTES_MAX // limits.KIB} KiB, {limits.HEADER_FIELDS_MAX} fields, {limits.HEAD_SECONDS_MAX:g} s",
            f"{limits.BODY_BUFFER_BYTES_MAX // limits.MIB} MiB",
            f"first {limits.HELD_BODY_SHOWN_BYTES_MAX // limits.KIB} KiB",
            f"{limits.IDLE_SECONDS_MAX:g} s",
            f"{limits.UPSTREAM_CONNECT_SECONDS_MAX:g} s, {limits.UPSTREAM_ANSWER_SECONDS_MAX:g} s",
            f"{limits.CONNECTIONS_PER_RUN_MAX:,}",
            f"{limits.NAMES_PER_RUN_MAX:,}",
        ],
        "docs/reference/processes.md": [
            f"every {limits.HEARTBEAT_SECONDS:g} s) was not heard for {limits.HEARTBEAT_STALE_SECONDS:g} s",
            f"at most {limits.FRAME_BYTES_MAX // limits.MIB} MiB",
            f"up to {limits.DESCRIPTORS_PER_MESSAGE_MAX} descriptors",
            *(str(account.uid) for account in Accounts.for_machine(uid=0, gid=0, workers=1).members),
        ],
        "docs/reference/events.md": [f"at most {limits.EVENT_BYTES_MAX // limits.KIB} KiB"],
        "docs/reference/sandbox.md": [f"from {Accounts.run_uid(0)} on"],
        "docs/reference/configuration.md": [
            f"{UID_BASE} to {Accounts.run_uid(0) + RUN_UIDS - 1}",
            f"{limits.RUN_PIDS} where",
            f"{limits.RUN_OPEN_FILES} where",
        ],
    }
    assert [f"{name}: {text}" for name, texts in said.items() for text in texts if text not in page(name)] == []


# -- the documents among themselves


def anchors(text: str) -> set[str]:
    """Of its headings, as the common renderers make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        plain = re.sub(r"[`*\\]", "", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Files are there, and so are the headings they are linked by."""
    wrong = []
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if not there.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text()):
            wrong.append(f"{target}: no such heading")
    assert wrong == []


def test_every_page_is_on_the_map() -> None:
    """README leads to each of them, or to their directory."""
    text = page("README.md")
    docs = [path.relative_to(ROOT) for path in PAGES if path.name != "README.md"]
    assert [str(path) for path in docs if f"({path})" not in text and f"({path.parent}/)" not in text] == []


def test_no_page_names_a_registrys_host() -> None:
    """A document that does would send readers, and scripts, to one."""
    hosts = re.compile(
        r"\b(?:[\w-]+\.)*(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|crates\.io|docker\.io|hub\.docker\.com|ghcr\.io|quay\.io|rubygems\.org|maven\.org)\b"
    )
    assert [f"{path.name}: {found}" for path in PAGES for found in hosts.findall(path.read_text())] == []


def test_the_version_is_told() -> None:
    """The changelog begins with the version that is."""
    version = re.search(r'^version = "([^"]+)"', page("pyproject.toml"), re.MULTILINE)
    assert version is not None
    assert re.search(r"^## \[([^\]]+)\]", page("CHANGELOG.md"), re.MULTILINE)[1] == version[1]  # type: ignore[index]


def test_typer_is_what_is_walked() -> None:
    """A guard for the tests above: the program is built of the commands they walk."""
    assert isinstance(application, typer.Typer)
    assert len(commands()) > 20
