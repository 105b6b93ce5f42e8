"""The one Serve deployment: a thin shell over `Host`, which knows nothing of Ray.

Serve gives it a process, calls its health check and shows its status; requests never pass
through Serve. This module is imported by the driver too, so what is heavy is imported inside.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket

from servewright_runtime import logs
from servewright_runtime.serve import guard, trimming
from servewright_runtime.supervisor.link import Link, Message
from servewright_runtime.supervisor.rundir import RunDir

log = logging.getLogger(__name__)

_OPEN_FILES = 65536


class Replica:
    """Its constructor returns when the models answer on the port, or raises."""

    async def __init__(self) -> None:  # type: ignore[misc]
        self._run = RunDir.from_environment()
        self._loop = asyncio.get_running_loop()
        self._may_serve: asyncio.Future[socket.socket] = self._loop.create_future()
        self._link = Link("replica", self._run)
        self._link.watch(
            self._on_message,
            lambda: guard.end_run(self._run, after_s=guard.REPLICA_PATIENCE_S),
        )
        try:
            await self._start()
        except Exception as error:
            self._link.send_failure(error)
            raise

    async def _start(self) -> None:
        from ray.serve._private import replica

        from servewright_runtime.config import load_models
        from servewright_runtime.serve.host import Host

        trimming.bind_replica_to_loopback(replica)
        _allow_many_files()
        self._host = Host(self._link.send)
        await self._host.open_admin(self._run.replica_socket)
        listener = await self._may_serve
        await self._host.serve(load_models(self._run.models_file.read_text()), listener)

    async def _drain(self, linger_s: float) -> None:
        try:
            await self._host.drain(linger_s)
        except Exception as error:
            log.exception("drain failed")
            self._link.send_failure(error)

    def _on_message(self, message: Message, files: list[int]) -> None:
        """Called on the link's thread."""
        match message["event"]:
            case "welcome":
                # Ray has sent our output to files of its own; it belongs beside the supervisor's.
                os.dup2(files[0], 1)
                os.dup2(files[0], 2)
                os.close(files[0])
                logs.configure()
            case "serve":
                listener = socket.socket(fileno=files[0])
                self._loop.call_soon_threadsafe(self._may_serve.set_result, listener)
            case "drain":
                asyncio.run_coroutine_threadsafe(self._drain(message["linger_s"]), self._loop)

    async def check_health(self) -> None:
        """Called by Serve. Raises when the own socket does not answer."""
        await self._host.check_health()


def _allow_many_files() -> None:
    """Each connection is an open file, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else _OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, _OPEN_FILES)), hard))
