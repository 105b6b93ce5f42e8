"""The private parts of Ray that are replaced: they are there, and are replaced as meant."""

from __future__ import annotations

import inspect
import logging
from types import ModuleType
from typing import Any

import pytest

from servewright_runtime.serve import trimming


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_installed_ray_has_every_part_that_is_replaced() -> None:
    from ray._private import services
    from ray._private.node import Node
    from ray.serve._private import replica

    for name in ("start_api_server", "start_monitor", "start_log_monitor", "start_raylet"):
        assert inspect.isfunction(getattr(Node, name))
    assert inspect.isfunction(services.get_node)
    assert "ray._private.services.get_node(" in inspect.getsource(Node.__init__)
    assert callable(vars(replica)["add_port_to_grpc_server"])
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica)


def test_a_ray_without_those_parts_is_used_as_it_is_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OtherNode:
        """Of a release to come."""

    with caplog.at_level(logging.WARNING, logger="servewright_runtime"):
        trimming.trim_node(OtherNode)
        trimming.free_agent_port(OtherNode)
        trimming.wait_for_slow_raylet(ModuleType("services"))
        trimming.bind_replica_to_loopback(ModuleType("replica"))
    assert len(caplog.records) == 6
    assert vars(OtherNode).keys() & {"start_api_server", "start_raylet"} == set()


def test_the_raylets_agent_gets_any_free_port() -> None:
    class Params:
        dashboard_agent_listen_port = 52365

    class Node:
        def __init__(self) -> None:
            self._ray_params = Params()

        def start_raylet(self, plasma: str, *, memory: int) -> tuple[str, int, int]:
            return plasma, memory, self._ray_params.dashboard_agent_listen_port

    trimming.free_agent_port(Node)
    assert Node().start_raylet("/dev/shm", memory=1) == ("/dev/shm", 1, 0)  # noqa: S108


def test_serves_server_between_replicas_binds_to_loopback() -> None:
    module: Any = ModuleType("replica")
    module.add_port_to_grpc_server = lambda server, address: (server, address)
    trimming.bind_replica_to_loopback(module)
    assert module.add_port_to_grpc_server("server", "[::]:0") == ("server", "127.0.0.1:0")


@pytest.mark.parametrize(("timeout_s", "is_found"), [(600, True), (0, False)])
def test_a_raylet_that_comes_late_is_waited_for_but_not_for_ever(
    timeout_s: float, is_found: bool
) -> None:
    left = iter(range(3))

    def get_node(address: str, node: str) -> str:
        if next(left, None) is not None:
            raise RuntimeError("not yet")
        return f"{node} at {address}"

    services: Any = ModuleType("services")
    services.get_node = get_node
    trimming.wait_for_slow_raylet(services, timeout_s=timeout_s)
    if is_found:
        assert services.get_node("gcs", "node") == "node at gcs"
    else:
        with pytest.raises(RuntimeError, match="not yet"):
            services.get_node("gcs", "node")
