"""Which pods fail, and why, in their own words.

A pod tells it in many places: its phase, its conditions, a container's present or last state, the
termination message that the runtime left, Events of the kubelet. Here they become one Failure.
Words that Kubernetes turns back and forth while nothing changes (ErrImagePull, ImagePullBackOff)
become one word, so that a status that was written once stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from servewright_operator import pods
from servewright_operator.deployed import Deployed
from servewright_operator.endings import Fault, end_of, ended_badly, explained, last_end
from servewright_operator.objects import Failure, Object, Observed, PodWords, Question
from servewright_operator.reading import at, condition, moment, objects, stamp, text

MAX_MESSAGE, MAX_LOG_TAIL = 1024, 4096

# A container that is being made says nothing of what it waits for; the kubelet's Events do. They
# are asked after so long, and again each time that it has waited twice as long.
FIRST_LOOK = timedelta(seconds=10)
_LAST_DOUBLING = 9  # 10 s * 2**9: each hour and a half from then on

_NO_FAULT = {"", "ContainerCreating", "PodInitializing"}
_IMAGE_PULL = {"ErrImagePull", "ImagePullBackOff"}
HANGING = "Hanging"
UNTOLD_PULL = "cannot be pulled."
_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*"(: ErrImagePull: )?')
# What these Events say is told better elsewhere in the pod.
_TOLD_ELSEWHERE = {"BackOff", "Failed", "FailedScheduling", "Unhealthy"}
_CAMEL = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")


def failing(observed: Observed, deployed: Deployed, now: datetime) -> list[Failure]:
    """What is wrong now, one Failure a pod; the time is `now` where nothing tells a better one."""
    found = []
    for pod in observed.pods:
        # A pod that is over has a successor: it fails no more once there are pods enough.
        if pods.is_ending(pod) or (pods.is_over(pod) and deployed.ready >= deployed.wanted):
            continue
        words = observed.words.get(pods.uid(pod), PodWords())
        fault = _fault(pod, words, deployed, observed, now)
        if fault is not None:
            found.append(_failure(pod, fault, words, now))
    if deployed.cannot_create:
        time = deployed.cannot_create_since or now
        message = cut(deployed.cannot_create, MAX_MESSAGE)
        found.append(Failure("", deployed.revision, "FailedCreate", message, None, "", time))
    return found


def overcome(observed: Observed, now: datetime) -> list[Failure]:
    """Ends of containers in pods that serve again, and of pods that others replace."""
    found = []
    for pod in observed.pods:
        words = observed.words.get(pods.uid(pod), PodWords())
        if text(pod, "status", "phase") == "Failed":
            found.append(_failure(pod, _over(pod), words, now))
        elif pods.is_ready(pod) and (ended := last_end(pod)) is not None:
            found.append(_failure(pod, explained(ended, words), words, now))
    return found


def questions(observed: Observed, deployed: Deployed, now: datetime) -> list[Question]:
    """What to ask about pods before a decision, so that it has their words."""
    found = []
    for pod in observed.pods:
        if pods.is_ending(pod) or not pods.uid(pod):
            continue
        ended = next((one for one in pods.containers(pod) if ended_badly(one)), None)
        if ended is not None:
            end = end_of(ended)
            found.append(
                Question(
                    uid=pods.uid(pod),
                    pod=pods.name(pod),
                    once=f"ended {end.time}",
                    container=text(ended, "name") or None,
                    previous=not pods.state(ended, "terminated"),
                    events=end.exit_code == 0,  # who stopped it, then?
                )
            )
        elif (overdue_since := _overdue_since(pod, deployed, now)) is not None:
            running = (one for one in pods.containers(pod) if pods.state(one, "running"))
            container = text(next(running, {}), "name") or None
            once = f"overdue {overdue_since}"
            found.append(Question(pods.uid(pod), pods.name(pod), once, container, False, True))
        elif (looks := _looks(pod, now)) is not None:
            once = f"waiting {looks}"
            found.append(Question(pods.uid(pod), pods.name(pod), once, None, False, True))
    return found


def next_look(observed: Observed, deployed: Deployed, now: datetime) -> datetime | None:
    """When a pod will have waited long enough to be asked about (again), or to be overdue."""
    times = []
    for pod in observed.pods:
        if pods.is_ending(pod):
            continue
        due = _due(pod, deployed)
        if due is not None and due > now:
            times.append(due)
        since = _being_made_since(pod)
        if since is not None:
            looks = _looks(pod, now)
            if looks is None:
                times.append(since + FIRST_LOOK)
            elif looks < _LAST_DOUBLING:
                times.append(since + FIRST_LOOK * 2 ** (looks + 1))
    return min(times, default=None)


def worst(found: Sequence[Failure], revision: str) -> Failure | None:
    """The one to tell first: of `revision` before others, the latest, then by name."""
    ordered = sorted(found, key=lambda one: (one.time, one.pod), reverse=True)
    return next((one for one in ordered if one.revision == revision), next(iter(ordered), None))


def cut(words: str, most: int) -> str:
    """`words`, shortened in the middle to `most` characters: the ends tell most."""
    if len(words) <= most:
        return words
    half = (most - 5) // 2
    return f"{words[:half]} ... {words[-half:]}"


def _failure(pod: Object, fault: Fault, words: PodWords, now: datetime) -> Failure:
    reason = fault.reason if _CAMEL.fullmatch(fault.reason) else "Error"
    return Failure(
        pod=pods.name(pod),
        revision=pods.revision(pod),
        reason=reason,
        message=cut(fault.message.strip(), MAX_MESSAGE),
        exit_code=fault.exit_code,
        log_tail=words.log_tail.strip()[-MAX_LOG_TAIL:],
        time=fault.time or now,
    )


def _fault(
    pod: Object, words: PodWords, deployed: Deployed, observed: Observed, now: datetime
) -> Fault | None:
    """What is wrong with a pod that was not told to go."""
    if text(pod, "status", "phase") == "Failed":
        return _over(pod)
    if pods.is_ready(pod):
        return None
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        reason = text(scheduled, "reason") or "Unschedulable"
        since = moment(scheduled, "lastTransitionTime")
        return Fault(reason, text(scheduled, "message"), time=since)
    for status in pods.containers(pod):
        waiting = pods.state(status, "waiting")
        reason = text(waiting, "reason")
        if ended_badly(status):
            return explained(end_of(status), words)
        if reason in _IMAGE_PULL:
            message = _BACK_OFF.sub("", text(waiting, "message"))
            image = text(status, "image")
            return Fault("ErrImagePull", message or f"The image {image} {UNTOLD_PULL}")
        if reason not in _NO_FAULT:
            return Fault(reason, text(waiting, "message"))
    told = _told_by_events(words)
    if told is not None and _being_made_since(pod) is not None:
        return told
    if _is_silent(pod):
        node = text(pod, "spec", "nodeName")
        message = f"The pod was serving when node {node} was last heard of."
        since = moment(condition(pod, "Ready"), "lastTransitionTime")
        return Fault("NodeLost", message, time=since)
    if (overdue_since := _overdue_since(pod, deployed, now)) is not None:
        return _hanging(pod, words, observed, overdue_since)
    return None


def _over(pod: Object) -> Fault:
    """Of a pod that will not run again: evicted, refused by the kubelet, its node shut down."""
    ends = [end_of(status) for status in pods.containers(pod) if ended_badly(status)]
    reason, message = text(pod, "status", "reason"), text(pod, "status", "message")
    if ends and not (reason or message):
        return ends[-1]
    code, time = (ends[-1].exit_code, ends[-1].time) if ends else (None, None)
    for kind in ("DisruptionTarget", "Ready"):
        time = time or moment(condition(pod, kind), "lastTransitionTime")
    return Fault(reason or "Failed", message or "The pod has failed.", code, time)


def _told_by_events(words: PodWords) -> Fault | None:
    told = [event.partition(": ") for event in words.events]
    told = [event for event in told if event[0] not in _TOLD_ELSEWHERE and event[2]]
    # "timed out waiting for the condition" is what the kubelet says beside the cause.
    causes = [event for event in told if "timed out waiting" not in event[2]] or told
    return Fault(causes[-1][0], causes[-1][2]) if causes else None


def _being_made_since(pod: Object) -> datetime | None:
    """Since when a pod with a node has had no container that ran."""
    is_made = any(
        pods.state(status, kind, last=last)
        for status in pods.containers(pod)
        for kind, last in (("running", False), ("terminated", False), ("terminated", True))
    )
    if is_made or not pods.is_scheduled(pod) or pods.is_over(pod):
        return None
    return moment(condition(pod, "PodScheduled"), "lastTransitionTime")


def _looks(pod: Object, now: datetime) -> int | None:
    """How many times its waiting has doubled since the first look; None before that."""
    since = _being_made_since(pod)
    if since is None or now - since < FIRST_LOOK:
        return None
    return min(int((now - since) / FIRST_LOOK).bit_length() - 1, _LAST_DOUBLING)


def _is_silent(pod: Object) -> bool:
    """Whether its node has gone: the pod counts as not ready, though its containers were."""
    ready = objects(pod, "status", "containerStatuses")
    return (
        condition(pod, "Ready").get("status") in ("False", "Unknown")
        and bool(ready)
        and all(at(status, "ready") is True for status in ready)
        and not objects(pod, "spec", "readinessGates")
    )


def _overdue_since(pod: Object, deployed: Deployed, now: datetime) -> datetime | None:
    """Since when it should have been ready; None while it is, or still may become so."""
    due = _due(pod, deployed)
    return due if due is not None and due <= now else None


def _due(pod: Object, deployed: Deployed) -> datetime | None:
    """When a pod that is not ready is late: in a rollout when that made no progress, and a pod
    that replaces another, or was ready itself, by the same deadline.
    """
    created = moment(pod, "metadata", "creationTimestamp")
    is_wanted = pods.revision(pod) == deployed.revision and not pods.is_over(pod)
    if created is None or pods.is_ready(pod) or not is_wanted:
        return None
    if deployed.overdue_since is not None:
        return deployed.overdue_since if created <= deployed.overdue_since else None
    if not deployed.is_rolled_out or not deployed.deadline:
        return None
    unready = moment(condition(pod, "Ready"), "lastTransitionTime") or created
    return max(created, unready) + deployed.deadline


def _hanging(pod: Object, words: PodWords, observed: Observed, overdue_since: datetime) -> Fault:
    running = [one for one in pods.containers(pod) if pods.state(one, "running")]
    since = moment(pods.state(running[-1], "running"), "startedAt") if running else None
    who = f"Container {text(running[-1], 'name')} runs" if running else "The pod waits"
    since = since or moment(pod, "metadata", "creationTimestamp")
    parts = [f"{who}{f' since {stamp(since)}' if since else ''} and the pod is not ready."]
    unhealthy = [event for event in words.events if event.startswith("Unhealthy: ")]
    if unhealthy:
        parts.append(f"{unhealthy[-1].removeprefix('Unhealthy: ')}.")
    if phase := text(observed.states.get(pods.uid(pod)), "phase"):
        parts.append(f"Its phase is {phase}.")
    return Fault(HANGING, " ".join(parts), time=overdue_since)
