"""Chunks of a streamed body straight to the connection, between two of ASGI's `send`.

`send` is a coroutine inside one of each middleware, for which the answer's own coroutine has to be
woken: more than half of what a streamed token cost. `send` still begins and ends each answer, and
takes over whenever the client is slow.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# Key of the scope under which the protocol leaves a request's ChunkedBody.
SCOPE_KEY = "servewright.chunks"


class ChunkedBody:
    """The body that answers one request, as uvicorn keeps it."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        """Whether the answer has begun, has not ended, and the client reads it."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (
            cycle.flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, data: bytes) -> None:
        """Send one chunk. data: not empty. Only while `is_ready`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
