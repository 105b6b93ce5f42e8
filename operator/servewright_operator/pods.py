"""What a pod is and how far it is, from its object alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from servewright_operator import names
from servewright_operator.objects import Object
from servewright_operator.reading import at, condition, mapping, moment, objects, text, whole


def name(pod: Object) -> str:
    """Its name."""
    return text(pod, "metadata", "name")


def uid(pod: Object) -> str:
    """Its identity."""
    return text(pod, "metadata", "uid")


def revision(pod: Object) -> str:
    """The revision that it runs."""
    return text(pod, "metadata", "labels", names.REVISION_LABEL)


def is_ending(pod: Object) -> bool:
    """Whether it was told to go."""
    return at(pod, "metadata", "deletionTimestamp") is not None


def is_over(pod: Object) -> bool:
    """Whether it has ended for good: evicted, say. Its object stays for a while."""
    return text(pod, "status", "phase") in ("Failed", "Succeeded")


def is_ready(pod: Object) -> bool:
    """Whether it serves, as far as the kubelet and the node's health tell."""
    return condition(pod, "Ready").get("status") == "True" and not is_ending(pod)


def ready_since(pod: Object) -> datetime | None:
    """Since when it is ready."""
    return moment(condition(pod, "Ready"), "lastTransitionTime") if is_ready(pod) else None


def first_ready(found: Sequence[Object]) -> Object | None:
    """The pod that was ready first, one that never restarted if there is any."""
    ready = [
        (restarts(pod) > 0, since, name(pod), pod)
        for pod in found
        if (since := ready_since(pod)) is not None
    ]
    return min(ready, key=lambda one: one[:3])[3] if ready else None


def age_key(pod: Object) -> tuple[str, str]:
    """Sorts pods by age, the oldest first."""
    return text(pod, "metadata", "creationTimestamp"), name(pod)


def is_scheduled(pod: Object) -> bool:
    """Whether it has a node."""
    return bool(text(pod, "spec", "nodeName"))


def containers(pod: Object) -> list[Object]:
    """The statuses of its containers, those that prepare first."""
    return [
        *objects(pod, "status", "initContainerStatuses"),
        *objects(pod, "status", "containerStatuses"),
    ]


def container(pod: Object, wanted: str) -> Object:
    """The status of one container, else an empty mapping."""
    return next((one for one in containers(pod) if one.get("name") == wanted), {})


def state(status: Object, kind: str, *, last: bool = False) -> Object:
    """`waiting`, `running` or `terminated` of a container's status, now or in its `last` life."""
    return mapping(status, "lastState" if last else "state", kind)


def restarts(pod: Object) -> int:
    """How often its containers were started again."""
    return sum(whole(status, "restartCount") for status in containers(pod))


def admin_url(pod: Object) -> str | None:
    """Where its supervisor answers, once it has an address."""
    address = text(pod, "status", "podIP")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{names.ADMIN_PORT}"
