"""What the Deployment says of itself, read so that yesterday's words are not taken for today's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from servewright_operator import names
from servewright_operator.objects import Object, Observed
from servewright_operator.reading import condition, mapping, moment, text, whole
from servewright_operator.reasons import Condition, Reason


@dataclass(frozen=True, slots=True)
class Deployed:
    """The Deployment, or (revision empty) that there is none yet."""

    template: Object
    revision: str  # that its template runs
    is_observed: bool  # its status speaks about its present spec
    wanted: int
    deadline: timedelta  # its progressDeadlineSeconds
    replicas: int
    ready: int
    updated: int
    available: int
    is_available: bool | None  # None: it has not said
    is_rolled_out: bool  # all pods are of the revision and were available together once
    is_proven: bool  # and so they are now, one at least
    overdue_since: datetime | None  # no progress was made within progressDeadlineSeconds
    cannot_create: str  # why pods cannot even be created, in the API server's words
    cannot_create_since: datetime | None

    @classmethod
    def of(cls, observed: Observed, now: datetime) -> Deployed:
        """The Deployment of a ModelService at a time."""
        live = next(iter(observed.of_kind("Deployment")), {})
        said = {kind: condition(live, kind) for kind in ("Available", "Progressing")}
        failure = condition(live, "ReplicaFailure")
        generation = whole(live, "metadata", "generation")
        is_observed = bool(live) and whole(live, "status", "observedGeneration") >= generation
        replicas = whole(live, "status", "replicas")
        updated = whole(live, "status", "updatedReplicas")
        available = whole(live, "status", "availableReplicas")
        progress = text(said["Progressing"], "reason") if is_observed else ""
        is_rolled_out = progress == "NewReplicaSetAvailable" and updated == replicas
        revision = text(live, "spec", "template", "metadata", "labels", names.REVISION_LABEL)
        overdue_since = None
        if progress == "ProgressDeadlineExceeded":
            overdue_since = moment(said["Progressing"], "lastUpdateTime") or now
        elif is_rolled_out and not available:
            overdue_since = _overdue_from_nothing(observed.service, live, revision, now)
        failing = failure.get("status") == "True"
        return cls(
            template=mapping(live, "spec", "template"),
            revision=revision,
            is_observed=is_observed,
            wanted=whole(live, "spec", "replicas"),
            deadline=timedelta(seconds=whole(live, "spec", "progressDeadlineSeconds")),
            replicas=replicas,
            ready=whole(live, "status", "readyReplicas"),
            updated=updated,
            available=available,
            is_available={"True": True, "False": False}.get(text(said["Available"], "status")),
            is_rolled_out=is_rolled_out,
            is_proven=is_rolled_out and available > 0 and said["Available"].get("status") == "True",
            overdue_since=overdue_since,
            cannot_create=text(failure, "message") if failing else "",
            cannot_create_since=moment(failure, "lastTransitionTime") if failing else None,
        )


def _overdue_from_nothing(
    service: Object, live: Object, revision: str, now: datetime
) -> datetime | None:
    """The same for a revision that was rolled out while no replica was wanted.

    Kubernetes counts that as complete and sets no deadline when replicas come, so a revision that
    has never been good gets its deadline from our own condition.
    """
    status = mapping(service, "status")
    if text(status, "revision") != revision or text(status, "lastGoodRevision") == revision:
        return None
    progressing = condition(service, Condition.PROGRESSING)
    since = moment(progressing, "lastTransitionTime")
    if since is None or not whole(live, "spec", "replicas"):
        return None
    if progressing.get("reason") == Reason.PROGRESS_DEADLINE_EXCEEDED:
        return since
    end = since + timedelta(seconds=whole(live, "spec", "progressDeadlineSeconds"))
    return end if progressing.get("status") == "True" and end <= now else None
