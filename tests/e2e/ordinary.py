"""Somebody without any privilege, for tests that root runs: who that is, and an interpreter that they can start."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UID = 65_534  # nobody, who has an entry in every passwd

_NEEDED = "import bailiwick, pytest, yaml"


@functools.cache
def python() -> str | None:
    """Ours, if they can reach it; else a virtual environment on the system's Python with our packages, made once; None where neither is to be had."""
    if _runs(sys.executable):
        return sys.executable
    if sys.prefix == sys.base_prefix or not _same_version("/usr/bin/python3"):
        return None
    made = Path(tempfile.mkdtemp(prefix="ordinary-", dir="/tmp"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    made.chmod(0o755)
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(made)], check=True, capture_output=True)
    library = sysconfig.get_path("purelib", vars={"base": str(made), "platbase": str(made)}, scheme="venv")
    (Path(library) / "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    found = str(made / "bin" / "python")
    return found if _runs(found) else None


@contextmanager
def home() -> Iterator[Path]:
    """A directory of theirs."""
    with tempfile.TemporaryDirectory(prefix="home-", dir="/tmp") as made:
        shutil.chown(made, UID, UID)
        yield Path(made)


def _same_version(program: str) -> bool:
    says = "import sys; print(sys.version_info[:2])"
    try:
        return subprocess.run([program, "-c", says], capture_output=True, text=True, check=True).stdout.strip() == str(sys.version_info[:2])
    except (OSError, subprocess.CalledProcessError):
        return False


def _runs(program: str) -> bool:
    try:
        environment = {"PATH": os.environ["PATH"]}
        subprocess.run([program, "-c", _NEEDED], cwd="/", env=environment, user=UID, group=UID, extra_groups=[], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
