"""Around every request: identity, access, headers, errors, counting, the access log.

A plain ASGI middleware. It adds nothing to a streamed chunk but one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servewright_runtime.api.access import identify
from servewright_runtime.api.answers import error_body, error_headers, start_json
from servewright_runtime.api.call import Call, Disconnected
from servewright_runtime.api.state import AppState, Bounds, ServedModel
from servewright_runtime.errors import EngineFailed, RequestError, Unauthorized
from servewright_runtime.metrics import HttpMetrics

log = logging.getLogger(__name__)

HEALTH_PATH = "/health"
# Up to here an unread body is cheaper to swallow than to close the connection over.
SMALL_BODY_BYTES = 64 * 1024


class Envelope:
    """See the module. `app` raises RequestError for what shall be answered as an error."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        models: Mapping[str, ServedModel],
        state: AppState,
        bounds: Bounds,
        metrics: HttpMetrics,
    ) -> None:
        self._app = app
        self._models = models
        self._state = state
        self._bounds = bounds
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call.of(scope)
        is_health = call.path == HEALTH_PATH

        async def send_framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._frame(call, message)
            await send(message)

        if not is_health:
            self._state.enter()
        try:
            await self._answer(call, scope, receive, send_framed, is_open=is_health)
        finally:
            if not is_health:
                self._state.leave()
                call.log()
            self._metrics.on_answer(
                call.model, call.route, call.status, disconnected=call.disconnected
            )

    async def _answer(
        self, call: Call, scope: Scope, receive: Receive, send: Send, *, is_open: bool
    ) -> None:
        try:
            if not is_open:
                self._authenticate(call)
            await self._app(scope, receive, send)
        except Disconnected:
            call.disconnected = True
        except RequestError as error:
            await self._refuse(call, error, receive, send)
        except Exception:
            log.exception("request failed", extra={"request_id": call.request_id})
            if call.status is not None:
                raise  # the answer is under way: only the server can cut the connection
            failure = EngineFailed("The server failed at this request; the error is logged.")
            await self._refuse(call, failure, receive, send)

    def _authenticate(self, call: Call) -> None:
        """Refuse, before a byte of the body is read, who may use none of the models."""
        call.caller = identify(call.header(b"authorization"))
        if not any(model.admits(call.caller) for model in self._models.values()):
            raise unauthorized(call)

    def _frame(self, call: Call, message: Message) -> None:
        """Add to an answer's head what every answer carries."""
        call.status = message["status"]
        headers = message["headers"] = list(message.get("headers", ()))
        headers.append((b"x-request-id", call.request_id.encode()))
        revision = call.revision or ",".join(m.revision for m in self._models.values())
        headers.append((b"x-servewright-revision", revision.encode()))
        if self._state.draining and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))

    async def _refuse(self, call: Call, error: RequestError, receive: Receive, send: Send) -> None:
        assert call.status is None, "errors of a running stream are answered in it"
        call.error = error.code or error.type
        body = error_body(error)
        headers = error_headers(error)
        closes = call.stalled or not (call.body_read or self._has_small_body(call))
        if closes:
            headers.append((b"connection", b"close"))
        await start_json(send, body, status=error.status, headers=headers)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if closes and not call.stalled:
            await self._linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _has_small_body(self, call: Call) -> bool:
        length = call.content_length
        if length is None:
            return call.header(b"transfer-encoding") is None  # no body at all
        return length <= SMALL_BODY_BYTES

    async def _linger(self, receive: Receive) -> None:
        """Read on and throw away: closing on unread data would reset the connection, and the
        client, still sending, would never see the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.linger_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return


def unauthorized(call: Call) -> Unauthorized:
    """The 401 that fits: no key, or one that is not known."""
    if call.caller.key_hash is None:
        message = "This server needs an API key: send the header 'Authorization: Bearer KEY'."
        return Unauthorized(message, code="missing_api_key")
    return Unauthorized("The API key is not known to this server.", code="invalid_api_key")
