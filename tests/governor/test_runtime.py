"""Finding a command and the trees it needs."""

from pathlib import Path

import pytest

from bailiwick.governor.runtime import Runtime, find_runtime, search_path
from bailiwick.kernel.errors import CallerError


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_base_program_needs_no_tree() -> None:
    """What stands in /usr is in every sandbox."""
    found = find_runtime(["sh", "-c", "true"], [], "")
    assert found.command[1:] == ["-c", "true"]
    assert found.command[0] in ("/usr/bin/sh", "/bin/sh")
    assert found.trees == []


def test_the_base_system_by_its_other_name_needs_no_tree() -> None:
    """/bin is a link to /usr/bin: its prefix is not the root directory."""
    assert find_runtime(["/bin/echo", "hi"], [], "") == Runtime(["/bin/echo", "hi"], [])


def test_a_declared_tree_goes_before_the_base_system(tmp_path: Path) -> None:
    """The operator's own interpreter is found first."""
    own = program(tmp_path / "venv" / "bin" / "sh")
    found = find_runtime(["sh"], [str(tmp_path / "venv")], "/bin")
    command, trees = found.command, found.trees
    assert command == [str(own)]
    assert str(tmp_path / "venv") in trees


def test_a_virtual_environment_brings_the_installation_it_was_made_from(tmp_path: Path) -> None:
    """PEP 405: `home` names the directory of the base interpreter; its prefix comes along."""
    base = program(tmp_path / "base" / "bin" / "python3")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(base)
    (venv / "pyvenv.cfg").write_text(f"home = {base.parent}\nversion = 3.11\n")
    found = find_runtime(["python", "x.py"], [], str(venv / "bin"))
    command, trees = found.command, found.trees
    assert command == [str(venv / "bin" / "python"), "x.py"]
    assert set(trees) == {str(venv), str(tmp_path / "base")}


def test_a_shim_is_passed_over(tmp_path: Path) -> None:
    """A version manager's shim would need the operator's home inside."""
    program(tmp_path / "shims" / "tool")
    real = program(tmp_path / "real" / "bin" / "tool")
    command = find_runtime(["tool"], [], f"{tmp_path / 'shims'}:{tmp_path / 'real' / 'bin'}").command
    assert command == [str(real)]


def test_a_command_that_does_not_exist_says_where_it_was_looked_for() -> None:
    """Value, expectation, way out."""
    with pytest.raises(CallerError, match=r"'no-such-program' is not found .* on PATH /nowhere; give its full path"):
        find_runtime(["no-such-program"], [], "/nowhere")
    with pytest.raises(CallerError, match="does not exist"):
        find_runtime(["/no/such/program"], [], "")


def test_the_trees_are_searched_first_inside() -> None:
    """PATH inside begins with the trees' programs."""
    assert search_path(["/opt/venv"]).startswith("/opt/venv/bin:/usr/local/sbin")
