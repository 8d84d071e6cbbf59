"""The API as one ASGI application: the doorman in front, the declared routes behind, problems for everything else."""

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

import bailiwick
from bailiwick.api import declare, holds, installation, problem, record, runs
from bailiwick.api.doorman import Authenticate, Doorman
from bailiwick.api.governance import Governance
from bailiwick.api.stream import Followers

OPENAPI_PATH = "/v1/openapi.json"


def create(governance: Governance, authenticate: Authenticate) -> FastAPI:
    """`authenticate` raises a BailiwickError for who is nobody's operator."""
    app = FastAPI(
        title="Bailiwick",
        version=bailiwick.__version__,
        summary="Runs, sign-off and the record of a Bailiwick installation",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Response,
    )
    followers = Followers()
    parts = [
        installation.routes(governance, app),
        runs.routes(governance, followers),
        holds.routes(governance),
        record.routes(governance, followers),
    ]
    for part in parts:
        app.include_router(part.router)
    problem.install(app)
    declare.describe(app, parts)
    app.add_middleware(_doorman, authenticate=authenticate)
    return app


def role_of(route: APIRoute) -> str | None:
    """The role a route demands; None for one that was not declared (no such route is ever served: a test walks them all)."""
    found = [each.dependency.role for each in route.dependencies if isinstance(each.dependency, declare.RequiresRole)]
    return found[0] if found else None


def _doorman(app: ASGIApp, authenticate: Authenticate) -> ASGIApp:
    return Doorman(app, authenticate)
