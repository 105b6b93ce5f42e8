"""What each condition says of the facts.

Three things that are easily taken for one are kept apart: what was found wrong is False, what
nobody could find out is Unknown, and what was found out too long ago is Unknown with a reason of
its own. Unknown never adds up to True.
"""

from __future__ import annotations

from servewright_operator import names, pods
from servewright_operator.conditions import Said, Truth
from servewright_operator.facts import Facts
from servewright_operator.last_probe import Probed
from servewright_operator.objects import Failure
from servewright_operator.reading import condition
from servewright_operator.reasons import Condition, Reason
from servewright_operator.revisions import rolled_back

_AT_REST = {
    Reason.SUSPENDED: "spec.suspend is true: no replica is wanted.",
    Reason.SCALED_TO_ZERO: "No replica is wanted.",
}


def verdicts(facts: Facts, failure: Failure | None, probed: Probed) -> list[Said]:
    """All conditions, in their order. failure: what fails now, if anything does."""
    available = _available(facts)
    progressing = _progressing(facts)
    return [
        _admitted(facts),
        _scheduled(facts),
        _model_ready(facts, failure),
        available,
        progressing,
        _degraded(facts, failure),
        _ready(facts, available, progressing, failure, probed),
    ]


def words(failure: Failure) -> str:
    """A failure as a clause: who, and in which words."""
    code = "" if failure.exit_code is None else f" (exit code {failure.exit_code})"
    who = f"pod {failure.pod}: " if failure.pod else ""
    return f"{who}{failure.reason}{code}: {failure.message}"


def _admitted(facts: Facts) -> Said:
    if facts.problems:
        return Said(Condition.ADMITTED, "False", Reason.INVALID_SPEC, " ".join(facts.problems))
    return Said(Condition.ADMITTED, "True", Reason.ACCEPTED, "The spec can be served.")


def _scheduled(facts: Facts) -> Said:
    def said(status: Truth, reason: str, message: str) -> Said:
        return Said(Condition.SCHEDULED, status, reason, message)

    if facts.at_rest:
        return said("False", facts.at_rest, _AT_REST[facts.at_rest])
    for pod in facts.current:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False" and not pods.is_scheduled(pod):
            message = f"Pod {pods.name(pod)}: {scheduled.get('message') or 'has no node.'}"
            return said("False", Reason.UNSCHEDULABLE, message)
    if not facts.current:
        why = facts.deployed.cannot_create
        return said("False", Reason.NO_PODS, why or f"Revision {facts.target} has no pods yet.")
    if not all(pods.is_scheduled(pod) for pod in facts.current):
        message = "The scheduler has not looked at every pod yet."
        return said("Unknown", Reason.SCHEDULING, message)
    return said("True", Reason.POD_SCHEDULED, f"Every pod of revision {facts.target} has a node.")


def _model_ready(facts: Facts, failure: Failure | None) -> Said:
    def said(status: Truth, reason: str, message: str) -> Said:
        return Said(Condition.MODEL_READY, status, reason, message)

    if facts.at_rest:
        return said("False", facts.at_rest, _AT_REST[facts.at_rest])
    if any(pods.is_ready(pod) for pod in facts.current):
        message = f"Revision {facts.target} is loaded and has answered its probe."
        return said("True", Reason.LOADED, message)
    if failure is not None and failure.revision == facts.target:
        return said("False", failure.reason, _sentence(words(failure)))
    if not facts.current:
        return said("False", Reason.NO_PODS, f"Revision {facts.target} has no pods yet.")
    running = {
        name
        for pod in facts.current
        for name in (names.REPLICA_CONTAINER, names.FETCH_CONTAINER)
        if pods.state(pods.container(pod, name), "running")
    }
    if names.REPLICA_CONTAINER in running:
        return said("False", Reason.LOADING, "A pod starts, loads the model and asks it its probe.")
    if names.FETCH_CONTAINER in running:
        return said("False", Reason.FETCHING, "A pod fetches the model.")
    return said("False", Reason.STARTING, "The containers are being made.")


def _available(facts: Facts) -> Said:
    def said(status: Truth, reason: str, message: str) -> Said:
        return Said(Condition.AVAILABLE, status, reason, message)

    wanted = facts.deployed.wanted
    if facts.at_rest:
        return said("False", facts.at_rest, _AT_REST[facts.at_rest])
    # Pods are asked, not the Deployment: it gives up at the first of many that is lost, and holds
    # on to pods whose node is lost.
    counts = f"{min(facts.serving, wanted)} of {wanted} replicas are ready."
    if facts.serving:
        return said("True", Reason.MINIMUM_REPLICAS, counts)
    if facts.deployed.is_available is None:
        return said("Unknown", Reason.NO_PODS, "The Deployment has not told about its pods yet.")
    return said("False", Reason.TOO_FEW_REPLICAS, counts)


def _progressing(facts: Facts) -> Said:
    def said(status: Truth, reason: str, message: str) -> Said:
        return Said(Condition.PROGRESSING, status, reason, message)

    target = facts.target
    if facts.at_rest:
        return said("False", facts.at_rest, _AT_REST[facts.at_rest])
    if not target:
        return said("False", Reason.INVALID_SPEC, "Nothing was ever rolled out.")
    if facts.is_overdue:
        message = f"Revision {target} was not up within its progressDeadlineSeconds."
        return said("False", Reason.PROGRESS_DEADLINE_EXCEEDED, message)
    if facts.is_complete:
        return said("False", Reason.COMPLETE, f"All replicas run revision {target}.")
    return said("True", Reason.ROLLING_OUT, f"Revision {target} is rolling out.")


def _degraded(facts: Facts, failure: Failure | None) -> Said:
    refused = facts.observed.refused
    if refused:
        return Said(Condition.DEGRADED, "True", Reason.REFUSED, refused)
    if failure is None:
        return Said(Condition.DEGRADED, "False", Reason.AS_EXPECTED, "No pod fails.")
    return Said(Condition.DEGRADED, "True", failure.reason, _sentence(words(failure)))


def _ready(
    facts: Facts, available: Said, progressing: Said, failure: Failure | None, probed: Probed
) -> Said:
    def said(status: Truth, reason: str, message: str) -> Said:
        return Said(Condition.READY, status, reason, message)

    because = "" if failure is None else f" {_sentence(words(failure))}"
    if facts.problems:
        return said("False", Reason.INVALID_SPEC, " ".join(facts.problems))
    if facts.at_rest:
        return said("False", facts.at_rest, _AT_REST[facts.at_rest])
    if facts.rollout is not None and facts.rollout.failed:
        return said("False", Reason.ROLLED_BACK, rolled_back(facts.rollout))
    if facts.is_overdue or progressing.status == "True":
        return said("False", progressing.reason, f"{progressing.message}{because}")
    if available.status != "True":
        return said(available.status, available.reason, f"{available.message}{because}")
    return said(probed.status, probed.reason, probed.message)


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}"
