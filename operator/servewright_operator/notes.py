"""Events: what has changed between the status that was stored and the one to be stored."""

from __future__ import annotations

from servewright_operator.objects import Note, Object
from servewright_operator.reading import condition, mapping, text
from servewright_operator.reasons import Condition, Reason

_STEPS = {Reason.ROLLING_OUT, Reason.COMPLETE, Reason.SUSPENDED, Reason.SCALED_TO_ZERO}


def notes(service: Object, status: Object) -> list[Note]:
    """One for each transition; none on an unchanged status."""
    before, after = mapping(service, "status"), {"status": status}
    told = []

    def changed(kind: Condition, *parts: str) -> Object | None:
        """The condition, if `parts` of it are new."""
        old, new = condition(service, kind), condition(after, kind)
        return new if any(old.get(part) != new.get(part) for part in parts) else None

    def warn(reason: str, message: str) -> None:
        told.append(Note("Warning", reason, message))

    def inform(reason: str, message: str) -> None:
        told.append(Note("Normal", reason, message))

    admitted = changed(Condition.ADMITTED, "status", "message")
    if admitted and admitted["status"] == "False":
        warn(admitted["reason"], admitted["message"])
    failed = text(status, "failedRevision")
    has_failed = bool(failed) and failed != text(before, "failedRevision")
    if has_failed:
        warn(Reason.ROLLED_BACK, condition(after, Condition.READY)["message"])
    progressing = changed(Condition.PROGRESSING, "status", "reason", "message")
    if progressing:
        reason, was = progressing["reason"], condition(service, Condition.PROGRESSING).get("reason")
        is_new = was != reason or text(before, "revision") != text(status, "revision")
        if reason == Reason.PROGRESS_DEADLINE_EXCEEDED and is_new and not has_failed:
            warn(reason, condition(after, Condition.READY)["message"])
        elif reason in _STEPS and is_new:
            inform(reason, progressing["message"])
    degraded = changed(Condition.DEGRADED, "status", "reason")
    if degraded and degraded["status"] == "True" and degraded["reason"] != Reason.REFUSED:
        warn(Reason.POD_FAILING, degraded["message"])
    failure, known = mapping(status, "lastFailure"), mapping(before, "lastFailure")
    is_over = condition(after, Condition.DEGRADED)["status"] == "False"
    if is_over and failure and any(failure.get(p) != known.get(p) for p in ("time", "pod")):
        code = f" (exit code {failure['exitCode']})" if "exitCode" in failure else ""
        who = f"Pod {failure.get('pod')}: {failure['reason']}{code}"
        warn(Reason.RESTARTED, f"{who}: {failure.get('message', '')}")
    ready = changed(Condition.READY, "status", "reason")
    was_ready = condition(service, Condition.READY).get("status") == "True"
    if ready and ready["status"] == "True" and not was_ready:
        inform(Reason.READY, ready["message"])
    elif (
        ready
        and ready["reason"] not in _STEPS
        and (was_ready or ready["reason"] == Reason.PROBE_FAILED)
    ):
        warn(Reason.NOT_READY, f"{ready['reason']}: {ready['message']}")
    return told
