"""Pods as the API server shows them, in each situation that a pod gets into."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from servewright_operator import names

Object = dict[str, Any]

BORN = datetime(2026, 11, 23, 4, 0, 0, tzinfo=UTC)
IMAGE = "registry.example/servewright-runtime:1"
SCHEDULER_SAYS = "0/2 nodes are available: 2 Insufficient memory. preemption: not eligible."


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def after(seconds: float, since: datetime = BORN) -> str:
    return stamp(since + timedelta(seconds=seconds))


def pod(revision: str = "aaaaaaaaaa", name: str = "mine-1", owner: str = "mine") -> Object:
    """A pod that was just made: no node, nothing said."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "creationTimestamp": stamp(BORN),
            "labels": {**names.labels(owner), names.REVISION_LABEL: revision},
        },
        "spec": {"containers": [{"name": "replica"}], "initContainers": [{"name": "fetch"}]},
        "status": {"phase": "Pending"},
    }


def changed(base: Object, *, spec: Object | None = None, **status: Any) -> Object:
    """A copy of a pod with fields of its status (and spec) replaced."""
    made = copy.deepcopy(base)
    made["spec"].update(spec or {})
    made["status"].update(status)
    return made


def said(kind: str, status: str, at_s: float, reason: str = "", message: str = "") -> Object:
    """A condition."""
    made = {"type": kind, "status": status, "lastTransitionTime": after(at_s)}
    words = {"reason": reason, "message": message}
    return {**made, **{part: value for part, value in words.items() if value}}


def unschedulable(base: Object, message: str = SCHEDULER_SAYS) -> Object:
    return changed(base, conditions=[said("PodScheduled", "False", 0, "Unschedulable", message)])


def container(name: str, **state: Any) -> Object:
    return {"name": name, "image": IMAGE, "ready": False, "restartCount": 0, **state}


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(at_s: float) -> Object:
    return {"running": {"startedAt": after(at_s)}}


def terminated(
    exit_code: int, reason: str, message: str = "", *, start_s: float = 5, end_s: float = 8
) -> Object:
    ended = {
        "exitCode": exit_code,
        "reason": reason,
        "startedAt": after(start_s),
        "finishedAt": after(end_s),
    }
    return {"terminated": {**ended, **({"message": message} if message else {})}}


def own_words(reason: str, message: str) -> str:
    """The runtime's termination message."""
    return json.dumps({"reason": reason, "message": message}) + "\n"


_FETCHED = container("fetch", state=terminated(0, "Completed", start_s=2, end_s=4))


def on_a_node(
    base: Object, *, replica: Object, fetch: Object | None = None, ready: bool = False
) -> Object:
    """Scheduled after a second; the model is fetched unless `fetch` says otherwise."""
    status = "True" if ready else "False"
    return changed(
        base,
        spec={"nodeName": "node-1"},
        phase="Running" if "running" in replica.get("state", {}) else "Pending",
        podIP="127.1.2.3",
        conditions=[said("PodScheduled", "True", 1), said("Ready", status, 20 if ready else 1)],
        initContainerStatuses=[copy.deepcopy(fetch or _FETCHED)],
        containerStatuses=[copy.deepcopy({**replica, "ready": ready})],
    )


def creating(base: Object) -> Object:
    """Its volumes or images are on their way."""
    return on_a_node(
        base,
        fetch=container("fetch", state=waiting("PodInitializing")),
        replica=container("replica", state=waiting("PodInitializing")),
    )


def fetching(base: Object) -> Object:
    return on_a_node(
        base,
        fetch=container("fetch", state=running(2)),
        replica=container("replica", state=waiting("PodInitializing")),
    )


def loading(base: Object) -> Object:
    return on_a_node(base, replica=container("replica", state=running(5)))


def ready(base: Object) -> Object:
    """Serves since 20 s after its birth."""
    return on_a_node(base, replica=container("replica", state=running(5)), ready=True)


def crashed(
    base: Object,
    exit_code: int = 1,
    reason: str = "Error",
    message: str = own_words("ProbeFailed", "mine: the probe wanted 'Paris', but got 'a a a a'."),
    *,
    restarts: int = 3,
    is_back: bool = False,
) -> Object:
    """Its replica ended; it waits for the next try, or (is_back) serves again."""
    replica = container(
        "replica",
        restartCount=restarts,
        state=running(15) if is_back else waiting("CrashLoopBackOff", "back-off 40s restarting"),
        lastState=terminated(exit_code, reason, message),
    )
    return on_a_node(base, replica=replica, ready=is_back)


def fetch_failed(base: Object, message: str, *, exit_code: int = 2) -> Object:
    fetch = container(
        "fetch",
        restartCount=2,
        state=waiting("CrashLoopBackOff", "back-off 20s restarting"),
        lastState=terminated(exit_code, "Error", message, start_s=2, end_s=4),
    )
    return on_a_node(
        base, fetch=fetch, replica=container("replica", state=waiting("PodInitializing"))
    )


def no_image(base: Object, *, is_backing_off: bool, is_told: bool = True) -> Object:
    """The two states between which the kubelet turns; is_told: it says the cause in both."""
    cause = f'rpc error: code = NotFound desc = failed to pull "{IMAGE}": not found'
    back_off = f'Back-off pulling image "{IMAGE}"'
    state = waiting("ErrImagePull", cause)
    if is_backing_off:
        message = f"{back_off}: ErrImagePull: {cause}" if is_told else back_off
        state = waiting("ImagePullBackOff", message)
    return on_a_node(
        base,
        fetch=container("fetch", state=state),
        replica=container("replica", state=waiting("PodInitializing")),
    )


def not_configurable(base: Object, message: str) -> Object:
    return on_a_node(
        base, replica=container("replica", state=waiting("CreateContainerConfigError", message))
    )


def evicted(base: Object, message: str) -> Object:
    return changed(
        base,
        spec={"nodeName": "node-1"},
        phase="Failed",
        reason="Evicted",
        message=message,
        conditions=[said("DisruptionTarget", "True", 30, "TerminationByKubelet", message)],
    )


def node_lost(base: Object) -> Object:
    """The node controller marked a pod that served; its containers are as last heard of."""
    made = ready(base)
    made["status"]["conditions"] = [said("PodScheduled", "True", 1), said("Ready", "False", 60)]
    return made


def ending(base: Object) -> Object:
    made = copy.deepcopy(base)
    made["metadata"]["deletionTimestamp"] = after(90)
    return made
