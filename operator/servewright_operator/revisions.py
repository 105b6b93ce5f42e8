"""Which revision runs: the wanted one, unless it failed and a good one is known.

A revision's pod template is rendered once and stored; what is stored is used byte for byte, so
that neither a new operator nor a new default restarts a pod. That a revision has failed is written
to status before anything is rolled back: whichever operator goes on from there knows it.
"""

from __future__ import annotations

from collections.abc import Callable

from servewright_operator import names
from servewright_operator.deployed import Deployed
from servewright_operator.objects import Object, Observed, Rollout, StoredRevision
from servewright_operator.reading import condition, mapping, text, whole
from servewright_operator.reasons import Condition, Reason

KEPT = 3


def choose(
    observed: Observed,
    deployed: Deployed,
    wanted: str,
    render: Callable[[], Object],
    *,
    auto_rollback: bool,
    why: str,
) -> Rollout:
    """render: makes the wanted revision's template, called only if none is stored. why: what
    fails now, for the case that it makes the revision fail.
    """
    status = mapping(observed.service, "status")
    stored = _stored(observed)
    good = _good(deployed, text(status, "lastGoodRevision"), stored)
    if deployed.revision in (wanted, good) and deployed.revision not in stored:
        # Its memory was deleted; the Deployment has the template still.
        _add(stored, deployed.revision, _bare(deployed.template))
    if wanted not in stored:
        _add(stored, wanted, render())

    can_go_back = good is not None and good != wanted and good in stored
    has_failed = text(status, "failedRevision") == wanted and can_go_back
    fails = deployed.revision == wanted and deployed.overdue_since is not None
    target = good if has_failed and good is not None else wanted
    if not has_failed:
        has_failed = fails and can_go_back and auto_rollback  # rolled back once that is written
    return Rollout(
        wanted=wanted,
        target=target,
        kept=_kept(stored, {wanted, target, good}),
        last_good=good,
        failed=wanted if has_failed else None,
        why=(_told_before(observed, wanted) or why) if has_failed else "",
    )


def rolled_back(rollout: Rollout) -> str:
    """The sentence that tells of a rollback; `why` is found in it again."""
    return f"Revision {rollout.failed} was rolled back to {rollout.last_good}: {rollout.why}"


def _told_before(observed: Observed, failed: str) -> str:
    """Why `failed` failed, as status keeps it: its pods are long gone."""
    ready = condition(observed.service, Condition.READY)
    head, _, why = text(ready, "message").partition(": ")
    is_it = ready.get("reason") == Reason.ROLLED_BACK and head.startswith(f"Revision {failed} ")
    return why if is_it else ""


def _stored(observed: Observed) -> dict[str, StoredRevision]:
    found = {}
    for child in observed.of_kind("ControllerRevision"):
        name = text(child, "metadata", "labels", names.REVISION_LABEL)
        template = mapping(child, "data", "template")
        if name and template:
            found[name] = StoredRevision(name, whole(child, "revision"), template)
    return found


def _add(stored: dict[str, StoredRevision], name: str, template: Object) -> None:
    number = max((revision.number for revision in stored.values()), default=0) + 1
    stored[name] = StoredRevision(name, number, template)


def _good(deployed: Deployed, last_good: str, stored: dict[str, StoredRevision]) -> str | None:
    """The revision whose pods last were available all together."""
    if deployed.is_proven and (deployed.revision in stored or deployed.revision == last_good):
        return deployed.revision
    return last_good or None


def _kept(stored: dict[str, StoredRevision], needed: set[str | None]) -> list[StoredRevision]:
    """The needed ones, and the newest up to KEPT in all; by number."""
    newest_first = sorted(stored.values(), key=lambda one: one.number, reverse=True)
    kept = [one for one in newest_first if one.name in needed]
    others = [one for one in newest_first if one.name not in needed]
    kept += others[: max(0, KEPT - len(kept))]
    return sorted(kept, key=lambda one: one.number)


def _bare(template: Object) -> Object:
    """A live template without what the API server adds to its metadata."""
    metadata = mapping(template, "metadata")
    own = {part: metadata[part] for part in ("labels", "annotations") if metadata.get(part)}
    return {**template, "metadata": own}
