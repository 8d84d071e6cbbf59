"""A route says which role it needs, what it takes and what it answers, or it cannot be written down: there is no other way to add one."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response

from bailiwick.api import problem
from bailiwick.api.doorman import OPERATOR
from bailiwick.api.operators import may
from bailiwick.governor.views import Operator, OperatorRole
from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError, Forbidden

BODY_BYTES_MAX = 256 * limits.KIB

JSON = "application/json"
LINES = "application/x-ndjson"
TAR = "application/x-tar"
EXPORT = "application/octet-stream"
TEXT = "text/plain"

_ID = r"^[a-z0-9-]{1,64}$"
RunPath = Annotated[str, Path(pattern=_ID, description="a run's id")]
HoldPath = Annotated[str, Path(pattern=_ID, description="a hold's id")]
AgentPath = Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="an agent's name")]

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Body = TypeVar("Body")

_REFERENCE = "#/components/schemas/{name}"


class Invalid(CallerError):
    """A body that is JSON and not what was asked for."""

    code = "invalid"


class RequiresRole:
    """The dependency every route has; a test walks the routes and finds it on each."""

    def __init__(self, role: OperatorRole) -> None:
        self.role = role

    def __call__(self, request: Request) -> Operator:
        operator = operator_of(request)
        if not may(operator, self.role):
            held = ", ".join(sorted(operator.roles)) or "none"
            raise Forbidden(f"operator {operator.name!r} has the roles {held}; this needs {self.role}, which an admin gives in bailiwick.yaml")
        return operator


class Routes:
    """The routes of one part of the API, and the types they speak, collected for the schema."""

    def __init__(self) -> None:
        self.router = APIRouter(prefix="/v1")
        self.types: list[Any] = []

    def add(
        self,
        method: str,
        path: str,
        role: OperatorRole,
        *,
        answer: Any = None,
        media: str = JSON,
        status: int = 200,
        takes: Any = None,
        narrowed: dict[str, Any] | None = None,
    ) -> Callable[[Endpoint], Endpoint]:
        """`answer` and `takes` are msgspec types, `narrowed` what a schema can say about the body besides its type; the endpoint's first docstring
        line is the summary, the rest the description."""
        self.types += [kind for kind in (answer, takes) if kind is not None]
        done: dict[str, Any] = {"description": "done"}
        if status != 204:
            done["content"] = {media: {"schema": _schema(answer) if answer is not None else {"type": "string"}}}
        errors: dict[int | str, dict[str, Any]] = {
            code: {"description": "why not", "content": {problem.MEDIA_TYPE: {"schema": _schema(problem.Problem)}}} for code in _errors(path, takes)
        }
        body: dict[str, Any] = {}
        if takes is not None:
            schema = {"allOf": [_schema(takes), narrowed]} if narrowed else _schema(takes)
            body = {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}

        def declare(endpoint: Endpoint) -> Endpoint:
            summary, _, description = (endpoint.__doc__ or endpoint.__name__).partition("\n")
            self.router.add_api_route(
                path,
                endpoint,
                methods=[method],
                dependencies=[Depends(RequiresRole(role))],
                response_model=None,
                response_class=Response,
                status_code=status,
                responses={status: done, **errors},
                openapi_extra={**body, "x-bailiwick-role": role},
                summary=summary.strip().rstrip("."),
                description=f"Needs the role `{role}`. {' '.join(description.split())}".strip(),
            )
            return endpoint

        return declare


def operator_of(request: Request) -> Operator:
    """Whom the doorman let in."""
    operator: Operator = request.scope["state"][OPERATOR]
    return operator


async def body_of(request: Request, kind: type[Body]) -> Body:
    """The request's body as `kind`. Raises CallerError for one that is too large, is not JSON, or is something else."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise CallerError(f"body is larger than {BODY_BYTES_MAX} bytes; send less", code="too-large")
    try:
        return msgspec.json.decode(bytes(raw), type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        raise Invalid(f"body: {message[:1].lower()}{message[1:]}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CallerError(f"body is not JSON: {error}; send a JSON object") from error


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


def describe(app: FastAPI, parts: list[Routes]) -> None:
    """Puts the schemas of all declared types into the published OpenAPI document."""
    types = [problem.Problem, *(kind for part in parts for kind in part.types)]
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            _forget_defaults_of_fastapi(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


@functools.cache
def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    return schema


def _errors(path: str, takes: Any) -> list[int]:
    found = [401, 403, 404, 422, 500, 503]
    if "{" in path:
        found += [409]
    if takes is not None:
        found += [400, 409, 413]
    return sorted(set(found))


def _forget_defaults_of_fastapi(document: dict[str, Any]) -> None:
    """FastAPI describes validation errors in its own form, which this API never sends."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
