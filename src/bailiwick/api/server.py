"""Serving the application on sockets that are listening already: uvicorn, its signals and its clock left out, the peer of a unix socket put in."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bailiwick.api.doorman import FOLLOWED, PEER
from bailiwick.kernel import limits
from bailiwick.kernel.channel import Peer

CONNECTIONS_MAX = 1_024
_GRACE_SECONDS = 2


class _PeerProtocol(HttpToolsProtocol):
    """Puts who is at the other end of a unix socket, as the kernel said when they connected, into every request's scope."""

    _peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            self._peer = Peer.of(sock)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {} if self._peer is None else {PEER: self._peer}
        self.scope["extensions"] = extensions


class _Server(uvicorn.Server):
    """Signals are the governor's to handle, and nothing wakes up while nobody calls."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Streams that are followed end now, as if their reader had left: they have no end of their own to wait for. Answers are let finish."""
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete and cycle.scope["state"].get(FOLLOWED):
                connection.transport.close()
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listeners: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Serves while the context is open; the listeners themselves stay open, they are the parent's."""
    config = uvicorn.Config(
        app,
        http=_PeerProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config)
    copies = [listener.dup() for listener in listeners]  # the server closes what it is given
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, copies)
        try:
            with anyio.fail_after(limits.CALL_SECONDS_MAX):
                await server.up.wait()
            yield
        finally:
            server.should_exit = True
            server.ended.set()
