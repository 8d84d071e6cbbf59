"""Routes of the installation: its state, its agents and their policies, who you are, and its orderly end."""

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from bailiwick.api.declare import JSON, TEXT, AgentPath, Routes, answer, operator_of
from bailiwick.api.governance import Governance
from bailiwick.governor.views import Operator, StatusView


class Stopping(msgspec.Struct, frozen=True):
    stopping: bool


def routes(governance: Governance, app: FastAPI) -> Routes:
    part = Routes()

    @part.add("GET", "/status", "viewer", answer=StatusView)
    async def status() -> Response:
        """The processes, the live runs, the waiting holds, the size and root of the record."""
        return answer(governance.status())

    @part.add("GET", "/operator", "viewer", answer=Operator)
    async def operator(request: Request) -> Response:
        """Who the API takes you for, and your roles."""
        return answer(operator_of(request))

    @part.add("GET", "/openapi.json", "viewer", media=JSON, answer=dict[str, Any])
    async def openapi() -> Response:
        """This document."""
        return answer(app.openapi())

    @part.add("GET", "/agents", "viewer", answer=list[str])
    async def agents() -> Response:
        """The names of the configured agents."""
        return answer(governance.agents())

    @part.add("GET", "/agents/{agent}/policy", "viewer", media=TEXT)
    async def policy(agent: AgentPath) -> Response:
        """The agent's boundary, compiled to Cedar."""
        return Response(governance.policy(agent), media_type=TEXT)

    @part.add("POST", "/shutdown", "admin", answer=Stopping, status=202)
    async def shutdown(request: Request) -> Response:
        """Ends every run and then every process, in order."""
        await governance.shutdown(operator_of(request))
        return answer(Stopping(True), 202)

    return part
