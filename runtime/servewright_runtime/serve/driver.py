"""Starts Ray and the one Serve deployment, then tells the supervisor how Serve sees it.

`python -m servewright_runtime.serve.driver`, started by the supervisor.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from servewright_runtime import logs
from servewright_runtime.serve import guard, trimming
from servewright_runtime.supervisor.link import Link, Message
from servewright_runtime.supervisor.rundir import RunDir

log = logging.getLogger(__name__)

APP_NAME = "servewright"
# The smallest that Ray takes without complaint. Requests do not pass through it.
_OBJECT_STORE_BYTES = 80_000_000
_STATUS_INTERVAL_S = 2.0
_HEALTH_PERIOD_S = 2.0


def main() -> None:
    """Run until killed."""
    run = RunDir.from_environment()
    link = Link("driver", run)
    link.watch(_on_message, lambda: guard.end_run(run))
    try:
        _start(run, link)
    except Exception as error:
        # A replica that failed has told the supervisor why; then this comes too late to count.
        log.exception("ray failed")
        link.send_failure(error)
        raise SystemExit(1) from error
    threading.Event().wait()


def _on_message(message: Message, files: list[int]) -> None:
    if message["event"] == "welcome":
        logs.configure(os.fdopen(files[0], "w"))


def _start(run: RunDir, link: Link) -> None:
    """Return when the replica serves."""
    import ray
    from ray import serve
    from ray._private import services
    from ray._private.node import Node

    from servewright_runtime.serve.replica import Replica

    trimming.trim_node(Node)
    trimming.free_agent_port(Node)
    trimming.wait_for_slow_raylet(services)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=str(run.ray_dir),
    )
    serve.start(http_options={"location": "NoServer"})
    deployment = serve.deployment(
        name="replica",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=_HEALTH_PERIOD_S,
        max_constructor_retry_count=1,
    )(Replica)
    threading.Thread(target=_report, args=(link,), name="serve-status", daemon=True).start()
    serve.run(deployment.bind(), name=APP_NAME, route_prefix=None)


def _report(link: Link) -> None:
    """Send `serve.status()` whenever it changes."""
    from ray import serve

    last: Any = None
    while True:
        try:
            app = serve.status().applications.get(APP_NAME)
            status = None if app is None else _plain(app)
        except Exception as error:  # the controller may be restarting
            status = {"status": "UNKNOWN", "message": f"{type(error).__name__}: {error}"[:500]}
        if status != last:
            link.send("serve_status", status=status)
            last = status
        time.sleep(_STATUS_INTERVAL_S)


def _plain(app: Any) -> dict[str, Any]:
    return {
        "status": str(app.status.value),
        "message": app.message[:500],
        "deployments": {
            name: {
                "status": str(deployment.status.value),
                "message": deployment.message[:500],
                "replicas": dict(deployment.replica_states),
            }
            for name, deployment in app.deployments.items()
        },
    }


if __name__ == "__main__":
    main()
