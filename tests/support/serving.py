"""A whole server in the test's process: engines, streams, app and uvicorn on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servewright_runtime.api.access import KeyFolder
from servewright_runtime.api.app import build_app
from servewright_runtime.api.protocol import Guards, guarded_protocol
from servewright_runtime.api.state import AppState, Bounds, ServedModel
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.streams import Streams
from servewright_runtime.metrics import Metrics
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.serve.sockets import HttpServer
from support.scripted_model import ScriptedRunner, loaded

# Long enough for a machine that does much else; reached only by what would never come.
WAIT_S = 30.0


@dataclass(frozen=True)
class Model:
    """One model to serve."""

    name: str = "tiny"
    loaded: LoadedModel = field(default_factory=lambda: loaded(ScriptedRunner()))
    max_model_len: int = 1024
    max_batch: int = 8
    max_queued: int = 64
    max_concurrency: int = 64
    max_output_tokens: int | None = None
    keys: Path | None = None
    prefix_cache: bool = True
    revision: str = "rev-1"


@dataclass
class Server:
    """A running server, to ask and to look into."""

    host: str
    port: int
    models: dict[str, ServedModel]
    engines: dict[str, Engine]
    metrics: Metrics
    state: AppState
    http: HttpServer

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def connections(self) -> set[Any]:
        """uvicorn's protocols, one a connection."""
        connections: set[Any] = self.http._server.server_state.connections
        return connections

    @property
    def engine(self) -> Engine:
        """Of the only model."""
        (engine,) = self.engines.values()
        return engine

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric of the model `tiny`, 0 where there is none yet."""
        value = self.metrics.registry.get_sample_value(name, {"model_name": "tiny", **labels})
        return value or 0.0


@contextlib.asynccontextmanager
async def serving(
    *models: Model,
    bounds: Bounds | None = None,
    guards: Guards | None = None,
    is_serving: bool = True,
    send_buffer: int | None = None,
) -> AsyncIterator[Server]:
    """Serve on the running loop; everything has ended when the block is left."""
    metrics = Metrics()
    state = AppState(serving=is_serving)
    engines: dict[str, Engine] = {}
    served: dict[str, ServedModel] = {}
    for model in models or (Model(),):
        config = EngineConfig(
            name=model.name,
            max_model_len=model.max_model_len,
            max_batch=model.max_batch,
            max_step_tokens=max(256, model.max_batch),
            mixed_prefill_tokens=64,
            max_queued=model.max_queued,
            prefix_cache=model.prefix_cache,
        )
        observer = metrics.engine(model.name)
        engine = engines[model.name] = Engine(model.loaded, config, observer)
        observer.bind(engine.stats)
        engine.start()
        served[model.name] = ServedModel(
            engine=engine,
            streams=Streams(engine),
            tokenizer=model.loaded.tokenizer,
            config=config,
            revision=model.revision,
            created=1_700_000_000,
            kernel=model.loaded.runner.kernel,
            keys=None if model.keys is None else KeyFolder(model.keys),
            max_concurrency=model.max_concurrency,
            max_output_tokens=model.max_output_tokens,
        )
    app = build_app(served, state=state, metrics=metrics.http, bounds=bounds)
    revisions = ",".join(model.revision for model in served.values())
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    if send_buffer is not None:  # connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    host, port = listener.getsockname()
    http = HttpServer(app, listener, guarded_protocol(guards or Guards(), revisions))
    await http.start()
    try:
        yield Server(host, port, served, engines, metrics, state, http)
    finally:
        for engine in engines.values():
            engine.stop(timeout_s=WAIT_S)
        await asyncio.wait_for(http.stop(), WAIT_S)


@contextlib.contextmanager
def serving_in_thread(
    *models: Model, bounds: Bounds | None = None, guards: Guards | None = None
) -> Iterator[Server]:
    """The same on a thread with a uvloop of its own, as in production, for blocking clients."""
    ready: list[Server] = []
    failures: list[BaseException] = []
    leave = threading.Event()
    is_up = threading.Event()

    async def main() -> None:
        async with serving(*models, bounds=bounds, guards=guards) as server:
            ready.append(server)
            is_up.set()
            await asyncio.get_running_loop().run_in_executor(None, leave.wait)

    def run() -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:  # of this thread: the test's raises it
            failures.append(error)
            is_up.set()

    thread = threading.Thread(target=run, name="test-server")
    thread.start()
    is_up.wait(WAIT_S)
    try:
        if failures:
            raise failures[0]
        yield ready[0]
    finally:
        leave.set()
        thread.join(WAIT_S)
    if failures:
        raise failures[0]


async def until(condition: Callable[[], object], *, timeout_s: float = WAIT_S) -> None:
    """Wait until `condition` holds; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        await asyncio.sleep(0.002)


def write_keys(folder: Path, keys: dict[str, str]) -> Path:
    """A folder of key files."""
    folder.mkdir(exist_ok=True)
    for name, key in keys.items():
        (folder / name).write_text(key)
    return folder


def sse(body: bytes) -> Sequence[bytes]:
    """The data of each SSE event of a body, which must be nothing but such events."""
    assert body.endswith(b"\n\n")
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [event.removeprefix(b"data: ") for event in events]
