"""uvicorn's HTTP/1.1 protocol with the guards that it lacks.

A connection that says nothing, sends its head byte by byte, sends a head without end or never reads
its answer is closed after a bound. All guards are timers and counts of a connection: a streamed
chunk costs nothing more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from servewright_runtime.api.answers import error_body
from servewright_runtime.errors import RequestError, RequestTimeout, Unavailable


@dataclass(frozen=True, slots=True)
class Guards:
    """Bounds on a connection."""

    connections: int = 4096  # open at once; one more is answered 503
    head_bytes: int = 64 * 1024  # request line and headers, or trailers
    head_timeout_s: float = 30.0  # from connecting, or from a head's first byte, to its end
    write_timeout_s: float = 60.0  # a client that reads nothing of a full buffer for so long


class _HeadTooLarge(RequestError):
    status = 431


_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def guarded_protocol(guards: Guards, revision: str) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http` setting. revision: for answers made here."""

    class GuardedProtocol(HttpToolsProtocol):
        """One connection."""

        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        # Bytes of the current message apart from its body, but for the chunk it began in.
        _overhead = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            if len(self.connections) > guards.connections:
                error = Unavailable(
                    f"This server holds at most {guards.connections} connections; try again later."
                )
                self._close_with(error)
                return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._overhead += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._overhead > guards.head_bytes:
                limit = guards.head_bytes
                self._close_with(_HeadTooLarge(f"The request's head is over {limit} bytes."))
            elif self._is_idle() and self.timeout_keep_alive_task is None:
                self._await_head()

        def on_message_begin(self) -> None:
            self._overhead = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_head_timer()
            self._overhead = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            # Framing of tiny chunks is up to six times their size.
            self._overhead = max(0, self._overhead - 8 * len(body))
            super().on_body(body)

        def send_400_response(self, msg: str) -> None:
            self._close_with(RequestError(msg.rstrip(".") + ": this is not HTTP/1.1."))

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(guards.write_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_write_timer()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(guards.head_timeout_s, self._on_slow_head)

        def _on_slow_head(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self._close_with(
                    RequestTimeout(
                        f"No whole request head came within {guards.head_timeout_s:g} s."
                    )
                )

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def _close_with(self, error: RequestError) -> None:
            """Answer what never became a request, if nothing else is being answered."""
            if self._is_idle():
                body = error_body(error)
                reason = _REASONS.get(error.status, "Service Unavailable")
                head = (
                    f"HTTP/1.1 {error.status} {reason}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nx-servewright-revision: {revision}\r\n"
                    "connection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()

    return GuardedProtocol
