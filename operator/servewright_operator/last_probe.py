"""What the operator's own calls through the Service say of Ready, and what status tells of them.

The calls themselves are remembered in memory; an operator that has just started has only what
status says. That still counts, if it was so, until the new operator's first call.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from servewright_api import ModelService
from servewright_operator.conditions import Truth
from servewright_operator.objects import Object, Observed, ProbeRecord
from servewright_operator.reading import condition, moment, stamp, text
from servewright_operator.reasons import Condition, Reason

# What is said once is no news yet, of failures as of calls that could not be made: it is repeated
# soon. So what changes at every call is not written at every call.
REPEATS = 2
# Answers to a key that is not, or no longer, the one that the replicas know.
KEY_REFUSED = frozenset({"Http401", "Http403"})
# How old the last success in status may get, so that its age tells how fresh Ready is.
REWRITTEN_AFTER = timedelta(minutes=5)

_WITHOUT_SUCCESS = {Reason.PROBE_FAILED, Reason.PROBE_PENDING, Reason.PROBE_STALE}


class Probed(NamedTuple):
    """What the calls say, and until when if none comes."""

    status: Truth
    reason: str
    message: str
    until: datetime | None = None


def told(stored: Object, record: ProbeRecord | None) -> Object:
    """`lastProbe` of the status; `stored` is what it was.

    Its time is that of the call; of a failure, of the first call that failed so.
    """
    if record is None or not counts(record):
        return stored
    new = {
        "time": stamp(record.time),
        "revision": record.revision,
        "latencySeconds": round(record.latency_s, 3),
        "result": record.result,
        "reason": record.reason,
        "message": record.message,
    }
    time = moment(stored, "time")
    if record.result == "Succeeded":
        is_old = time is None or record.time - time >= REWRITTEN_AFTER
        return new if is_old or _differ(stored, new, "result", "revision") else stored
    is_other = _differ(stored, new, "reason") and record.repeats >= REPEATS
    return new if is_other or _differ(stored, new, "result", "revision") else stored


def counts(record: ProbeRecord) -> bool:
    """Whether it is news: a failure or an Unknown has been repeated."""
    if record.result == "Failed":
        return record.failures >= REPEATS
    return record.result == "Succeeded" or record.repeats >= REPEATS


def _differ(stored: Object, new: Object, *parts: str) -> bool:
    return any(stored.get(part) != new[part] for part in parts)


def probed(
    observed: Observed, last: Object, service: ModelService, revision: str, now: datetime
) -> Probed:
    """Whether `revision` answers lately. last: what status tells of the last call."""
    probe = service.spec.probe
    # The next call may come late by its jitter, a retry and its timeout.
    lifetime = timedelta(seconds=2.5 * probe.interval_seconds + probe.timeout_seconds + 10)
    record = observed.probe
    if record is None:
        return _remembered(observed.service, last, revision, lifetime, now)
    if record.result == "Unknown" and counts(record):
        return Probed("Unknown", Reason.PROBE_PENDING, f"{last['reason']}: {last['message']}")
    if record.failures >= REPEATS:
        return Probed("False", Reason.PROBE_FAILED, f"{last['reason']}: {last['message']}")
    answered_at = record.time if record.result == "Succeeded" else record.succeeded_at
    if answered_at is None or (record.result == "Succeeded" and record.revision != revision):
        return _pending(revision)
    return _fresh(revision, answered_at, lifetime, now)


def _remembered(
    service: Object, last: Object, revision: str, lifetime: timedelta, now: datetime
) -> Probed:
    """What an operator that has not called yet takes over from the one before it."""
    ready, time = condition(service, Condition.READY), moment(last, "time")
    if text(service, "status", "revision") != revision:
        return _pending(revision)
    if ready.get("reason") == Reason.PROBE_SUCCEEDED and time is not None:
        return _fresh(revision, time, lifetime + REWRITTEN_AFTER, now)
    if text(ready, "reason") in _WITHOUT_SUCCESS:
        status: Truth = "False" if ready.get("status") == "False" else "Unknown"
        return Probed(status, text(ready, "reason"), text(ready, "message"))
    return _pending(revision)


def _pending(revision: str) -> Probed:
    message = f"Revision {revision} has not been asked through the Service yet."
    return Probed("Unknown", Reason.PROBE_PENDING, message)


def _fresh(revision: str, answered_at: datetime, lifetime: timedelta, now: datetime) -> Probed:
    until = answered_at + lifetime
    if now >= until:
        message = f"Revision {revision} answered last at {stamp(answered_at)}."
        return Probed("Unknown", Reason.PROBE_STALE, message)
    message = f"Revision {revision} answered through the Service."
    return Probed("True", Reason.PROBE_SUCCEEDED, message, until)
