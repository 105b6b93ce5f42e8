"""Answers in one piece: JSON and OpenAI's error body, sent straight through ASGI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Send

from servewright_runtime.errors import Overloaded, RequestError, Unauthorized, Unavailable

Headers = Sequence[tuple[bytes, bytes]]


def error_body(error: RequestError) -> bytes:
    """OpenAI's error object as JSON."""
    return orjson.dumps(
        {
            "error": {
                "message": str(error),
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Headers that belong to an error's status."""
    if isinstance(error, Overloaded | Unavailable):
        return [(b"retry-after", str(error.retry_after_s).encode())]
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", b'Bearer realm="servewright"')]
    return []


async def send_json(send: Send, body: bytes, *, status: int = 200, headers: Headers = ()) -> None:
    """Send a whole JSON answer."""
    await start_json(send, body, status=status, headers=headers)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def start_json(send: Send, body: bytes, *, status: int, headers: Headers) -> None:
    """Send the head of a JSON answer whose body is `body`."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )


def dumps(value: Any) -> bytes:
    """JSON of plain data."""
    return orjson.dumps(value)
