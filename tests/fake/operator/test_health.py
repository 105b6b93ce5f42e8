"""What the kubelet and Prometheus ask is answered, over whatever the cluster speaks."""

from __future__ import annotations

import aiohttp
import pytest

from servewright_operator.health import Health, serving


def health() -> Health:
    return Health(oldest_pass_s=lambda: 0.0, is_ready=lambda: True, refresh=lambda: None)


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        pytest.param("", "127.0.0.1", id="any address, called over IPv4"),
        pytest.param("", "[::1]", id="any address, called over IPv6"),
        pytest.param("127.0.0.1", "127.0.0.1", id="one address, as where there is no IPv6"),
    ],
)
async def test_it_answers(host: str, caller: str) -> None:
    async with serving(health(), host, 0) as port, aiohttp.ClientSession() as session:
        for path in ("/livez", "/readyz", "/metrics"):
            async with session.get(f"http://{caller}:{port}{path}") as answer:
                assert answer.status == 200
