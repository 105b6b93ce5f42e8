"""The whole status of a ModelService, from what is seen and what was said before.

Computed anew each time and written only if it differs, so each value is a function of the world:
where Kubernetes tells no time, the time that was written first stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from servewright_operator import names, pods
from servewright_operator.cold_start import cold_start
from servewright_operator.conditions import merged
from servewright_operator.facts import Facts
from servewright_operator.failures import UNTOLD_PULL, next_look
from servewright_operator.last_probe import REWRITTEN_AFTER, Probed, probed, told
from servewright_operator.notes import notes
from servewright_operator.objects import Failure, Note, Object
from servewright_operator.reading import (
    condition,
    mapping,
    moment,
    objects,
    stamp,
    text,
    whole,
)
from servewright_operator.reasons import Condition, Reason
from servewright_operator.verdicts import verdicts

_SOONEST_S = 1.0
_MODEL_FIELDS = {"digest": str, "format": str, "bytes": int}


@dataclass(frozen=True, slots=True)
class Story:
    """What is to be told, and when time alone would change it."""

    status: Object
    notes: list[Note]
    requeue_after_s: float | None


def compute(facts: Facts) -> Story:
    """The status that the facts make."""
    observed, stored, now = facts.observed, facts.stored, facts.now
    failure = _as_told(facts)
    last_probe = told(mapping(stored, "lastProbe"), observed.probe)
    answer = Probed("Unknown", Reason.PROBE_PENDING, "There is nobody to ask.")
    if facts.service is not None:
        answer = probed(observed, last_probe, facts.service, facts.target, now)
    generation = whole(observed.service, "metadata", "generation")
    conditions = merged(observed.service, verdicts(facts, failure, answer), generation, now)
    last_failure = _last_failure(facts, failure)
    rollout = facts.rollout
    selector = names.selector(observed.key.name)
    failed = rollout.failed if rollout else text(stored, "failedRevision")
    status: Object = {
        "observedGeneration": generation,
        "conditions": conditions,
        "replicas": facts.deployed.replicas,
        "readyReplicas": facts.deployed.ready,
        "updatedReplicas": facts.deployed.updated,
        "selector": ",".join(f"{label}={value}" for label, value in selector.items()),
        "revision": text(stored, "revision") if rollout is None else rollout.wanted,
        "lastGoodRevision": facts.last_good,
        "failedRevision": failed,
        "model": _model(facts),
        "endpoints": {"openai": names.openai_url(observed.key)},
        "lastProbe": last_probe,
        "coldStart": _cold_start(facts),
        "lastFailure": last_failure,
    }
    status = {field: value for field, value in status.items() if value not in ("", None, {})}
    return Story(status, notes(observed.service, status), _requeue_after_s(facts, status, answer))


def _as_told(facts: Facts) -> Failure | None:
    """What fails now, with what was told of it before where nobody tells it any more."""
    failure, before = facts.worst, mapping(facts.stored, "lastFailure")
    if failure is None:
        return None
    identity = (failure.pod, failure.revision, failure.reason)
    if identity != tuple(text(before, part) for part in ("pod", "revision", "reason")):
        return failure
    time, message, told = failure.time, failure.message, text(before, "message")
    if time == facts.now and failure.exit_code is None:  # Kubernetes does not tell since when
        time = moment(before, "time") or time
    if told and (message.endswith(UNTOLD_PULL) or told.startswith(message)):
        message = told  # which tells the same and more
    return replace(failure, time=time, message=message)


def _last_failure(facts: Facts, failure: Failure | None) -> Object:
    """The failure that goes on, else the latest of those that are over."""
    before = mapping(facts.stored, "lastFailure")
    since = moment(before, "time")
    is_told = text(before, "revision") == text(facts.stored, "failedRevision") != ""
    if is_told and failure is not None and failure.revision == before["revision"]:
        return before  # why it was rolled back; its pods may end once more before they go
    if failure is None:
        failure = max(facts.overcome, key=lambda one: (one.time, one.pod), default=None)
        if failure is None or (since is not None and stamp(failure.time) <= stamp(since)):
            return before
    new = {
        "time": stamp(failure.time),
        "pod": failure.pod,
        "revision": failure.revision,
        "reason": failure.reason,
        "message": failure.message,
        "exitCode": failure.exit_code,
        "logTail": failure.log_tail,
    }
    is_same = all(text(before, part) == new[part] for part in ("time", "pod", "reason"))
    if is_same and not failure.log_tail:  # the log is gone, or was not read again
        new["logTail"] = before.get("logTail")
    return {part: value for part, value in new.items() if value not in ("", None)}


def _model(facts: Facts) -> Object:
    """Its name, and the rest as the runtime itself told it."""
    before = mapping(facts.stored, "model")
    name = text(before, "name") if facts.served is None else facts.served.served_name
    first = pods.first_ready(facts.current)
    state = facts.observed.states.get(pods.uid(first), {}) if first else {}
    told = next((mapping(model, "model") for model in objects(state, "models")), before)
    known = {
        part: told[part]
        for part, kind in _MODEL_FIELDS.items()
        if isinstance(told.get(part), kind) and not isinstance(told[part], bool)
    }
    return {"name": name, **known} if name else known


def _cold_start(facts: Facts) -> Object:
    first = pods.first_ready(facts.current)
    state = facts.observed.states.get(pods.uid(first)) if first else None
    found = cold_start(first, state) if first and state else None
    return found or mapping(facts.stored, "coldStart")


def _requeue_after_s(facts: Facts, status: Object, answer: Probed) -> float | None:
    """When the next decision would differ though nothing happened."""
    if facts.rollout is not None and facts.rollout.failed and not facts.is_rolled_back:
        return 0.0  # that it failed is written now, so it may be rolled back
    times = [
        answer.until,
        next_look(facts.observed, facts.deployed, facts.now),
        _own_deadline(facts, status),
    ]
    last = status.get("lastProbe", {})
    if answer.status == "True" and (time := moment(last, "time")) is not None:
        times.append(time + REWRITTEN_AFTER)
    waits = [(time - facts.now).total_seconds() for time in times if time is not None]
    return max(_SOONEST_S, min(waits)) if waits else None


def _own_deadline(facts: Facts, status: Object) -> datetime | None:
    """When a revision that came up from no replicas at all is overdue: Deployed sees to that."""
    progressing = condition({"status": status}, Condition.PROGRESSING)
    since = moment(progressing, "lastTransitionTime")
    if facts.service is None or since is None or progressing["status"] != "True":
        return None
    deadline_s = facts.service.spec.rollout.progress_deadline_seconds
    return since + timedelta(seconds=deadline_s)
