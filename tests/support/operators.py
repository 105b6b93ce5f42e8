"""Operators for tests, each with a loop and a thread of its own: kopf thinks the loop its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config

from servewright_operator.names import Key
from servewright_operator.running import Operator
from servewright_operator.settings import PodDefaults, Settings
from support.waiting import eventually

Object = dict[str, Any]
IMAGE = "registry.example/servewright-runtime:1"
CUDA_IMAGE = "registry.example/servewright-runtime-cuda:1"
_STOP_S = 30.0
# Long, for a machine at work on other things too; one that could not be released is waited for.
LEASE_S = 60.0


class RunningOperator:
    """An operator that runs. Everything may be called from the test's thread."""

    def __init__(self, server: str | Path, settings: Settings) -> None:
        """server: a URL that asks for no credentials, or a kubeconfig."""
        self._server, self._settings = server, settings
        self._thread = threading.Thread(target=self._run, name=f"operator {settings.identity}")
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self.operator: Operator
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin; it has not listed anything yet."""
        self._thread.start()
        assert self._started.wait(_STOP_S)

    def stop(self) -> None:
        """As by SIGTERM, and wait for the end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.operator.stop.set)
        self._thread.join(_STOP_S)
        assert not self._thread.is_alive()

    def is_leading(self) -> bool:
        """Whether it has listed everything and works."""
        return self.operator.is_ready and len(self.operator.store) > 0

    def pass_over(self, *names: str, namespace: str = "default") -> None:
        """Have a pass made over each ModelService and over whatever else waits, and Events posted
        of what they did."""

        async def work() -> None:
            queue = self.operator.queue
            for name in names:
                queue.add(Key(namespace, name))
            while len(queue):  # noqa: ASYNC110 - a queue tells nobody that it is empty
                await asyncio.sleep(0.01)
            if self.operator.events is not None:
                await self.operator.events.posted()

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(_STOP_S)

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self.operator = Operator(self._settings, await configuration(self._server))
            self._started.set()
            await self.operator.run()

        try:
            with asyncio.Runner() as runner:
                try:
                    runner.run(run())
                finally:
                    runner.run(_hang_up())
        except BaseException as error:  # a thread's own end tells nobody: whoever stops it is told
            self.error = error


async def _hang_up() -> None:
    """End what an operator's process takes with it at its exit, and a loop does not: connections
    that were being made or closed, which a later test would be warned of."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    for transport in list(transports.values()):
        transport.abort()
    await asyncio.sleep(0)


async def configuration(server: str | Path) -> Configuration:
    """How to reach an API server: by a URL that asks for no credentials, or by a kubeconfig."""
    if isinstance(server, str):
        return Configuration(host=server)
    made = Configuration()
    await load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(server), client_configuration=made
    )
    return made


@contextmanager
def running_operator(server: str | Path, **settings: Any) -> Iterator[RunningOperator]:
    """One that works on an API server; stopped in the end."""
    running = RunningOperator(server, make_settings(**settings))
    running.start()
    try:
        yield running
    finally:
        running.stop()
        if running.error is not None:
            raise running.error


def make_settings(**changes: Any) -> Settings:
    """Settings of a test: short times, any port of loopback."""
    given: dict[str, Any] = {
        "pods": PodDefaults(image=IMAGE, cuda_image=CUDA_IMAGE),
        "identity": "operator-1",
        "lease_namespace": "servewright",
        "host": "127.0.0.1",
        "port": 0,
        "lease_duration_s": LEASE_S,
        "lease_renew_s": 0.2,
    }
    return Settings(**{**given, **changes})


def make_service(name: str = "m", **spec: Any) -> Object:
    """A ModelService as the API server gives it, in the namespace `default`."""
    return {
        "apiVersion": "servewright.io/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"source": "https://models.example/m.gguf", "digest": "sha256:" + "0" * 64},
            "access": {"mode": "Open"},
            **spec,
        },
    }


def settle(running: RunningOperator, *names: str, namespace: str = "default") -> None:
    """Wait until the operator leads, has made the children and then told of them."""
    eventually(running.is_leading, timeout_s=LEASE_S * 2)
    for _ in range(2):
        running.pass_over(*names, namespace=namespace)
