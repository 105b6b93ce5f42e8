"""Request bodies: bounded in size, time and total memory, then parsed as one JSON object.

A large body is parsed on a thread: ten megabytes of messages take a second to check, which health
checks and streams must not wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.types import Receive

from servewright_runtime.api.aside import aside
from servewright_runtime.api.call import Call, Disconnected
from servewright_runtime.api.state import AppState, Bounds
from servewright_runtime.errors import (
    Overloaded,
    RequestError,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
)

# Up to here parsing takes a few milliseconds at most.
INLINE_BYTES = 64 * 1024

T = TypeVar("T")


async def read_json(
    call: Call,
    receive: Receive,
    bounds: Bounds,
    state: AppState,
    check: Callable[[dict[str, Any]], T],
) -> T:
    """What `check` makes of the request's body, a JSON object.

    Raises what `check` does; UnsupportedMediaType (415), TooLarge (413), RequestTimeout (408);
    Overloaded (429) when the bodies of all clients together take too much; RequestError (400) with
    the position of the fault in the JSON; Disconnected when the client went away.
    """
    _check_type(call)
    length = call.content_length
    if length is not None and length > bounds.body_bytes:
        raise _too_large(bounds)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(bounds.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > bounds.body_bytes:
                    size -= len(part)
                    raise _too_large(bounds)
                state.buffered_bytes += len(part)
                parts.append(part)
                if not message.get("more_body", False):
                    call.body_read = True
                    break
                if state.buffered_bytes > bounds.buffered_bytes:
                    raise Overloaded("Too many request bodies are on their way; try again later.")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return await aside(lambda: check(_parse(body)), is_long=size > INLINE_BYTES)
    except TimeoutError:
        call.stalled = True
        raise RequestTimeout(
            f"The request's body did not come within {bounds.body_timeout_s:g} s; send it faster."
        ) from None
    finally:
        state.buffered_bytes -= size


def _check_type(call: Call) -> None:
    kind = call.header(b"content-type")
    media, _, rest = (kind or b"").partition(b";")
    if media.strip().lower() != b"application/json":
        came = f"not {kind.decode('latin-1')[:80]!r}" if kind else "but there is none"
        raise UnsupportedMediaType(f"The header Content-Type must be application/json, {came}.")
    charset = rest.partition(b"charset=")[2].strip(b' "').lower()
    if charset not in (b"", b"utf-8", b"utf8"):
        raise UnsupportedMediaType("JSON is UTF-8; leave the charset out of Content-Type.")
    if call.header(b"content-encoding") not in (None, b"identity"):
        raise UnsupportedMediaType("Compressed request bodies are not supported; send plain JSON.")


def _too_large(bounds: Bounds) -> TooLarge:
    return TooLarge(f"The request's body is over {bounds.body_bytes} bytes; send less.")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"The request's body is no JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno} (character {error.pos}).",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise RequestError("The request's body must be a JSON object.", code="invalid_type")
    return value
