"""The door: who is calling is settled before anything else of a request is looked at, and nothing an endpoint does leaves as a traceback."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bailiwick.api import problem
from bailiwick.api.operators import Caller
from bailiwick.governor.views import Operator
from bailiwick.kernel.channel import Peer

PEER = "bailiwick.peer"
"""The key in an ASGI scope's `extensions` under which the server puts the `Peer` of a unix socket; absent on TCP."""

OPERATOR = "operator"
"""The key in a scope's `state` under which the authenticated operator stands for the endpoints."""

FOLLOWED = "followed"
"""The key in a scope's `state` that says that the answer is a stream without an end, which the server may cut when it stops."""

Authenticate = Callable[[Caller], Operator]


class Doorman:
    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no lifespan to run; the server refuses upgrades before they come here
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            scope.setdefault("state", {})[OPERATOR] = self._authenticate(_caller(scope))
            await self._app(scope, receive, watch)
        except Exception as error:
            if started:
                raise  # half an answer is cut off, so that nobody takes it for a whole one
            await problem.render(problem.of(error))(scope, receive, send)


def _caller(scope: Scope) -> Caller:
    peer = scope.get("extensions", {}).get(PEER)
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    return Caller(peer if isinstance(peer, Peer) else None, given[0].decode("latin-1") if len(given) == 1 else None)
