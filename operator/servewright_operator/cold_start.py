"""Where the time of a pod's start went: from its creation until it was Ready.

Kubernetes stamps the pod's steps in whole seconds, the runtime measures its own. The parts follow
one another without gaps, so they sum to the whole within a second for each stamped boundary.
"""

from __future__ import annotations

from servewright_operator import names, pods
from servewright_operator.objects import Object
from servewright_operator.reading import condition, mapping, moment, seconds

_LONGEST_UNSEEN_S = 60.0
_OWN_PARTS = ("fetch", "start", "load", "warm")  # as /state tells them, in seconds


def cold_start(pod: Object, state: Object) -> Object | None:
    """Of a ready pod with its /state; None where it cannot be told, after a restart say."""
    if pods.restarts(pod):
        return None
    own = mapping(state, "coldStart")
    measured = {part: seconds(own[part]) for part in _OWN_PARTS if part in own}
    replica = pods.container(pod, names.REPLICA_CONTAINER)
    fetch = pods.state(pods.container(pod, names.FETCH_CONTAINER), "terminated")
    created = moment(pod, "metadata", "creationTimestamp")
    scheduled = moment(condition(pod, "PodScheduled"), "lastTransitionTime")
    started = moment(pods.state(replica, "running"), "startedAt")
    ready = pods.ready_since(pod)
    if not measured or created is None or scheduled is None or started is None or ready is None:
        return None
    fetching = 0.0
    began, ended = moment(fetch, "startedAt"), moment(fetch, "finishedAt")
    if began is not None and ended is not None:
        fetching = (ended - began).total_seconds()
    # After its last own step the replica waits for the kubelet to look: a second or two.
    unseen = (ready - started).total_seconds() - sum(measured.values())
    if unseen > _LONGEST_UNSEEN_S:
        return None  # it was Ready before, and again: its start is not to be seen any more
    parts = {
        "schedule": (scheduled - created).total_seconds(),
        "pull": (started - scheduled).total_seconds() - fetching,
        "fetch": fetching + measured.get("fetch", 0.0),
        "start": measured.get("start", 0.0),
        "load": measured.get("load", 0.0),
        "warm": measured.get("warm", 0.0) + max(0.0, unseen),
    }
    return {part: round(max(0.0, value), 3) for part, value in parts.items()}
