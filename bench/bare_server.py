"""This engine behind its own HTTP app, in one process without Ray or a supervisor.

    python -m bench.bare_server MANIFEST MODEL --port P

It is what `servewright run` serves, less what keeps it alive, so the difference between the two
is the price of that.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from pathlib import Path

import uvloop

from servewright_api import load_manifests, revision
from servewright_runtime.config import resolve
from servewright_runtime.hardware import detect
from servewright_runtime.serve.host import Host


async def serve(manifest: Path, model: Path, *, port: int) -> None:
    """Serve until SIGTERM."""
    (service,) = load_manifests([manifest])
    listener = socket.create_server(("127.0.0.1", port))
    host = Host(lambda event, **fields: None)
    replica_model = resolve(
        service,
        revision=revision(service),
        path=model,
        digest=None,
        keys_dir=None,
        hardware=detect(),
    )
    await host.serve([replica_model], listener)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await host.drain(linger_s=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvloop.run(serve(args.manifest, args.model, port=args.port))


if __name__ == "__main__":
    main()
