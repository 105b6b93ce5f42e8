"""uvicorn inside a process whose signals and logs belong to someone else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

# Longer than the idle limit of a gateway in front, or it would reuse connections that we close.
_KEEP_ALIVE_S = 75
_BACKLOG = 2048


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: they are Ray's here."""
        yield


class HttpServer:
    """Serves an app on a listening socket, which becomes its own."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        protocol: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
    ) -> None:
        config = uvicorn.Config(
            app,
            http=protocol,
            proxy_headers=False,
            log_config=None,  # its dictConfig would close Ray Serve's log handler
            access_log=False,
            lifespan="off",
            ws="none",
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            server_header=False,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("uvicorn ended before it had started")
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Accept nothing more, close idle connections, return when the others have ended."""
        assert self._task is not None
        self._server.should_exit = True
        await self._task
