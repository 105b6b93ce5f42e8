"""What the operator sees of a ModelService `mine` with the pods that a test gives it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from servewright_operator.names import Key
from servewright_operator.objects import Observed, PodWords
from support import pod_objects as pods
from support.pod_objects import BORN, Object

REVISION = "aaaaaaaaaa"
POD = pods.pod(REVISION)
UID = "uid-mine-1"
QUIET = pods.creating(POD)
NOW = BORN + timedelta(seconds=100)


def observed(*found: Object, words: PodWords | None = None, **more: Any) -> Observed:
    """words: of the pod `UID`. more: fields of Observed."""
    service = {"metadata": {"name": "mine", "namespace": "default", "uid": "u"}, "spec": {}}
    told = {} if words is None else {UID: words}
    return Observed(Key("default", "mine"), service, pods=list(found), words=told, **more)


def deployment(**progressing: str) -> Object:
    """One that wants a pod of REVISION; progressing: fields of that condition."""
    return {
        "kind": "Deployment",
        "metadata": {"generation": 1},
        "spec": {
            "replicas": 1,
            "progressDeadlineSeconds": 60,
            "template": {"metadata": {"labels": {"servewright.io/revision": REVISION}}},
        },
        "status": {
            "observedGeneration": 1,
            "replicas": 1,
            "updatedReplicas": 1,
            "conditions": [{"type": "Progressing", **progressing}] if progressing else [],
        },
    }


OVERDUE = deployment(
    status="False", reason="ProgressDeadlineExceeded", lastUpdateTime=pods.after(61)
)
