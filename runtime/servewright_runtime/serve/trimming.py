"""Ray without the parts that a single replica has no use for.

Ray has no public switch for any of this, so private functions are replaced, each only where it
exists: another release of Ray then starts slower or listens wider, and a log line says so.
Measured with ray 2.60 at a CPU limit of 1: `ray.init` 4.3 s in place of 6, and 175 MiB less.
"""

from __future__ import annotations

import logging
import time
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

# The API server asks a cloud's metadata address who it is; monitor and log monitor serve clusters.
_USELESS = ("start_api_server", "start_monitor", "start_log_monitor")
# Ray gives its raylet 30 s, which a crowded node exceeds; the supervisor limits the whole start.
RAYLET_START_TIMEOUT_S = 150.0
_LOOK_INTERVAL_S = 0.1


def trim_node(node: type) -> None:
    """Have `ray._private.node.Node` start GCS, raylet and the raylet's two agents, no more."""

    def nothing(self: Any, **kwargs: Any) -> None:
        """Start nothing."""

    for name in _USELESS:
        if callable(getattr(node, name, None)):
            setattr(node, name, nothing)
        else:
            log.warning("ray is not trimmed", extra={"missing": f"Node.{name}"})


def free_agent_port(node: type) -> None:
    """Let the raylet's agent take any free port: its fixed one, 52365, admits one run a machine."""
    stock = getattr(node, "start_raylet", None)
    if not callable(stock):
        log.warning("ray's agent keeps its fixed port", extra={"missing": "Node.start_raylet"})
        return

    def start_raylet(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._ray_params.dashboard_agent_listen_port = 0
        return stock(self, *args, **kwargs)

    node.start_raylet = start_raylet  # type: ignore[attr-defined]


def wait_for_slow_raylet(services: ModuleType, timeout_s: float = RAYLET_START_TIMEOUT_S) -> None:
    """Have `ray.init` wait longer for its raylet to say that it is there.

    services: `ray._private.services`, whose `get_node` raises RuntimeError until then.
    """
    stock = getattr(services, "get_node", None)
    if not callable(stock):
        log.warning("ray waits for its node 30 s", extra={"missing": "services.get_node"})
        return

    def get_node(*args: Any, **kwargs: Any) -> Any:
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                return stock(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(_LOOK_INTERVAL_S)

    services.get_node = get_node  # type: ignore[attr-defined]


def bind_replica_to_loopback(replica: ModuleType) -> None:
    """Have Serve's gRPC server between replicas, which binds to [::]:0, bind to loopback.

    replica: `ray.serve._private.replica`. Called in the deployment's constructor, which runs
    before that server is made.
    """
    stock = getattr(replica, "add_port_to_grpc_server", None)
    if not callable(stock):
        missing = "replica.add_port_to_grpc_server"
        log.warning("a port of Ray Serve is not on loopback", extra={"missing": missing})
        return

    def add_port(server: Any, address: str) -> Any:
        return stock(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = add_port  # type: ignore[attr-defined]
