"""The service the demo's agent deploys to: values by environment and key, over REST, with entity tags; and the tickets it reads.

    GET, PUT, DELETE  /v1/{environment}/{key}     If-Match and If-None-Match are honoured
    GET               /v1/tickets/{id}

It wants a bearer token and journals everything that arrives, refused or not: whether an effect came once, twice or never is asked of this journal,
not of who says he sent it.
"""

import hashlib
import hmac
import json
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bailiwick.cli.demo.web import Request, Response, Server

NAME = "config.internal"
VALUE_BYTES_MAX = 64 * 1024
JOURNAL_MAX = 100_000

_PATH = re.compile(r"/v1/([a-z][a-z0-9-]{0,62})/([A-Za-z0-9][A-Za-z0-9._-]{0,126})")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that reached the service. The token presented stands here as its SHA-256 only; `changed` is whether it took effect."""

    number: int
    method: str
    path: str
    authorised: bool
    status: int
    changed: bool
    body_sha256: str
    body_bytes: int
    token_sha256: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    version: int

    @property
    def tag(self) -> str:
        return f'"{self.version}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"'


class ConfigurationService:
    """A context manager. `values` is what it starts with, by `environment/key`; `tickets` their texts by id."""

    def __init__(
        self,
        *,
        token: str,
        values: Mapping[str, str] | None = None,
        tickets: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._token = token
        self._tickets = dict(tickets or {})
        self._values = {name: _Value(text, 1) for name, text in (values or {}).items()}
        self._versions = 1
        self._arrivals: list[Arrival] = []
        self._lock = threading.Lock()  # one request at a time sees and changes values and journal
        self.server = Server(self._answer, tls=tls, address=address)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        with self._lock:
            return tuple(self._arrivals)

    @property
    def values(self) -> dict[str, str]:
        with self._lock:
            return {name: value.text for name, value in self._values.items()}

    def journal(self) -> list[dict[str, Any]]:
        return [asdict(arrival) for arrival in self.arrivals]

    def __enter__(self) -> "ConfigurationService":
        self.server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.__exit__(*details)

    def _answer(self, request: Request) -> Response:
        presented = request.bearer()
        authorised = presented is not None and hmac.compare_digest(presented.encode(), self._token.encode())
        with self._lock:
            before = self._versions
            response = self._serve(request) if authorised else _problem(401, "a bearer token is required", www_authenticate="Bearer")
            if len(self._arrivals) < JOURNAL_MAX:
                self._arrivals.append(
                    Arrival(
                        number=len(self._arrivals),
                        method=request.method,
                        path=request.path,
                        authorised=authorised,
                        status=response.status,
                        changed=self._versions != before,
                        body_sha256=hashlib.sha256(request.body).hexdigest(),
                        body_bytes=len(request.body),
                        token_sha256=hashlib.sha256((presented or "").encode()).hexdigest(),
                        fields=tuple(request.fields),
                    )
                )
        return response

    def _serve(self, request: Request) -> Response:
        found = _PATH.fullmatch(request.path)
        if found is None:
            return _problem(404, f"{request.path} is not a path of this service; use /v1/ENVIRONMENT/KEY or /v1/tickets/ID")
        environment, key = found.groups()
        if environment == "tickets":
            return self._ticket(request, key)
        name = f"{environment}/{key}"
        match request.method:
            case "GET" | "HEAD":
                return self._get(name)
            case "PUT":
                return self._put(name, request)
            case "DELETE":
                return self._delete(name, request)
            case method:
                return _problem(405, f"{method} is not allowed here; use GET, PUT or DELETE", allow="GET, HEAD, PUT, DELETE")

    def _ticket(self, request: Request, number: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _problem(405, f"{request.method} is not allowed here; use GET", allow="GET, HEAD")
        if number not in self._tickets:
            return _problem(404, f"no ticket {number}")
        return Response.json(200, {"id": number, "text": self._tickets[number]})

    def _get(self, name: str) -> Response:
        value = self._values.get(name)
        if value is None:
            return _problem(404, f"no value {name}")
        return _shown(200, name, value)

    def _put(self, name: str, request: Request) -> Response:
        if refusal := self._precondition(name, request):
            return refusal
        try:
            text = json.loads(request.body)["value"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str) or len(text.encode("utf-8", "surrogatepass")) > VALUE_BYTES_MAX:
            return _problem(400, f'the body must be {{"value": TEXT}} with at most {VALUE_BYTES_MAX} bytes of text')
        existed = name in self._values
        self._versions += 1
        self._values[name] = _Value(text.encode("utf-8", "replace").decode(), self._versions)
        return _shown(200 if existed else 201, name, self._values[name])

    def _delete(self, name: str, request: Request) -> Response:
        if refusal := self._precondition(name, request):
            return refusal
        if self._values.pop(name, None) is None:
            return _problem(404, f"no value {name}")
        self._versions += 1
        return Response(204)

    def _precondition(self, name: str, request: Request) -> Response | None:
        """RFC 9110 section 13.1, strong comparison."""
        value = self._values.get(name)
        wanted = request.fields.get("if-match")
        if wanted is not None and (value is None or (wanted != "*" and value.tag not in _tags(wanted))):
            return _problem(412, f"if-match names {wanted}; the value's tag is {value.tag if value else 'none: it does not exist'}")
        unwanted = request.fields.get("if-none-match")
        if unwanted is not None and value is not None and (unwanted == "*" or value.tag in _tags(unwanted)):
            return _problem(412, f"the value exists with tag {value.tag}")
        return None


def _tags(field: str) -> list[str]:
    return [tag.strip() for tag in field.split(",")]


def _shown(status: int, name: str, value: _Value) -> Response:
    environment, _, key = name.partition("/")
    return Response.json(status, {"environment": environment, "key": key, "value": value.text, "version": value.version}, etag=value.tag)


def _problem(status: int, detail: str, **fields: str) -> Response:
    return Response.json(status, {"title": "refused", "status": status, "detail": detail}, **fields)
