"""The replica's own small server, asked by the supervisor through a unix socket.

Takes plain callables, so it can answer from the first moment on, before there is any model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from servewright_runtime.api.answers import dumps

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_admin(
    *,
    livez: Callable[[], str | None],
    readyz: Callable[[], str | None],
    state: Callable[[], dict[str, Any]],
    metrics: Callable[[], bytes],
) -> Starlette:
    """GET /livez /readyz /state /metrics.

    livez, readyz: None is yes; a sentence is no (503), and why.
    """

    async def get_livez(request: Request) -> Response:
        return _verdict(livez())

    async def get_readyz(request: Request) -> Response:
        return _verdict(readyz())

    async def get_state(request: Request) -> Response:
        return Response(dumps(state()), media_type="application/json")

    async def get_metrics(request: Request) -> Response:
        return Response(metrics(), media_type=METRICS_TYPE)

    return Starlette(
        routes=[
            Route("/livez", get_livez),
            Route("/readyz", get_readyz),
            Route("/state", get_state),
            Route("/metrics", get_metrics),
        ]
    )


def _verdict(reason: str | None) -> Response:
    body = {"ok": reason is None, "reason": reason}
    return Response(dumps(body), 200 if reason is None else 503, media_type="application/json")
