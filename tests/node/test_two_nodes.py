"""Two nodes: replicas spread, and a node that is drained or lost takes no request with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servewright_operator import names
from support.cluster import (
    LIGHT,
    MakeModel,
    Namespace,
    RunningLoad,
    call,
    control,
    is_ready,
    needs_control,
    until,
)

# So long a pod stays on a node that is not heard of.
LOST_S = 2
TOLERATIONS = [
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute"}
    | {"tolerationSeconds": LOST_S}
    for what in ("unreachable", "not-ready")
]


def nodes() -> list[str]:
    """Names of the nodes that take pods."""
    path = "{range .items[*]}{.metadata.name} {.spec.unschedulable} {.spec.taints}{'\\n'}{end}"
    lines = call("kubectl", "get", "nodes", f"--output=jsonpath={path}").splitlines()
    return [name for name, *cannot in map(str.split, lines) if not cannot]


@pytest.fixture
def spread(module_space: Namespace, make_model: MakeModel) -> Namespace:
    """A namespace in which `m` has two replicas that leave a lost node soon."""
    assert len(nodes()) >= 2, "needs a cluster of two nodes that take pods"
    module_space.apply(make_model({"spec.replicas": 2, "spec.pod.tolerations": TOLERATIONS}))
    module_space.wait_ready("m")
    if len(set(where(module_space))) < 2:  # an earlier test took them off one
        name = module_space.pods("m")[0]["metadata"]["name"]
        module_space.kubectl("delete", "pod", name)
        module_space.wait_ready("m")
    return module_space


@pytest.fixture
def safe_node(files: str, operator: Namespace) -> str:
    """The node that the model comes from; the load runs there too, and nothing happens to it."""
    namespace = files.split(".")[1]
    pod = Namespace(namespace, operator.runtime_image).get("pod", "files")
    node: str = pod["spec"]["nodeName"]
    return node


@pytest.fixture
def load(spread: Namespace, safe_node: str) -> Iterator[RunningLoad]:
    with spread.load(spread.url("m"), node=safe_node, **LIGHT) as running:
        yield running


def where(space: Namespace) -> list[str]:
    """Nodes of the ready pods of `m`."""
    return [pod["spec"]["nodeName"] for pod in space.pods("m") if is_ready(pod)]


def test_replicas_spread_over_nodes(spread: Namespace) -> None:
    assert len(set(where(spread))) == 2


def test_a_drained_node_takes_no_request_with_it(
    spread: Namespace, load: RunningLoad, safe_node: str
) -> None:
    drained = next(name for name in nodes() if name != safe_node)
    ours = f"--pod-selector={names.SERVICE_LABEL}=m"
    try:
        call("kubectl", "drain", drained, ours, "--delete-emptydir-data", timeout_s=240)
        spread.wait_ready("m")
        assert drained not in where(spread)
        # Both are on one node now, and the budget lets one go at a time.
        load.stop_unharmed()
    finally:
        call("kubectl", "uncordon", drained)


@needs_control
def test_a_lost_node_takes_no_request_with_it(
    spread: Namespace, load: RunningLoad, safe_node: str
) -> None:
    lost = next(name for name in nodes() if name != safe_node)
    before = spread.uids("m")
    control("kill", f"kubelet-{lost}")
    try:
        until("the lost pod has a successor", lambda: where(spread) == [safe_node, safe_node])
        assert len(spread.uids("m") & before) == 1
        spread.wait_ready("m")
    finally:
        control("restart", f"kubelet-{lost}")
    until("the node is back", lambda: lost in nodes())
    on_lost = f"--field-selector=spec.nodeName={lost}"
    left = ("get", "pods", on_lost, f"--selector={names.SERVICE_LABEL}=m", "--output=name")
    until("the lost pod has ended", lambda: not spread.kubectl(*left))
    load.stop_unharmed()
