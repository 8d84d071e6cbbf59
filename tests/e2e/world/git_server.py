"""A git server on loopback: smart HTTP over TLS by git's own `git http-backend`, with one repository made at start."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Request, Response, Server

NAME = "git.internal"
BACKEND_SECONDS_MAX = 30

_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


class GitServer:
    """A context manager. `files` is the content of the first commit of `project.git`; pushing works where `writable`."""

    def __init__(self, files: Mapping[str, str] | None = None, *, writable: bool = False, authority: Authority | None = None) -> None:
        self.authority = authority or Authority.create("git authority")
        self.requests: list[tuple[str, str]] = []
        self._files = dict(files or {"README": "hello from git\n"})
        self._writable = writable
        self._server = Server(self._answer, tls=self.authority.server_context(NAME, "localhost", "127.0.0.1"))

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return self.authority.pem

    def url(self, host: str = NAME, port: int | None = None) -> str:
        return f"https://{host}{'' if port is None else f':{port}'}/project.git"

    def head(self) -> str:
        """The commit that `main` names now."""
        return self._git("rev-parse", "main").strip()

    def __enter__(self) -> "GitServer":
        self._directory = tempfile.TemporaryDirectory(prefix="git-server-")
        self._repository = Path(self._directory.name) / "project.git"
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self._repository), inside=False)
        self._git("config", "http.receivepack", "true" if self._writable else "false")
        tree = "".join(f"100644 blob {self._git('hash-object', '-w', '--stdin', given=text).strip()}\t{path}\n" for path, text in self._files.items())
        commit = self._git("commit-tree", "-m", "first", self._git("mktree", given=tree).strip()).strip()
        self._git("update-ref", "refs/heads/main", commit)
        self._server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.__exit__(*details)
        self._directory.cleanup()

    def _git(self, *command: str, given: str = "", inside: bool = True) -> str:
        where = [f"--git-dir={self._repository}"] if inside else []
        done = subprocess.run(["git", *where, *command], input=given, env=_ENVIRONMENT, capture_output=True, text=True, check=True, timeout=BACKEND_SECONDS_MAX)
        return done.stdout

    def _answer(self, request: Request) -> Response:
        """RFC 3875, as far as git needs it."""
        self.requests.append((request.method, request.path))
        if not request.path.startswith("/project.git/") or ".." in request.path:
            return Response(404)
        environment = _ENVIRONMENT | {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "GIT_PROJECT_ROOT": self._directory.name,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "CONTENT_TYPE": request.fields.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "HTTP_CONTENT_ENCODING": request.fields.get("content-encoding", ""),
            "GIT_PROTOCOL": request.fields.get("git-protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        if self._writable:
            environment["REMOTE_USER"] = "anybody"
        done = subprocess.run(["git", "http-backend"], input=request.body, env=environment, capture_output=True, timeout=BACKEND_SECONDS_MAX)
        if done.returncode:
            return Response(500, done.stderr)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200").split()[0])
        return Response(status, body, fields)
