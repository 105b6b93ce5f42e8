"""How a container's life ended, by its own message where it left one.

The runtime leaves {reason, message} as one JSON line; anything else may leave anything.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import NamedTuple

from servewright_operator import names, pods
from servewright_operator.objects import Object, PodWords
from servewright_operator.reading import moment, text, whole

_NO_REASON = {"", "Error", "Completed"}


class Fault(NamedTuple):
    """How a container's life ended, or (no exit code) what else is wrong with a pod."""

    reason: str
    message: str
    exit_code: int | None = None
    time: datetime | None = None


def ended_badly(status: Object) -> bool:
    """Whether a container has ended, or ended before, where it should run on (or succeed)."""
    if pods.state(status, "terminated"):
        is_done = status.get("name") == names.FETCH_CONTAINER  # it may end, by succeeding
        return not (is_done and whole(pods.state(status, "terminated"), "exitCode") == 0)
    if status.get("name") == names.FETCH_CONTAINER:
        return whole(pods.state(status, "terminated", last=True), "exitCode") != 0
    return bool(pods.state(status, "terminated", last=True))


def last_end(pod: Object) -> Fault | None:
    """How the life before the present one ended, of a pod that runs well again."""
    status = pods.container(pod, names.REPLICA_CONTAINER)
    return end_of(status, is_over=True) if pods.state(status, "terminated", last=True) else None


def end_of(status: Object, *, is_over: bool = False) -> Fault:
    """How the container's present or last life ended, by its own message where it left one.

    is_over: it runs well again.
    """
    is_restarted = bool(pods.state(status, "terminated", last=True)) and not is_over
    ended = pods.state(status, "terminated") or pods.state(status, "terminated", last=True)
    reason, message = text(ended, "reason"), text(ended, "message")
    exit_code, time = whole(ended, "exitCode"), moment(ended, "finishedAt")
    own = _own_words(message)
    if own is not None:
        said, message = own
        reason = said if reason in _NO_REASON else reason
    if reason in ("OOMKilled", "OutOfMemory"):
        message = message or "Out of memory: the kernel killed the container."
        return Fault("OOMKilled", message, exit_code, time)
    if reason in _NO_REASON and is_restarted:
        reason = "CrashLoopBackOff"  # in each state of the loop, which the kubelet turns through
    message = message or f"The container {text(status, 'name')} ended with exit code {exit_code}."
    return Fault(reason or "Error", message, exit_code, time)


def explained(ended: Fault, words: PodWords) -> Fault:
    """A container that ended well was told to: by the kubelet, whose Event says why."""
    unhealthy = [
        event.removeprefix("Unhealthy: ")
        for event in words.events
        if event.startswith("Unhealthy: ") and not event.startswith("Unhealthy: Readiness")
    ]
    if ended.exit_code == 0 and unhealthy:
        return ended._replace(reason="Unhealthy", message=unhealthy[-1])
    return ended


def _own_words(message: str) -> tuple[str, str] | None:
    """The runtime's {reason, message}, in whichever line of a termination message it stands."""
    for line in reversed(message.splitlines()):
        try:
            own = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if text(own, "reason") and text(own, "message"):
            return text(own, "reason"), text(own, "message")
    return None
