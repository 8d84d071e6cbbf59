"""The real API over a fake governor, served by uvicorn on a unix socket, in a thread with a loop of its own."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
from starlette.types import ASGIApp

from bailiwick.api.server import serving


class Served:
    def __init__(self, path: Path, portal: anyio.from_thread.BlockingPortal) -> None:
        self.path = path
        self._portal = portal

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """On the server's loop, where the governor lives."""
        return self._portal.call(function, *args)


@contextmanager
def served(app: ASGIApp, path: Path, *, also: tuple[socket.socket, ...] = ()) -> Iterator[Served]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(64)
        with anyio.from_thread.start_blocking_portal("asyncio") as portal:
            ready, stop = threading.Event(), portal.call(anyio.Event)

            async def serve() -> None:
                async with serving(app, [listener, *also]):
                    ready.set()
                    await stop.wait()

            future = portal.start_task_soon(serve)
            assert ready.wait(10)
            try:
                yield Served(path, portal)
            finally:
                portal.call(stop.set)
                future.result(10)
    finally:
        listener.close()
