"""This engine behind its own HTTP app, in one process without Ray or a supervisor.

    python -m bench.bare_server MODEL --port P --threads N

It is what `servewright run` serves, less what keeps it alive, so the difference between the two
is the price of that.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import uvicorn
from bench.inprocess import MAX_BATCH, engine_config, load

from servewright_runtime.api.app import build_app
from servewright_runtime.api.state import AppState, ServedModel
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.streams import Streams
from servewright_runtime.metrics import Metrics


async def serve(path: Path, *, port: int, threads: int) -> None:
    """Serve until SIGTERM."""
    model = load(path, threads)
    config = engine_config()
    metrics = Metrics()
    observer = metrics.engine(config.name)
    engine = Engine(model, config, observer)
    observer.bind(engine.stats)
    engine.start()
    served = ServedModel(
        engine=engine,
        streams=Streams(engine),
        tokenizer=model.tokenizer,
        config=config,
        revision="bench",
        created=int(time.time()),
        kernel=model.runner.kernel,
        keys=None,
        max_concurrency=MAX_BATCH,
        max_output_tokens=None,
    )
    app = build_app({config.name: served}, state=AppState(serving=True), metrics=metrics.http)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
    )
    await server.serve()
    engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(serve(args.model, port=args.port, threads=args.threads))


if __name__ == "__main__":
    main()
