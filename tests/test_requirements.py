"""The locks: they hold what pyproject.toml asks for, every file by its hash, and name no place to get it from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {
    "run.txt": PROJECT["project"]["dependencies"],
    "demo.txt": PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["demo"],
    "dev.txt": PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["demo"] + PROJECT["dependency-groups"]["dev"],
    "bench.txt": PROJECT["dependency-groups"]["bench"],
    "build.txt": [line for line in (ROOT / "requirements" / "build.in").read_text().splitlines() if line and not line.startswith("#")],
}
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)", re.MULTILINE)


def pins(lock: str) -> dict[str, list[Version]]:
    """A package may be pinned more than once, for different Pythons."""
    found: dict[str, list[Version]] = {}
    for name, version in _PIN.findall((ROOT / "requirements" / lock).read_text()):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_is_asked_for(lock: str) -> None:
    """A dependency that was added or raised in pyproject.toml without `make lock` turns this red."""
    pinned = pins(lock)
    for text in LOCKS[lock]:
        wanted = Requirement(text)
        versions = pinned.get(canonicalize_name(wanted.name))
        assert versions, f"{wanted.name} is not in requirements/{lock}; run `make lock`"
        assert all(wanted.specifier.contains(version) for version in versions), f"{lock} has {wanted.name} {versions}; {text} is asked for, run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_file_is_pinned_by_its_hash_and_by_nothing_else(lock: str) -> None:
    """Each pin is followed by hashes; there is no address in the lock."""
    text = (ROOT / "requirements" / lock).read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index-url" not in text


def test_what_runs_is_the_same_everywhere() -> None:
    """The locks agree on every package they share: what is tested is what runs."""
    run, demo, dev = pins("run.txt"), pins("demo.txt"), pins("dev.txt")
    assert {name for name in run if demo.get(name) != run[name]} == set()
    assert {name for name in demo if dev.get(name) != demo[name]} == set()
