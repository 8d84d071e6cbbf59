"""A package index on loopback (the simple API, PEP 503 and PEP 691) with wheels built on the fly: what `pip install` needs, and no more."""

import base64
import hashlib
import html
import io
import re
import zipfile
from collections.abc import Mapping

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Request, Response, Server

NAME = "packages.internal"
PREFIX = "/simple"

_JSON = "application/vnd.pypi.simple.v1+json"


class PackageIndex:
    """A context manager. `packages` maps a name to the source of its one module; each is version 1.0."""

    def __init__(self, packages: Mapping[str, str] | None = None, *, authority: Authority | None = None) -> None:
        self.authority = authority or Authority.create("package index authority")
        self.wheels = dict(wheel(name, source) for name, source in (packages or {"greeting": "def greet():\n    return 'hello from a wheel'\n"}).items())
        self.asked: list[str] = []
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
        """For `pip --index-url`."""
        return f"https://{host}{'' if port is None else f':{port}'}" + PREFIX

    def __enter__(self) -> "PackageIndex":
        self._server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.__exit__(*details)

    def _answer(self, request: Request) -> Response:
        self.asked.append(request.path)
        if request.method not in ("GET", "HEAD"):
            return Response(405, fields={"allow": "GET, HEAD"})
        if found := re.fullmatch(r"/files/([^/]+)", request.path):
            wheel = self.wheels.get(found[1])
            return Response(404) if wheel is None else Response(200, wheel, {"content-type": "application/octet-stream"})
        if found := re.fullmatch(rf"{PREFIX}/([a-z0-9-]+)/", request.path):
            return self._project(request, found[1])
        return Response(404)

    def _project(self, request: Request, name: str) -> Response:
        files = {file: hashlib.sha256(raw).hexdigest() for file, raw in self.wheels.items() if file.startswith(f"{name.replace('-', '_')}-")}
        if not files:
            return Response(404)
        if _JSON in request.fields.get("accept", ""):
            listed = [{"filename": file, "url": f"/files/{file}", "hashes": {"sha256": digest}} for file, digest in files.items()]
            answer = Response.json(200, {"meta": {"api-version": "1.0"}, "name": name, "files": listed})
            return Response(200, answer.body, {"content-type": _JSON})
        links = "".join(f'<a href="/files/{html.escape(file)}#sha256={digest}">{html.escape(file)}</a>\n' for file, digest in files.items())
        return Response(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), {"content-type": "text/html; charset=utf-8"})


def wheel(name: str, source: str) -> tuple[str, bytes]:
    """The file name and bytes of a wheel with one module (PEP 427); equal input gives equal bytes."""
    module = name.replace("-", "_")
    information = f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": source,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: bailiwick-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_urlsafe(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{information}/RECORD"] = "\n".join([*record, f"{information}/RECORD,,"]) + "\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
    return f"{module}-1.0-py3-none-any.whl", packed.getvalue()


def _urlsafe(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
