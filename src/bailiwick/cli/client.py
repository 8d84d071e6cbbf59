"""The API over its unix socket, by the standard library alone: a command is short, and what it imports is most of it."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from bailiwick.cli.exits import Refused, Unreachable
from bailiwick.kernel.errors import CallerError, PeerError
from bailiwick.kernel.layout import Layout

CALL_SECONDS_MAX = 30.0
QUIET_SECONDS_MAX = 35.0  # a followed stream says every ten seconds that it is alive

_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_CHUNK_BYTES = 1 << 16

Kind = TypeVar("Kind")


class Client:
    def __init__(self, layout: Layout) -> None:
        self.socket = layout.socket("api")

    def get(self, path: str, kind: type[Kind], **query: Any) -> Kind:
        return self._typed(self._whole("GET", address(path, **query)), kind)

    def text(self, path: str) -> str:
        return self._whole("GET", path).decode("utf-8", "replace")

    def post(self, path: str, body: Any, kind: type[Kind]) -> Kind:
        return self._typed(self._whole("POST", path, msgspec.json.encode(body)), kind)

    def tell(self, path: str, body: Any) -> None:
        """For an answer without content."""
        self._whole("POST", path, msgspec.json.encode(body))

    def download(self, path: str, to: BinaryIO, **query: Any) -> int:
        """Bytes written. PeerError when the answer broke off."""
        written = 0
        with self._ask("GET", address(path, **query)) as response:
            while chunk := self._read(response, _CHUNK_BYTES):
                to.write(chunk)
                written += len(chunk)
            if response.length:
                raise PeerError(f"the answer to GET {path} broke off after {written} bytes; ask again")
        return written

    def lines(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Each event of a stream; ends when the server ends it. Unreachable when it says nothing for too long or breaks off, Refused when it says no."""
        with self._ask("GET", address(path, **query), seconds_max=QUIET_SECONDS_MAX) as response:
            while True:
                try:
                    line = response.readline()
                except (OSError, http.client.HTTPException) as error:
                    raise Unreachable(f"the stream of {path} broke off: {_said(error)}") from error
                if not line:
                    return
                if line.isspace():
                    continue
                event = _decoded(line)
                if "problem" in event:
                    raise _refusal(event["problem"])
                yield event

    @contextmanager
    def _ask(self, method: str, path: str, body: bytes | None = None, seconds_max: float = CALL_SECONDS_MAX) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self.socket, seconds_max)
        try:
            response = self._answer(connection, method, path, body)
            with response:
                if response.status >= 400:
                    content = self._read(response, _ANSWER_BYTES_MAX)
                    raise _refusal(_decoded(content) if "json" in response.headers.get_content_type() else {"status": response.status})
                yield response
        finally:
            connection.close()

    def _answer(self, connection: "_Connection", method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
            return connection.getresponse()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Unreachable(f"nothing is up at {self.socket}; start it with `bailiwick up`, or name another with --state") from error
        except PermissionError as error:
            raise Unreachable(f"{self.socket} may not be opened by you; an admin adds you under `operators:`, or run as who started it") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"no answer on {self.socket}: {_said(error)}; `bailiwick status` shows what is up") from error

    def _whole(self, method: str, path: str, body: bytes | None = None) -> bytes:
        with self._ask(method, path, body) as response:
            return self._read(response, _ANSWER_BYTES_MAX)

    def _read(self, response: http.client.HTTPResponse, count: int) -> bytes:
        try:
            return response.read(count)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the answer broke off: {_said(error)}; ask again") from error

    def _typed(self, content: bytes, kind: type[Kind]) -> Kind:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise PeerError(f"the answer is not understood: {error}; client and installation may be of different versions") from error


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds_max: float) -> None:
        super().__init__("bailiwick", timeout=seconds_max)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def address(path: str, **query: Any) -> str:
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def segment(name: str) -> str:
    """A name a person typed, as one step of a path. CallerError for one that could be another path."""
    if not name or name in (".", "..") or len(name) > 200:
        raise CallerError(f"{name[:80]!r} is not an id or a name; `bailiwick ps --all` and `bailiwick holds` list them")
    return quote(name, safe="")


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise PeerError(f"the answer is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _refusal(problem: dict[str, Any]) -> Refused:
    status = problem.get("status")
    return Refused(
        str(problem.get("detail") or f"the API answered with status {status}"),
        code=str(problem.get("code", "internal")),
        status=status if isinstance(status, int) else 500,
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
