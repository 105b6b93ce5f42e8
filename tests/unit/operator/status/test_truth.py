"""Ready and Available say what is so; "status that lies" is what people say of rivals."""

from __future__ import annotations

from datetime import timedelta

from support import pod_objects
from support.pretend import DEADLINE_S, Pretend
from support.situations import OTHER_MODEL, settled, suspended, truths


def test_a_crash_looping_service_is_never_ready() -> None:
    world = Pretend(fate="crash")
    for _ in range(40):
        world.step()
        assert world.truth("Ready") != "True"
        assert world.truth("Available") != "True"
    assert world.reason("Ready") == "ProgressDeadlineExceeded"


def test_pods_that_count_as_ready_are_not_enough_for_ready() -> None:
    world = Pretend(fate="mute")
    world.reconcile()
    world.settle()
    assert world.truth("Available") == "True"
    assert (world.truth("Ready"), world.reason("Ready")) == ("False", "ProbeFailed")
    assert world.message("Ready") == "TimedOut: No answer came within 60 s."


def test_ready_is_unknown_until_somebody_has_asked() -> None:
    world = Pretend()
    while world.reconcile().probe is None:
        assert world.truth("Ready") == "False"
        world.now += timedelta(seconds=5)
        world.kubernetes()
    assert (world.truth("Ready"), world.reason("Ready")) == ("Unknown", "ProbePending")


def test_the_deployments_word_is_not_enough_for_available() -> None:
    world = settled()
    world.pods["mine-1"] = pod_objects.node_lost(world.pods["mine-1"])
    world.reconcile()
    assert (world.truth("Available"), world.truth("Ready")) == ("False", "False")
    assert world.reason("Degraded") == "NodeLost"


def test_a_status_of_the_deployment_about_its_last_spec_does_not_count() -> None:
    world = settled()
    world.edit(OTHER_MODEL)
    world.reconcile()  # the Deployment has the new template, its status is about the old one
    world.reconcile()
    assert world.running != world.status["lastGoodRevision"]
    assert (world.truth("Progressing"), world.truth("Ready")) == ("True", "False")


def test_a_service_that_is_scaled_to_zero_is_not_available() -> None:
    """Kubernetes says Available of a Deployment that wants no pods."""
    world = suspended()
    assert world.deployment["status"]["conditions"][0]["status"] == "True"
    assert (world.truth("Available"), world.reason("Available")) == ("False", "Suspended")


def test_ready_stays_while_replicas_are_added() -> None:
    world = settled()
    world.edit({"spec.replicas": 3})
    for _ in range(10):
        world.step()
        assert world.truth("Ready") == "True"
    assert world.status["readyReplicas"] == 3


def lose(world: Pretend, *names: str) -> None:
    """Pods are replaced by new ones, which take their time."""
    for name in names:
        world.born[name] = world.now
        world.pods[name]["metadata"]["creationTimestamp"] = pod_objects.stamp(world.now)


def test_a_service_that_lost_a_replica_serves_on_and_is_ready() -> None:
    world = settled({"spec.replicas": 3})
    good = world.status["lastGoodRevision"]
    lose(world, "mine-1")
    world.step()
    assert world.deployment["status"]["conditions"][0]["status"] == "False"
    assert world.message("Available") == "2 of 3 replicas are ready."
    assert truths(world) == truths(settled({"spec.replicas": 3}))
    assert (world.status["readyReplicas"], world.status["lastGoodRevision"]) == (2, good)
    for _ in range(4):
        world.step()
        assert (world.truth("Ready"), world.truth("Degraded")) == ("True", "False")
    assert world.message("Available") == "3 of 3 replicas are ready."


def test_a_replica_that_fails_degrades_a_service_that_stays_ready() -> None:
    world = settled({"spec.replicas": 3})
    world.fates[world.running] = "crash"
    lose(world, "mine-1")
    world.pods["mine-1"] = pod_objects.crashed(world.pods["mine-1"])
    world.reconcile()
    assert (world.truth("Available"), world.truth("Ready")) == ("True", "True")
    assert (world.truth("Degraded"), world.reason("Degraded")) == ("True", "ProbeFailed")


def test_a_replica_that_is_not_back_by_the_deadline_degrades_a_service_that_stays_ready() -> None:
    world = settled({"spec.replicas": 3})
    lose(world, "mine-1")
    while world.truth("Degraded") == "False":
        lost_for = world.now - world.born["mine-1"]
        assert lost_for < timedelta(seconds=DEADLINE_S)
        assert world.requeue_after_s is None or world.requeue_after_s > 0
        world.now += timedelta(seconds=5)
        world.pods["mine-1"] = pod_objects.loading(pod_objects.pod(world.running, "mine-1"))
        lose_at = pod_objects.stamp(world.born["mine-1"])
        world.pods["mine-1"]["metadata"]["creationTimestamp"] = lose_at
        world.call()
        world.reconcile()
    assert (world.reason("Degraded"), world.truth("Ready")) == ("Hanging", "True")


def test_a_service_without_a_ready_pod_is_neither_available_nor_ready() -> None:
    world = settled({"spec.replicas": 3})
    lose(world, "mine-1", "mine-2", "mine-3")
    world.step()
    assert (world.truth("Available"), world.message("Available")) == (
        "False",
        "0 of 3 replicas are ready.",
    )
    assert (world.truth("Ready"), world.reason("Ready")) == ("False", "TooFewReplicas")


def test_ready_is_not_taken_over_from_before_a_suspension() -> None:
    world = suspended()
    world.edit({"spec.suspend": False})
    seen = []
    for _ in range(12):
        world.step()
        seen.append((world.truth("Ready"), world.reason("Ready")))
    assert ("Unknown", "ProbePending") in seen
    assert seen[-1] == ("True", "ProbeSucceeded")
    assert seen.index(("Unknown", "ProbePending")) < seen.index(("True", "ProbeSucceeded"))
