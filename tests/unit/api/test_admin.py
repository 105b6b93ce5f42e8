"""The replica's admin application over plain callables."""

from __future__ import annotations

import httpx
import pytest

from servewright_runtime.api.admin import build_admin


class Replica:
    live: str | None = None
    ready: str | None = "the model is loading"


@pytest.fixture
def replica() -> Replica:
    return Replica()


async def ask(replica: Replica, path: str) -> httpx.Response:
    app = build_admin(
        livez=lambda: replica.live,
        readyz=lambda: replica.ready,
        state=lambda: {"phase": "loading"},
        metrics=lambda: b"a_metric 1\n",
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        return await client.get(path)


async def test_no_reason_is_200_and_a_reason_is_503_with_it(replica: Replica) -> None:
    live = await ask(replica, "/livez")
    assert (live.status_code, live.json()) == (200, {"ok": True, "reason": None})
    ready = await ask(replica, "/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"ok": False, "reason": "the model is loading"}


async def test_state_and_metrics_are_passed_on(replica: Replica) -> None:
    assert (await ask(replica, "/state")).json() == {"phase": "loading"}
    metrics = await ask(replica, "/metrics")
    assert metrics.text == "a_metric 1\n"
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
