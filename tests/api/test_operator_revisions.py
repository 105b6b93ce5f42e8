"""The operator's process and the revisions of ModelServices: an upgrade of the operator restarts
nothing, a revision that fails is rolled back once and for all, in its pods' words."""

from __future__ import annotations

import copy

import pytest

from servewright_api.manifest import service_from_cluster
from servewright_operator import holding, kinds, names
from servewright_operator.desired import controllerrevision, deployment
from servewright_operator.desired.child import Owner
from servewright_operator.names import Key
from servewright_operator.objects import Object, StoredRevision
from support.kubelet import CRASH_MESSAGE, fated
from support.operator_process import OperatorProcess
from support.operators import IMAGE
from support.place import Place
from support.waiting import consistently, eventually

NEW_IMAGE = "registry.example/servewright-runtime:2"
# The shortest that is allowed; the Deployment controller looks once more a second or two later.
DEADLINE_S = 10
WITHIN_DEADLINE_S = 60.0
STAYS_S = 4.0
SURGE = {"progressDeadlineSeconds": DEADLINE_S}


@pytest.fixture(scope="module")
def failed(controlled_place: Place, controlled_operator: OperatorProcess) -> Place:
    """Three ModelServices, all of which were asked for a revision that crashes: `rolled` and
    `told` after a good one, of which `told` does not want to be rolled back; `first` at once."""
    place = controlled_place
    place.serve("rolled", rollout=SURGE, replicas=2)
    place.serve("told", rollout={**SURGE, "autoRollback": False})
    place.serve("first", rollout=SURGE, pod=fated("crash"))
    for name in ("rolled", "told"):
        is_good(place, name)
        place.edit(kinds.MODEL_SERVICE, name, {"spec": {"pod": fated("crash")}})
    return place


def is_good(place: Place, name: str) -> None:
    """Return once the wanted revision is the last good one."""

    def is_so() -> bool:
        status = place.status(name)
        service = place.get(kinds.MODEL_SERVICE, name)
        return bool(
            status.get("observedGeneration") == service["metadata"]["generation"]
            and status.get("lastGoodRevision") == status["revision"]
            and place.condition("Progressing", name)["reason"] == "Complete"
        )

    eventually(is_so, timeout_s=WITHIN_DEADLINE_S, interval_s=0.2)


def runs(place: Place, name: str) -> str:
    """The revision in the Deployment's template."""
    template = place.get(kinds.DEPLOYMENT, name)["spec"]["template"]
    return str(template["metadata"]["labels"][names.REVISION_LABEL])


def image(template: Object) -> str:
    return str(template["spec"]["containers"][0]["image"])


def overdue(place: Place, name: str) -> None:
    """Return once the wanted revision has missed its deadline, and that is told."""
    reasons = ("RolledBack", "ProgressDeadlineExceeded")
    eventually(
        lambda: place.condition("Ready", name).get("reason") in reasons,
        timeout_s=WITHIN_DEADLINE_S,
        interval_s=0.2,
    )


def test_a_revision_that_misses_its_deadline_is_rolled_back_in_its_pods_words(
    failed: Place,
) -> None:
    overdue(failed, "rolled")
    status = failed.status("rolled")
    good = status["lastGoodRevision"]
    assert status["failedRevision"] == status["revision"] != good
    eventually(lambda: runs(failed, "rolled") == good)
    ready = failed.condition("Ready", "rolled")
    assert ready["status"] == "False"
    assert ready["reason"] == "RolledBack"
    assert ready["message"].startswith(
        f"Revision {status['failedRevision']} was rolled back to {good}: "
    )
    assert f"ProbeFailed (exit code 1): {CRASH_MESSAGE}" in ready["message"]
    assert status["lastFailure"]["reason"] == "ProbeFailed"
    assert status["lastFailure"]["message"] == CRASH_MESSAGE
    assert status["lastFailure"]["exitCode"] == 1
    assert status["lastFailure"]["revision"] == status["failedRevision"]
    # Those that served never stopped: none of them is younger than the failed ones.
    eventually(lambda: failed.condition("Available", "rolled")["status"] == "True")
    assert failed.events("RolledBack", "rolled") == [ready["message"]]


def test_a_failed_revision_is_not_tried_again_by_whichever_operator(
    failed: Place, controlled_operator: OperatorProcess
) -> None:
    overdue(failed, "rolled")
    good = failed.status("rolled")["lastGoodRevision"]
    bad = failed.status("rolled")["failedRevision"]
    eventually(lambda: len(failed.pods("rolled")) == 2, interval_s=0.2)
    before = failed.get(kinds.DEPLOYMENT, "rolled")["metadata"]["generation"]
    controlled_operator.stop()
    controlled_operator.start()
    eventually(lambda: controlled_operator.passes() >= 3, interval_s=0.1)
    failed.touch("rolled")
    consistently(
        lambda: failed.get(kinds.DEPLOYMENT, "rolled")["metadata"]["generation"] == before,
        for_s=STAYS_S,
        interval_s=0.2,
    )
    assert failed.status("rolled")["failedRevision"] == bad
    assert runs(failed, "rolled") == good
    assert CRASH_MESSAGE in failed.condition("Ready", "rolled")["message"]
    assert len(failed.events("RolledBack", "rolled")) == 1


def test_without_autorollback_a_failed_revision_is_only_told(failed: Place) -> None:
    overdue(failed, "told")
    status = failed.status("told")
    assert "failedRevision" not in status
    assert runs(failed, "told") == status["revision"] != status["lastGoodRevision"]
    ready = failed.condition("Ready", "told")
    assert (ready["status"], ready["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert CRASH_MESSAGE in ready["message"]
    assert failed.events("RolledBack", "told") == []
    assert len(failed.events("ProgressDeadlineExceeded", "told")) == 1


def test_a_first_revision_that_fails_stays_as_there_is_nothing_to_go_back_to(
    failed: Place,
) -> None:
    overdue(failed, "first")
    status = failed.status("first")
    assert "failedRevision" not in status
    assert "lastGoodRevision" not in status
    assert runs(failed, "first") == status["revision"]
    ready = failed.condition("Ready", "first")
    assert (ready["status"], ready["reason"]) == ("False", "ProgressDeadlineExceeded")


def test_a_change_of_the_spec_ends_a_rollback(failed: Place) -> None:
    overdue(failed, "rolled")
    failed.edit(kinds.MODEL_SERVICE, "rolled", {"spec": {"pod": None, "engine": {"maxBatch": 3}}})
    is_good(failed, "rolled")
    status = failed.status("rolled")
    assert "failedRevision" not in status
    assert runs(failed, "rolled") == status["revision"]


def test_another_operator_with_another_image_restarts_nothing_until_it_is_asked_to(
    controlled_place: Place, controlled_operator: OperatorProcess
) -> None:
    """The template that an older operator stored differs from what today's would render."""
    place = controlled_place
    place.serve("steady", replicas=2)
    is_good(place, "steady")
    controlled_operator.stop()
    rendered_by_an_older_operator(place, "steady")
    eventually(lambda: rolled_over(place), timeout_s=WITHIN_DEADLINE_S, interval_s=0.2)
    before = {pod["metadata"]["uid"] for pod in place.pods("steady")}
    left = place.get(kinds.DEPLOYMENT, "steady")

    controlled_operator.start(image=NEW_IMAGE)
    eventually(lambda: controlled_operator.passes() > 0, interval_s=0.1)
    place.touch("steady")
    consistently(
        lambda: (
            place.get(kinds.DEPLOYMENT, "steady")["metadata"]["generation"]
            == left["metadata"]["generation"]
        ),
        for_s=STAYS_S,
        interval_s=0.2,
    )
    assert {pod["metadata"]["uid"] for pod in place.pods("steady")} == before
    after = place.get(kinds.DEPLOYMENT, "steady")["spec"]["template"]
    assert after == left["spec"]["template"]
    assert after["metadata"]["annotations"]["example.com/operator"] == "older"

    restart = {"metadata": {"annotations": {names.RESTARTED_AT_ANNOTATION: "2026-11-23T06:00:00Z"}}}
    place.edit(kinds.MODEL_SERVICE, "steady", restart)
    eventually(
        lambda: image(place.get(kinds.DEPLOYMENT, "steady")["spec"]["template"]) == NEW_IMAGE,
        interval_s=0.2,
    )
    is_good(place, "steady")
    template = place.get(kinds.DEPLOYMENT, "steady")["spec"]["template"]
    assert "annotations" not in template["metadata"]
    stored = place.objects.all(
        kinds.CONTROLLER_REVISION,
        place.namespace,
        selector=f"{names.SERVICE_LABEL}=steady",
    )
    assert sorted(image(one["data"]["template"]) for one in stored) == [IMAGE, NEW_IMAGE]


def rendered_by_an_older_operator(place: Place, name: str) -> None:
    """Leave a ControllerRevision and a Deployment as one did that rendered pods otherwise. No
    operator runs."""
    service = place.get(kinds.MODEL_SERVICE, name)
    owner = Owner(Key(place.namespace, name), service["metadata"]["uid"])
    revision = service["status"]["revision"]
    stored = place.get(kinds.CONTROLLER_REVISION, names.revision_object(name, revision))
    template: Object = copy.deepcopy(stored["data"]["template"])
    template["metadata"]["annotations"] = {"example.com/operator": "older"}
    template["spec"]["terminationGracePeriodSeconds"] = 7
    place.objects.delete(stored)
    remembered = StoredRevision(revision, stored["revision"], template)
    for child in (
        controllerrevision.build(owner, remembered),
        deployment.build(owner, service_from_cluster(service), template),
    ):
        place.objects.apply(holding.with_hash(child))


def rolled_over(place: Place) -> bool:
    """Whether every pod is of the older template, and the Deployment says so."""
    live = place.get(kinds.DEPLOYMENT, "steady")
    pods = place.pods("steady")
    return (
        live["status"].get("observedGeneration") == live["metadata"]["generation"]
        and live["status"].get("availableReplicas") == len(pods) == 2
        and all(
            pod["metadata"].get("annotations", {}).get("example.com/operator") == "older"
            for pod in pods
        )
    )
