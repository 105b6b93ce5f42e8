"""What the kubelet and Prometheus ask: /livez, /readyz and /metrics.

Alive means that this process can still work: its loop turns and no worker hangs. Whether the API
server answers is not asked: a restart would not help. Ready means that it does its duty: stands by,
or has seen the cluster once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from servewright_operator import metrics

MAX_LAG_S = 5.0  # of the loop
# Of one pass: it gives up long before, unless it hangs outside any request.
MAX_PASS_S = 300.0
_BEAT_S = 1.0


class Health:
    """What is known about this process' own state."""

    def __init__(
        self,
        *,
        oldest_pass_s: Callable[[], float],
        is_ready: Callable[[], bool],
        refresh: Callable[[], None],
    ) -> None:
        self._oldest_pass_s, self._is_ready, self._refresh = oldest_pass_s, is_ready, refresh
        self._lag_s = 0.0

    async def beat(self) -> None:
        """Measure for ever how late the loop comes to what is due."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._lag_s = clock() - due

    def why_dead(self) -> str | None:
        """Why a restart would help; None where it would not."""
        if self._lag_s > MAX_LAG_S:
            return f"the event loop is {self._lag_s:.0f} s late"
        if self._oldest_pass_s() > MAX_PASS_S:
            return f"a worker has been busy with one ModelService for {self._oldest_pass_s():.0f} s"
        return None

    async def livez(self, _: web.Request) -> web.Response:
        """200, or 500 and why."""
        why = self.why_dead()
        return web.Response(text=f"{why or 'ok'}\n", status=500 if why else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        """200 on standby and once everything was listed, else 503."""
        is_ready = self._is_ready()
        text = "ok\n" if is_ready else "not everything was listed yet\n"
        return web.Response(text=text, status=200 if is_ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus' text form."""
        self._refresh()
        return web.Response(
            body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )


@contextlib.asynccontextmanager
async def serving(health: Health, host: str, port: int) -> AsyncIterator[int]:
    """Answer on a port (0: any) while in this context: the port. host empty: any address."""
    app = web.Application()
    app.router.add_get("/livez", health.livez)
    app.router.add_get("/readyz", health.readyz)
    app.router.add_get("/metrics", health.metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.SockSite(runner, _listener(host, port))
        await site.start()
        beating = asyncio.create_task(health.beat(), name="heartbeat")
        try:
            yield runner.addresses[0][1]
        finally:
            beating.cancel()
    finally:
        await runner.cleanup()


def _listener(host: str, port: int) -> socket.socket:
    """One socket for IPv6 and IPv4, where the machine has both."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port))
