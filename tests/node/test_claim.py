"""A model on a PersistentVolumeClaim: mounted read-only, checked, served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.cluster import MakeModel, Namespace, Object, until

NODE_FOLDER = "/var/tmp"  # noqa: S108 - of a node, for as long as the test runs
GONE_S = 90.0
# Brings the model to its node, and takes it away when the pod ends.
FILL = """
import os, shutil, signal, sys, urllib.request

folder = "/node/" + sys.argv[1]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(shutil.rmtree(folder)))
os.mkdir(folder)
urllib.request.urlretrieve(sys.argv[2], folder + "/smollm2.gguf")
os.mkdir(folder + "/done")
while True:
    signal.pause()
"""


def test_a_model_on_a_claim_is_served(space: Namespace, make_model: MakeModel, files: str) -> None:
    folder = f"servewright-{space.name}"
    with model_on_a_node(space, folder, f"{files}/smollm2.gguf") as node:
        space.apply(*claim(space, f"{NODE_FOLDER}/{folder}"))
        changes = {
            "spec.model.source": "pvc://models/smollm2.gguf",
            "spec.pod.nodeSelector": {"kubernetes.io/hostname": node},
        }
        space.apply(make_model(changes))
        space.wait_ready("m")
        (pod,) = space.pods("m")
        assert pod["spec"]["nodeName"] == node
        space.kubectl("delete", "msvc", "m")
        until("no pod is left", lambda: not space.pods("m"), timeout_s=GONE_S)
    space.kubectl("delete", "pv", space.name, "--wait=false")


@contextmanager
def model_on_a_node(space: Namespace, folder: str, url: str) -> Iterator[str]:
    """The model in a folder of some node while the block runs; the node's name."""
    container = {
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
        "readinessProbe": {"exec": {"command": ["ls", f"/node/{folder}/done"]}, "periodSeconds": 1},
        "securityContext": {"runAsUser": 0},
    }
    volume = {"name": "node", "hostPath": {"path": NODE_FOLDER}}
    pod = space.helper_pod(
        "filler",
        *("python", "-c", FILL, folder, url),
        container=container,
        volumes=[volume],
        securityContext={},
        terminationGracePeriodSeconds=20,
    )
    space.apply(pod)
    space.wait_running("filler")
    yield space.get("pod", "filler")["spec"]["nodeName"]
    space.kubectl("delete", "pod", "filler")


def claim(space: Namespace, folder: str) -> list[Object]:
    """A claim `models` on a node's folder."""
    common = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeMode": "Filesystem",
    }
    size = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": space.name},
        "spec": {**common, "capacity": size, "hostPath": {"path": folder}},
    }
    wanted = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {**common, "volumeName": space.name, "resources": {"requests": size}},
    }
    return [volume, wanted]
