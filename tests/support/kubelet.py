"""A kubelet that only pretends: its node is there, and what becomes of a pod on it is written in
the pod's annotation. Nothing runs.

The scheduler, the Deployment controller and the garbage collector beside it are the real ones.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from servewright_operator import kinds, names
from servewright_operator.kinds import Kind
from servewright_operator.objects import Object
from support.apiserver import ApiServer
from support.objects import NotFound, Objects, Refused

NODE = Kind("v1", "Node", "nodes")
NAME = "pretended"
# On a pod: one of the keys of _FATES, else it serves.
FATE = "servewright.test/fate"
CRASH_MESSAGE = "mine: the probe wanted 'Paris', but got 'a a a a'."
PULL_MESSAGE = "failed to pull and unpack image: not found"
_LOOK_S = 0.2
_HEARTBEAT_S = 8.0  # a node that is silent for 40 s is given up
_SOME = {"cpu": "1000", "memory": "1000Gi", "ephemeral-storage": "1000Gi", "pods": "1000"}
_MERGE = "application/merge-patch+json"


class Kubelet:
    """One node, from `start` to `stop`."""

    def __init__(self, server: ApiServer) -> None:
        self._objects = Objects(server)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pretended kubelet")
        self.error: BaseException | None = None

    def start(self) -> None:
        node = {
            "apiVersion": NODE.api_version,
            "kind": NODE.name,
            "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME}},
            "status": {"capacity": _SOME, "allocatable": _SOME, "conditions": [_beat()]},
        }
        self._objects.request("POST", NODE.path(None), body=node)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        for pod in self._pods():
            self._remove(pod)
        self._objects.request("DELETE", NODE.path(None, NAME))
        self._objects.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        beaten = float("-inf")
        try:
            while not self._stopped.wait(_LOOK_S):
                if time.monotonic() - beaten > _HEARTBEAT_S:
                    beaten = time.monotonic()
                    path = NODE.path(None, NAME, "status")
                    self._patch(path, {"status": {"conditions": [_beat()]}})
                for pod in self._pods():
                    self._look_after(pod)
        except BaseException as error:  # of a thread of its own: `stop` raises it
            self.error = error

    def _pods(self) -> list[Object]:
        return self._objects.all(kinds.POD, None, fields=f"spec.nodeName={NAME}")

    def _look_after(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            self._remove(pod)
        elif "containerStatuses" not in pod["status"]:
            fate = pod["metadata"].get("annotations", {}).get(FATE, "serve")
            metadata = pod["metadata"]
            path = kinds.POD.path(metadata["namespace"], metadata["name"], "status")
            self._patch(path, {"metadata": {"uid": metadata["uid"]}, "status": _status(pod, fate)})

    def _remove(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = kinds.POD.path(metadata["namespace"], metadata["name"])
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        try:
            self._objects.request("DELETE", path, body=body)
        except NotFound:
            return

    def _patch(self, path: str, body: Object) -> None:
        try:
            self._objects.request("PATCH", path, body=body, content_type=_MERGE)
        except NotFound:
            return
        except Refused as refused:
            if not str(refused).startswith("409"):
                raise


def fated(fate: str) -> Object:
    """`spec.pod` of a ModelService whose pods have a fate."""
    return {"annotations": {FATE: fate}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _beat() -> Object:
    condition = {"type": "Ready", "status": "True", "reason": "Pretended"}
    return {**condition, "lastHeartbeatTime": _now()}


def _status(pod: Object, fate: str) -> Object:
    is_ready = fate == "serve"
    conditions = [
        condition
        for condition in pod["status"].get("conditions", ())
        if condition["type"] not in ("Ready", "ContainersReady")
    ]
    truth = {"status": str(is_ready), "lastTransitionTime": _now()}
    conditions += [{"type": kind, **truth} for kind in ("ContainersReady", "Ready")]
    container = {
        "name": names.REPLICA_CONTAINER,
        "image": "x",
        "imageID": "x",
        "restartCount": 0,
        "ready": is_ready,
        "started": is_ready,
        **_FATES[fate](),
    }
    is_running = "running" in container["state"]
    return {
        "phase": "Running" if is_running else "Pending",
        "startTime": _now(),
        "conditions": conditions,
        "containerStatuses": [container],
    }


def _runs() -> Object:
    return {"state": {"running": {"startedAt": _now()}}}


def _waits(reason: str, message: str) -> Object:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def _ended(exit_code: int, **words: Any) -> Object:
    ended = {"exitCode": exit_code, "startedAt": _now(), "finishedAt": _now(), **words}
    waits = _waits("CrashLoopBackOff", "back-off 40s restarting failed container")
    return {**waits, "restartCount": 3, "lastState": {"terminated": ended}}


_FATES: dict[str, Callable[[], Object]] = {
    "serve": _runs,
    "hang": _runs,
    "crash": lambda: _ended(
        1, reason="Error", message=json.dumps({"reason": "ProbeFailed", "message": CRASH_MESSAGE})
    ),
    "out of memory": lambda: _ended(137, reason="OOMKilled"),
    "no image": lambda: _waits(
        "ImagePullBackOff", f'Back-off pulling image "x": ErrImagePull: {PULL_MESSAGE}'
    ),
    "no secret": lambda: _waits("CreateContainerConfigError", 'secret "mine" not found'),
}
