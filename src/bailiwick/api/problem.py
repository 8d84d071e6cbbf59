"""Errors as RFC 9457 problem details. The only place where an error becomes an answer; what is not ours shows as "internal" and an id of the log."""

import http
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, PeerError

MEDIA_TYPE = "application/problem+json"

_STATUS = {
    "bad-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "conflict": 409,
    "too-large": 413,
    "invalid": 422,
    "peer": 503,
    "backend": 503,
    "busy": 503,
}
_BY_CLASS: tuple[tuple[type[BailiwickError], int], ...] = ((CallerError, 400), (PeerError, 503), (BackendError, 503))
_CODE_OF_STATUS = {400: "bad-request", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 409: "conflict", 413: "too-large", 422: "invalid"}

_log = logging.getLogger("bailiwick.api")


class Unauthenticated(CallerError):
    """Nobody we know: no usable proof of who is calling."""

    code = "unauthenticated"


class Busy(BailiwickError):
    """A bound of the API itself is reached; later may work."""

    code = "busy"


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457, and `code`, which is stable and may be matched on. `incident` finds the details of an internal error in the governor's log."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    incident: str | None = None
    errors: list[dict[str, str]] = []


def of(error: Exception) -> Problem:
    match error:
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return _problem(error.status_code, _CODE_OF_STATUS.get(error.status_code, "bad-request"), str(error.detail)[:1].lower() + str(error.detail)[1:])
        case BailiwickError() if (status := _status(error)) is not None:
            return _problem(status, error.code, str(error))
    incident = secrets.token_hex(8)
    _log.error("internal error %s", incident, exc_info=error)
    detail = f"internal error {incident}; the governor's log has the details under this id"
    return _problem(500, "internal", detail, incident=incident)


def render(problem: Problem) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    return Response(msgspec.json.encode(problem), problem.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Every error an endpoint or the router raises is answered from here; the doorman answers what happens around them."""

    async def answer(_: Request, error: Exception) -> Response:
        response = render(of(error))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    for kind in (BailiwickError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)


def _status(error: BailiwickError) -> int | None:
    if error.code in _STATUS:
        return _STATUS[error.code]
    return next((status for kind, status in _BY_CLASS if isinstance(error, kind)), None)


def _problem(status: int, code: str, detail: str, *, incident: str | None = None, errors: Sequence[dict[str, str]] = ()) -> Problem:
    title = http.HTTPStatus(status).phrase
    return Problem(type=f"urn:bailiwick:problem:{code}", title=title, status=status, code=code, detail=detail, incident=incident, errors=list(errors))


def _invalid(found: Sequence[Any]) -> Problem:
    errors = [{"field": ".".join(str(step) for step in item["loc"]), "message": item["msg"][:1].lower() + item["msg"][1:]} for item in found]
    return _problem(422, "invalid", "; ".join(f"{error['field']}: {error['message']}" for error in errors), errors=errors)
