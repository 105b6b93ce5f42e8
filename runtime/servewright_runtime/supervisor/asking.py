"""Asking a process of the run over HTTP: small, bounded, and never waiting long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from servewright_runtime.supervisor.admin import Answer

_MAX_ANSWER = 16 * 1024 * 1024  # bytes; /metrics of many models is the largest

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask_unix(path: Path, target: str, *, method: str = "GET", timeout_s: float) -> Answer:
    """The answer of an HTTP server on a Unix socket. Raises OSError or TimeoutError."""
    return await _ask(lambda: asyncio.open_unix_connection(path), target, method, timeout_s)


async def ask_tcp(host: str, port: int, target: str, *, timeout_s: float) -> Answer:
    """The answer of an HTTP server on a TCP port. Raises OSError or TimeoutError."""
    return await _ask(lambda: asyncio.open_connection(host, port), target, "GET", timeout_s)


async def _ask(
    connect: Callable[[], Awaitable[Streams]], target: str, method: str, timeout_s: float
) -> Answer:
    # HTTP/1.0: the body ends with the connection and is never chunked.
    request = f"{method} {target} HTTP/1.0\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
    async with asyncio.timeout(timeout_s):
        reader, writer = await connect()
        try:
            writer.write(request.encode())
            data = bytearray()
            while chunk := await reader.read(65536):
                data += chunk
                if len(data) > _MAX_ANSWER:
                    raise ConnectionError(f"the answer to {target} is over {_MAX_ANSWER} bytes")
        finally:
            writer.close()
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    try:
        status = int(lines[0].split(" ")[1])
    except (IndexError, ValueError) as error:
        raise ConnectionError(f"the answer to {target} is not HTTP") from error
    headers = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
    return Answer(status, body, headers.get("content-type", "text/plain").strip())
