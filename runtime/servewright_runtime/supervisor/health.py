"""What the supervisor asks the replica, by its Unix socket and by the port that clients use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from servewright_runtime.supervisor.admin import Answer
from servewright_runtime.supervisor.asking import ask_tcp, ask_unix

POLL_INTERVAL_S = 2.0
_TIMEOUT_S = 5.0
_FAILURES = 3  # in a row, until a replica counts as dead


class Health:
    """Follows one replica through its life: first unborn, then loading, then open to clients."""

    def __init__(self, replica_socket: Path) -> None:
        self._socket = replica_socket
        self.has_replica = False
        self.port: tuple[str, int] | None = None  # while it is open to clients

    async def ask(self, path: str) -> Answer:
        """The replica's own answer; 503 with the reason when there is none."""
        try:
            return await ask_unix(self._socket, path, timeout_s=_TIMEOUT_S)
        except TimeoutError:
            return Answer(503, f"the replica gave no answer within {_TIMEOUT_S:g} s\n".encode())
        except OSError as error:
            return Answer(503, f"the replica is not reached: {error}\n".encode())

    async def livez(self) -> Answer:
        """503 only when a restart would help."""
        if not self.has_replica:
            return Answer(200, b"starting\n")
        answer = await self.ask("/livez")
        if answer.status != 200 or self.port is None:
            return answer
        try:
            health = await ask_tcp(*self.port, "/health", timeout_s=_TIMEOUT_S)
        except TimeoutError:
            return Answer(503, f"the port gave no answer within {_TIMEOUT_S:g} s\n".encode())
        except OSError as error:
            if self.port is None:  # it was closed meanwhile, as it should be
                return answer
            return Answer(503, f"the port is not reached: {error}\n".encode())
        # 503 is an answer too: overloaded, say. Liveness asks for no more than one.
        if health.status not in (200, 503):
            return Answer(503, b"/health answered %d\n" % health.status)
        return answer

    async def watch(self, tick: Callable[[], None]) -> str:
        """Poll until the replica fails several times in a row, and say how. `tick`: each time."""
        failures = 0
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            tick()
            answer = await self.livez()
            failures = 0 if answer.status == 200 else failures + 1
            if failures == _FAILURES:
                return answer.body.decode(errors="replace").strip()
