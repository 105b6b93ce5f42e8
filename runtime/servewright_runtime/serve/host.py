"""All models of a replica in one process: load, probe, serve, drain.

It knows the engine and the API but not Ray, so a test can host models in its own process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servewright_runtime.api.access import KeyFolder
from servewright_runtime.api.admin import build_admin
from servewright_runtime.api.app import build_app, unhealthy
from servewright_runtime.api.protocol import Guards, guarded_protocol
from servewright_runtime.api.state import AppState, ServedModel
from servewright_runtime.config import ReplicaModel
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.streams import Streams
from servewright_runtime.metrics import Metrics
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.serve.loading import Loaded, load_all
from servewright_runtime.serve.probing import probe
from servewright_runtime.serve.sockets import HttpServer
from servewright_runtime.supervisor.asking import ask_tcp
from servewright_runtime.supervisor.phases import Phase
from servewright_runtime.supervisor.ports import loopback_of

log = logging.getLogger(__name__)

# (event, fields) to the supervisor, from any thread.
Tell = Callable[..., None]

Load = Callable[[Sequence[ReplicaModel], Callable[[float], None]], list[Loaded]]

_HEALTH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Hosted:
    """A model that runs."""

    model: ReplicaModel
    loaded: LoadedModel
    engine: Engine
    streams: Streams


class Host:
    """Lives on one event loop, which nothing here blocks: loading and computing have threads."""

    def __init__(
        self, tell: Tell, load: Load = load_all, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._load = load
        self._clock = clock
        self._state = AppState()
        self._metrics = Metrics()
        self._phase = Phase.STARTING
        self._hosted: dict[str, _Hosted] = {}
        self._served: dict[str, ServedModel] = {}
        self._admin: HttpServer | None = None
        self._main: HttpServer | None = None
        self._address: tuple[str, int] | None = None

    async def open_admin(self, path: Path) -> None:
        """Answer the supervisor on a Unix socket, from before anything is loaded."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        app = build_admin(
            livez=self._livez,
            readyz=lambda: unhealthy(self._served, self._state),
            state=self.state,
            metrics=self._metrics.render,
        )
        self._admin = HttpServer(app, listener)
        await self._admin.start()

    async def serve(self, models: Sequence[ReplicaModel], listener: socket.socket) -> None:
        """Load and probe the models, then accept connections on `listener`.

        Raises ConfigError or another ServewrightError that says which model it was.
        """
        started = time.monotonic()
        self._enter(Phase.LOADING, 0.0)
        for one in await asyncio.to_thread(self._load, models, self._loading):
            self._hosted[one.model.name] = self._start_engine(one)
        loaded_at = time.monotonic()
        self._enter(Phase.WARMING)
        for hosted in self._hosted.values():
            await probe(hosted.model, hosted.loaded.tokenizer, hosted.streams)
        self._served = self._serve_models()
        self._state.serving = True
        app = build_app(self._served, state=self._state, metrics=self._metrics.http)
        self._address = loopback_of(listener)
        revisions = ",".join(model.revision for model in models)
        self._main = HttpServer(app, listener, guarded_protocol(Guards(), revisions))
        await self._main.start()
        self._phase = Phase.READY
        # Weights, tables and modules live as long as the process: collecting garbage among them
        # would only stop requests. (A collection now would cost 0.1 s of the start.)
        gc.freeze()
        cold_start = {"load": loaded_at - started, "warm": time.monotonic() - loaded_at}
        self._tell("ready", cold_start=cold_start)

    async def drain(self, linger_s: float) -> None:
        """Serve on for `linger_s`, asking clients to go; then only finish what is in flight."""
        self._phase = Phase.DRAINING
        self._state.draining = True
        await asyncio.sleep(linger_s)
        assert self._main is not None
        await self._main.stop()
        self._tell("drained")

    async def close(self) -> None:
        """End everything. A replica is killed instead; this is for a host in a living process."""
        for hosted in self._hosted.values():
            await asyncio.to_thread(hosted.engine.stop)
        for server in (self._main, self._admin):
            if server is not None:
                await server.stop()

    async def check_health(self) -> None:
        """Raises OSError or TimeoutError when the own port does not answer."""
        if self._phase is Phase.READY:
            assert self._address is not None
            await ask_tcp(*self._address, "/health", timeout_s=_HEALTH_TIMEOUT_S)

    def state(self) -> dict[str, Any]:
        """What /state shows of the replica."""
        models = [_describe(hosted) for hosted in self._hosted.values()]
        return {
            "phase": self._phase.value,
            "models": models,
            "running": sum(model["running"] for model in models),
            "waiting": sum(model["waiting"] for model in models),
            "inFlight": self._state.in_flight,
        }

    def _loading(self, fraction: float) -> None:
        self._tell("progress", phase=Phase.LOADING.value, fraction=fraction)

    def _enter(self, phase: Phase, fraction: float | None = None) -> None:
        self._phase = phase
        self._tell("progress", phase=phase.value, fraction=fraction)

    def _start_engine(self, one: Loaded) -> _Hosted:
        model = one.model
        config = EngineConfig(
            name=model.name,
            max_model_len=one.plan.max_model_len,
            max_batch=model.max_batch,
            max_step_tokens=model.max_step_tokens,
            mixed_prefill_tokens=model.mixed_prefill_tokens,
            max_queued=model.max_queued,
            prefix_cache=model.prefix_cache,
        )
        observer = self._metrics.engine(model.name)
        engine = Engine(one.loaded, config, observer, clock=self._clock)
        observer.bind(engine.stats)
        engine.start()
        return _Hosted(model, one.loaded, engine, Streams(engine))

    def _serve_models(self) -> dict[str, ServedModel]:
        created = int(time.time())
        return {
            name: ServedModel(
                engine=hosted.engine,
                streams=hosted.streams,
                tokenizer=hosted.loaded.tokenizer,
                config=hosted.engine.config,
                revision=hosted.model.revision,
                created=created,
                kernel=hosted.loaded.runner.kernel,
                keys=KeyFolder(Path(hosted.model.keys_dir)) if hosted.model.keys_dir else None,
                max_concurrency=hosted.model.max_concurrency,
                max_output_tokens=hosted.model.max_output_tokens,
            )
            for name, hosted in self._hosted.items()
        }

    def _livez(self) -> str | None:
        now = self._clock()
        for name, hosted in self._hosted.items():
            if hosted.engine.stats().failed is not None:
                return f"The engine of {name} has failed: {hosted.engine.stats().failed}"
            if hosted.engine.is_stalled(now):
                return f"The engine of {name} has work, but ended no step for 30 s."
        return None


def _describe(hosted: _Hosted) -> dict[str, Any]:
    model, loaded, stats = hosted.model, hosted.loaded, hosted.engine.stats()
    return {
        "name": model.name,
        "revision": model.revision,
        "model": {"digest": model.digest, "format": loaded.format, "bytes": loaded.bytes},
        "kernel": loaded.runner.kernel,
        "maxModelLen": hosted.engine.config.max_model_len,
        "running": stats.running,
        "waiting": stats.waiting,
        "kvBlocks": stats.kv_blocks,
        "kvBlocksUsed": stats.kv_blocks_used,
    }
