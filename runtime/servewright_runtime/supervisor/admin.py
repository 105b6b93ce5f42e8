"""The admin port: /livez, /readyz, /state and /metrics, answered from the first second.

A few fixed answers to GET do not need a web framework in the process that has to outlive the
others. Requests are bounded in size and time; every answer ends its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

log = logging.getLogger(__name__)

_MAX_HEAD = 8192  # bytes of a request's line and headers
_REQUEST_TIMEOUT_S = 10.0
_MAX_CONNECTIONS = 64

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `content_type` is written as it is."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[], Awaitable[Answer]]


async def serve_admin(
    listener: socket.socket, routes: Mapping[str, Handler], otherwise: Answer | None = None
) -> asyncio.Server:
    """Answer GET and HEAD on `routes`, and all else with `otherwise` if that is given."""
    places = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with places, asyncio.timeout(_REQUEST_TIMEOUT_S):
                    await _answer(reader, writer, routes, otherwise)
            finally:
                writer.close()

    return await asyncio.start_server(connected, sock=listener, limit=_MAX_HEAD)


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    routes: Mapping[str, Handler],
    otherwise: Answer | None,
) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
    except (asyncio.LimitOverrunError, ValueError):
        answer, method = Answer(400, b"This is not an HTTP request.\n"), "GET"
    else:
        answer = otherwise or await _route(method, target.partition("?")[0], routes)
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"content-type: {answer.content_type}",
        f"content-length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in answer.headers),
        "cache-control: no-store",
        "connection: close",
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
    if method != "HEAD":
        writer.write(answer.body)
    await writer.drain()


async def _route(method: str, path: str, routes: Mapping[str, Handler]) -> Answer:
    handler = routes.get(path)
    if handler is None:
        paths = " ".join(routes)
        return Answer(404, f"There is no {path} here, but {paths}.\n".encode())
    if method not in ("GET", "HEAD"):
        body = f"{path} takes GET, not {method}.\n".encode()
        return Answer(405, body, headers=(("allow", "GET, HEAD"),))
    try:
        return await handler()
    except Exception:  # a bug of ours must not end the process that guards the others
        log.exception("admin request failed", extra={"path": path})
        return Answer(500, b"The supervisor failed to answer; the error is logged.\n")
