"""The HTTP application of a replica: the OpenAI API, `/health`, and the envelope around both."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from servewright_runtime.api.answers import dumps, error_body, send_json
from servewright_runtime.api.call import Call
from servewright_runtime.api.envelope import HEALTH_PATH, Envelope
from servewright_runtime.api.openai.endpoints import Endpoint, OpenAI
from servewright_runtime.api.state import AppState, Bounds, ServedModel
from servewright_runtime.errors import MethodNotAllowed, NotFound, RequestError
from servewright_runtime.metrics import HttpMetrics


def build_app(
    models: Mapping[str, ServedModel],
    *,
    state: AppState,
    metrics: HttpMetrics,
    bounds: Bounds | None = None,
) -> Starlette:
    """The application over `models`, by served name. Call it on the loop that will serve it."""
    bounds = bounds or Bounds()
    openai = OpenAI(models, state=state, bounds=bounds, metrics=metrics)

    async def health(call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        reason = unhealthy(models, state)
        status = 200 if reason is None else 503
        await send_json(send, dumps({"status": reason or "serving"}), status=status)

    app = Starlette(
        routes=[
            Route(HEALTH_PATH, Endpoint(HEALTH_PATH, health), methods=["GET"]),
            *openai.routes(),
        ],
        middleware=[
            Middleware(Envelope, models=models, state=state, bounds=bounds, metrics=metrics)
        ],
        exception_handlers={HTTPException: _on_routing_error},
    )
    app.router.redirect_slashes = False  # /v1/models/ is a model without a name, not a redirect
    return app


def unhealthy(models: Mapping[str, ServedModel], state: AppState) -> str | None:
    """Why no request should be sent here now, in one word, or None."""
    if state.draining:
        return "draining"
    if any(model.engine.stats().failed is not None for model in models.values()):
        return "failed"
    return None if state.serving else "loading"


async def _on_routing_error(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 with OpenAI's body."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    answer: RequestError
    if error.status_code == 405:
        answer = MethodNotAllowed(
            f"{request.method} is not a method of {path}; see the header Allow."
        )
    else:
        answer = NotFound(f"There is nothing at {path}; the API's paths begin with /v1/.")
    return Response(error_body(answer), answer.status, error.headers, media_type="application/json")
