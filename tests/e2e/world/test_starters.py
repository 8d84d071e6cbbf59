"""The starters serve the real clients, outside any sandbox, so that a failure inside one is the sandbox's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.world.git_server import GitServer
from tests.e2e.world.package_index import PackageIndex, wheel

CLEAN = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "PIP_CONFIG_FILE": "/dev/null"}


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=CLEAN | {"HOME": str(cwd)} | environment, capture_output=True, text=True, timeout=60)


def test_pip_installs_from_the_index(tmp_path: Path) -> None:
    """pip finds, verifies and installs the wheel, and Python imports it; what is not there is not found."""
    with PackageIndex() as index:
        (tmp_path / "ca.pem").write_text(index.ca)
        pip = (sys.executable, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--index-url", index.url("localhost", index.port))
        done = run(*pip, "--cert", "ca.pem", "--target", "into", "greeting==1.0", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        said = run(sys.executable, "-c", "import greeting; print(greeting.greet())", cwd=tmp_path, PYTHONPATH=str(tmp_path / "into"))
        assert said.stdout == "hello from a wheel\n"
        assert "/files/greeting-1.0-py3-none-any.whl" in index.asked
        absent = run(*pip, "--cert", "ca.pem", "--target", "into", "nothing-of-the-kind", cwd=tmp_path)
        assert "No matching distribution" in absent.stderr


def test_pip_refuses_an_index_it_does_not_trust(tmp_path: Path) -> None:
    """Without the authority there is nothing to install from: the certificate is really checked."""
    with PackageIndex() as index:
        pip = (sys.executable, "-m", "pip", "download", "--no-cache-dir", "--retries", "0", "--index-url", index.url("localhost", index.port))
        done = run(*pip, "greeting", cwd=tmp_path)
    assert done.returncode != 0
    assert not index.asked


def test_wheels_are_reproducible() -> None:
    """Equal source, equal bytes: a hash may be pinned."""
    assert wheel("a-b", "x = 1\n") == wheel("a-b", "x = 1\n")
    assert wheel("a-b", "x = 1\n")[0] == "a_b-1.0-py3-none-any.whl"


def test_git_clones_and_fetches(tmp_path: Path) -> None:
    """git clones the repository over TLS; the push is refused where the server is not writable."""
    with GitServer({"README": "hello\n", "run.sh": "echo hi\n"}) as server:
        (tmp_path / "ca.pem").write_text(server.ca)
        done = run("git", "clone", "--quiet", server.url("localhost", server.port), "project", cwd=tmp_path, GIT_SSL_CAINFO="ca.pem")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "project" / "README").read_text() == "hello\n"
        assert run("git", "rev-parse", "HEAD", cwd=tmp_path / "project").stdout.strip() == server.head()
        assert commit_and_push(tmp_path).returncode != 0
        assert ("POST", "/project.git/git-upload-pack") in server.requests


def test_git_pushes_where_it_may(tmp_path: Path) -> None:
    """A writable server takes the commit."""
    with GitServer(writable=True) as server:
        (tmp_path / "ca.pem").write_text(server.ca)
        before = server.head()
        run("git", "clone", "--quiet", server.url("localhost", server.port), "project", cwd=tmp_path, GIT_SSL_CAINFO="ca.pem")
        pushed = commit_and_push(tmp_path)
        assert pushed.returncode == 0, pushed.stderr
        assert server.head() != before


@pytest.mark.parametrize("path", ["/other.git/info/refs?service=git-upload-pack", "/../etc/passwd", "/project.git/../../etc/passwd"])
def test_git_shows_nothing_else(tmp_path: Path, path: str) -> None:
    """Another repository, or a way out of the directory, is not found."""
    with GitServer() as server:
        (tmp_path / "ca.pem").write_text(server.ca)
        url = f"https://localhost:{server.port}{path}"
        done = run("curl", "--silent", "--path-as-is", "--cacert", "ca.pem", "--output", "/dev/null", "--write-out", "%{http_code}", url, cwd=tmp_path)
    assert done.stdout == "404"


def commit_and_push(directory: Path) -> subprocess.CompletedProcess[str]:
    project = directory / "project"
    (project / "new").write_text("new\n")
    run("git", "add", "new", cwd=project)
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "second", cwd=project)
    return run("git", "push", "--quiet", "origin", "HEAD:main", cwd=project, GIT_SSL_CAINFO=str(directory / "ca.pem"))
