"""The house rules a machine can check and ruff does not: size limits with a ratchet, no drawers, a map in every room, nothing that names a registry."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bailiwick"

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 8

# What is larger than the limits, at its size today. A number may only go down, an entry may only go.
MODULES_ABOVE: dict[str, int] = {}
FUNCTIONS_ABOVE: dict[str, int] = {}

DRAWERS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "services", "misc", "shared"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_modules_are_short() -> None:
    """No module is longer than 400 lines, but for the exceptions, which only shrink."""
    sizes = {name(path): len(path.read_text().splitlines()) for path in modules()}
    above = {module: size for module, size in sizes.items() if size > MODULES_ABOVE.get(module, MODULE_LINES_MAX)}
    assert not above, f"longer than {MODULE_LINES_MAX} lines: {above}; split where the words split"
    slack = {module: limit for module, limit in MODULES_ABOVE.items() if sizes.get(module, 0) < limit}
    assert not slack, f"shorter than its exception now; lower it: {slack}"


def test_functions_are_short() -> None:
    """No function is longer than 70 lines or takes more than 8 parameters."""
    seen, above = {}, {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{name(path)}:{node.name}"
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                typer_command = any("command" in ast.unparse(decorator) for decorator in node.decorator_list)
                seen[where] = size
                if size > FUNCTIONS_ABOVE.get(where, FUNCTION_LINES_MAX) or (parameters > PARAMETERS_MAX + 1 and not typer_command):
                    above[where] = (size, parameters)
    assert not above, f"longer than {FUNCTION_LINES_MAX} lines or more than {PARAMETERS_MAX} parameters: {above}"
    assert not {where for where, limit in FUNCTIONS_ABOVE.items() if seen.get(where, 0) < limit}


def test_no_drawers() -> None:
    """No module or package is named as a place for what found no other."""
    assert not [name(path) for path in modules() if path.stem in DRAWERS or path.parent.name in DRAWERS]


@pytest.mark.parametrize("package", sorted({path.parent for path in modules()}), ids=str)
def test_every_package_says_what_it_is(package: Path) -> None:
    """A package's `__init__` is its map: prose, and no logic."""
    tree = ast.parse((package / "__init__.py").read_text())
    assert ast.get_docstring(tree), f"{package} has no map"
    logic = [node for node in tree.body if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)]
    assert not logic or package.name == "cli"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / file for file in listed.split("\0") if file and (ROOT / file).is_file()]


def test_nothing_names_a_registry() -> None:
    """Locks and scripts name packages and hashes, never an index's address: the operator's own index serves them."""
    names = re.compile(rb"(--(extra-)?index-url\s+\w+:|https?://[^\s\"']+/simple\b|https?://[^\s\"']+\.(whl|tgz|deb)\b|\"resolved\":)")
    own = [Path(__file__), *(ROOT / "tests" / "e2e").rglob("*.py")]  # the end-to-end tests run an index of their own
    found = [str(path) for path in tracked() if path not in own and names.search(path.read_bytes())]
    assert not found
    assert not [path for path in tracked() if path.name in {"uv.lock", "package-lock.json"}]
