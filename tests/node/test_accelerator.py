"""An accelerator on a cluster: a pod goes to a node that has one and tells what is missing there.

No device is needed: the nodes only claim to have some.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.cluster import MakeModel, Namespace, Object, call, until

GPU = "nvidia.com/gpu"


def test_a_pod_waits_for_a_gpu_goes_to_it_and_tells_what_is_missing(
    space: Namespace, make_model: MakeModel
) -> None:
    nodes = json.loads(call("kubectl", "get", "nodes", "--output=json"))["items"]
    if any(GPU in node["status"]["capacity"] for node in nodes):
        pytest.skip("needs nodes without GPUs")
    # The image that the cluster has: the one without the CUDA kernels.
    image = {"spec.pod.image": space.runtime_image}
    space.apply(make_model({"spec.accelerator": {"type": "nvidia"}, **image}))
    failure = until("it waits", lambda: told(space, f"Insufficient {GPU}"))
    assert failure["reason"] == "Unschedulable"

    with claimed(nodes):
        failure = until("it tells", lambda: told(space, "spec.accelerator asks for a GPU"))
        assert (failure["reason"], failure["exitCode"]) == ("InvalidConfiguration", 2)
        (pod,) = space.pods("m")
        node = space.get("node", pod["spec"]["nodeName"])
        assert node["status"]["allocatable"][GPU] == "1"
        space.kubectl("delete", "msvc", "m")
        until("no pod is left", lambda: not space.pods("m"))


def told(space: Namespace, words: str) -> Object | None:
    """`lastFailure`, if it holds the words."""
    failure: Object = space.get("msvc", "m").get("status", {}).get("lastFailure", {})
    return failure if words in failure.get("message", "") else None


@contextmanager
def claimed(nodes: list[Object]) -> Iterator[None]:
    """Each node has one GPU, as far as Kubernetes knows, while the block runs."""
    names = [node["metadata"]["name"] for node in nodes]
    for name in names:
        patch(name, "add", value="1")
    try:
        yield
    finally:
        for name in names:
            patch(name, "remove")


def patch(node: str, operation: str, **value: str) -> None:
    parts = [f"/status/{part}/{GPU.replace('/', '~1')}" for part in ("capacity", "allocatable")]
    changes = json.dumps([{"op": operation, "path": part, **value} for part in parts])
    words = ("patch", "node", node, "--subresource=status", "--type=json", f"--patch={changes}")
    call("kubectl", *words)
