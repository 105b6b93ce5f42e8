"""Which revision runs, and what is remembered: over time, as a person and faults would have it."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest

from servewright_operator import names
from servewright_operator.decide import plan
from servewright_operator.settings import PodDefaults
from support import pod_objects
from support.pretend import Pretend

ONE, TWO, THREE = ({"spec.engine.threads": number} for number in (1, 2, 3))


def settled(**spec: object) -> Pretend:
    world = Pretend({"spec.engine.threads": 1, **spec})
    world.reconcile()
    world.settle()
    return world


def edited(world: Pretend, changes: dict[str, int]) -> str:
    """Edit and settle; the revision that is wanted then."""
    world.edit(changes)
    world.reconcile()
    wanted: str = world.status["revision"]
    world.settle()
    return wanted


def template(world: Pretend, revision: str) -> object:
    found = world.children[("ControllerRevision", names.revision_object("mine", revision))]
    return found["data"]["template"]


def test_a_new_operator_with_another_image_restarts_nothing() -> None:
    world = settled()
    before = copy.deepcopy(world.deployment)
    world.restart_operator(
        PodDefaults("registry.example/runtime:9", "registry.example/cuda:9", "Always")
    )
    for _ in range(10):
        world.step()
    assert world.deployment["spec"] == before["spec"]
    assert set(world.pods) == {"mine-1"}


def test_a_new_value_of_restarted_at_takes_todays_image() -> None:
    world = settled()
    first = world.running
    world.restart_operator(PodDefaults("registry.example/runtime:9", "registry.example/cuda:9"))
    world.service["metadata"]["annotations"] = {names.RESTARTED_AT_ANNOTATION: "2026-11-23T05:00Z"}
    world.reconcile()
    world.settle()
    assert world.running != first
    containers = world.deployment["spec"]["template"]["spec"]["containers"]
    assert {container["image"] for container in containers} == {"registry.example/runtime:9"}
    assert world.truth("Ready") == "True"


def test_the_deployment_has_the_stored_template_byte_for_byte() -> None:
    world = settled()
    first = world.running
    edited(world, TWO)
    world.restart_operator(PodDefaults("registry.example/runtime:9", "registry.example/cuda:9"))
    stored = copy.deepcopy(template(world, first))
    assert edited(world, ONE) == first
    assert world.deployment["spec"]["template"] == stored == template(world, first)


def test_scaling_and_pausing_make_no_revision() -> None:
    world = settled()
    first = world.running
    for changes in (
        {"spec.replicas": 2},
        {"spec.suspend": True},
        {"spec.suspend": False},
        {"spec.probe.intervalSeconds": 30},
        {"spec.rollout.autoRollback": False},
    ):
        world.edit(changes)
        world.reconcile()
        world.settle()
    assert world.revisions == [first]


def test_a_failed_revision_is_rolled_back_and_the_stable_pod_stays() -> None:
    world = settled()
    good = world.running
    world.fate = "hang"
    failed = edited(world, TWO)
    assert world.running == good
    assert world.status["failedRevision"] == failed
    assert world.status["lastGoodRevision"] == good
    assert set(world.pods) == {"mine-1"}
    assert world.reason("Ready") == "RolledBack"
    assert world.truth("Available") == "True"


def test_that_it_failed_is_written_before_it_is_rolled_back() -> None:
    """An operator that dies in between leaves the next one to know it."""
    world = settled()
    world.fate = "crash"
    world.edit(TWO)
    world.reconcile()
    failed = world.status["revision"]
    while "failedRevision" not in world.status:
        assert world.running in (failed, world.status["lastGoodRevision"])
        world.step()
    assert world.running == failed
    assert world.requeue_after_s == 0
    world.reconcile()
    assert world.running == world.status["lastGoodRevision"] != failed


@pytest.mark.parametrize("minutes", [0, 600])
def test_neither_restart_nor_time_tries_a_failed_revision_again(minutes: int) -> None:
    world = settled()
    world.fate = "crash"
    failed = edited(world, TWO)
    world.fate, world.fates[failed] = "good", "good"
    world.restart_operator(PodDefaults("registry.example/runtime:9", "registry.example/cuda:9"))
    world.now += timedelta(minutes=minutes)
    for _ in range(10):
        world.step()
        assert world.running != failed
    assert world.status["failedRevision"] == failed


def test_why_it_failed_is_told_as_long_as_it_counts() -> None:
    world = settled()
    world.fate = "crash"
    edited(world, TWO)
    told = world.message("Ready")
    assert "the probe wanted 'Paris', but got 'a a a a'" in told
    world.status["lastFailure"] = {"pod": "mine-1", "reason": "OOMKilled", "message": "another"}
    world.restart_operator()
    world.reconcile()
    assert world.message("Ready") == told


def test_a_failed_pod_that_ends_once_more_changes_nothing_of_what_is_told() -> None:
    """It lives a moment longer than the decision, and its next end reads otherwise."""
    world = settled()
    world.fate = "crash"
    world.edit(TWO)
    while "failedRevision" not in world.status:
        world.reconcile()
        world.step()
    failed = world.status["failedRevision"]
    told = world.status["lastFailure"]
    name = next(name for name in world.pods if name != "mine-1")
    words = pod_objects.own_words("ProbeFailed", "mine: the probe wanted 'Paris', but got 'b b'.")
    world.pods[name] = pod_objects.crashed(pod_objects.pod(failed, name), message=words, restarts=4)
    world.reconcile()
    assert world.status["lastFailure"] == told
    assert told["message"] in world.message("Ready")


def test_putting_the_spec_back_is_normal_again() -> None:
    world = settled()
    good = world.running
    world.fate = "crash"
    edited(world, TWO)
    assert edited(world, ONE) == good
    assert world.truth("Ready") == "True"
    assert "failedRevision" not in world.status
    assert set(world.pods) == {"mine-1"}


def test_another_spec_is_tried() -> None:
    world = settled()
    world.fate = "crash"
    edited(world, TWO)
    world.fate = "good"
    wanted = edited(world, THREE)
    assert world.running == wanted == world.status["lastGoodRevision"]
    assert "failedRevision" not in world.status
    assert world.truth("Ready") == "True"


def test_a_failed_spec_that_comes_back_after_another_is_tried_again() -> None:
    world = settled()
    world.fate = "crash"
    failed = edited(world, TWO)
    world.fate = "good"
    edited(world, THREE)
    world.fates[failed] = "good"
    assert edited(world, TWO) == failed
    assert world.running == failed
    assert world.truth("Ready") == "True"


def test_without_auto_rollback_it_is_only_reported() -> None:
    world = settled(**{"spec.rollout.autoRollback": False})
    world.fate = "crash"
    failed = edited(world, TWO)
    assert world.running == failed
    assert "failedRevision" not in world.status
    assert (world.reason("Progressing"), world.reason("Ready")) == (
        "ProgressDeadlineExceeded",
        "ProgressDeadlineExceeded",
    )
    assert world.truth("Available") == "True"


def test_auto_rollback_that_is_switched_on_later_rolls_back() -> None:
    world = settled(**{"spec.rollout.autoRollback": False})
    good = world.running
    world.fate = "crash"
    edited(world, TWO)
    world.edit({"spec.rollout.autoRollback": True})
    world.reconcile()
    world.settle()
    assert world.running == good
    assert world.reason("Ready") == "RolledBack"


def test_a_first_revision_that_fails_is_left_for_inspection() -> None:
    world = Pretend(fate="crash")
    world.reconcile()
    world.settle()
    assert world.pods
    assert "failedRevision" not in world.status
    assert "lastGoodRevision" not in world.status
    assert (world.truth("Progressing"), world.reason("Progressing")) == (
        "False",
        "ProgressDeadlineExceeded",
    )


def test_a_slow_revision_that_keeps_its_deadline_is_not_rolled_back() -> None:
    world = settled()
    world.fate = "slow"
    wanted = edited(world, TWO)
    assert world.running == wanted
    assert world.truth("Ready") == "True"


def test_a_bad_revision_that_came_while_suspended_is_rolled_back_after_it() -> None:
    """Kubernetes counts a rollout to no replicas as complete, and sets no deadline afterwards."""
    world = settled()
    good = world.running
    world.edit({"spec.suspend": True})
    world.settle()
    world.fate = "crash"
    world.edit(TWO)
    world.reconcile()
    world.settle()
    assert world.status["lastGoodRevision"] == good  # that nothing failed proves nothing
    world.edit({"spec.suspend": False})
    world.reconcile()
    world.settle()
    assert world.running == good
    assert world.reason("Ready") == "RolledBack"
    assert world.truth("Available") == "True"


def test_three_revisions_are_remembered_by_the_order_in_which_they_came() -> None:
    world = settled()
    came = [world.running, *(edited(world, {"spec.engine.threads": n}) for n in (2, 3, 4, 5))]
    assert world.revisions == came[-3:]


def test_a_good_revision_is_remembered_however_many_fail_after_it() -> None:
    world = settled()
    good = world.running
    world.fate = "crash"
    for number in (2, 3, 4, 5):
        edited(world, {"spec.engine.threads": number})
    assert good in world.revisions
    assert len(world.revisions) == 3
    assert world.running == good


def test_a_memory_that_was_deleted_comes_back_from_the_deployment() -> None:
    """Else a newer operator would render the revision anew, and restart what serves."""
    world = settled()
    before = copy.deepcopy(world.deployment["spec"])
    name = ("ControllerRevision", names.revision_object("mine", world.running))
    # What the API server adds to a template's metadata.
    world.deployment["spec"]["template"]["metadata"]["creationTimestamp"] = None
    del world.children[name]
    world.restart_operator(PodDefaults("registry.example/runtime:9", "registry.example/cuda:9"))
    world.reconcile()
    assert name in world.children
    assert world.deployment["spec"] == before


def test_without_memory_of_the_good_revision_nothing_is_rolled_back() -> None:
    world = settled()
    good = world.running
    world.fate = "crash"
    world.edit(TWO)
    world.reconcile()
    del world.children[("ControllerRevision", names.revision_object("mine", good))]
    world.settle()
    assert world.running != good
    assert world.reason("Ready") == "ProgressDeadlineExceeded"


def test_a_status_that_was_lost_is_learnt_again() -> None:
    world = settled()
    good = copy.deepcopy(world.status)
    del world.service["status"]
    world.settle()
    assert world.status["lastGoodRevision"] == good["lastGoodRevision"]
    assert world.truth("Ready") == "True"


def test_a_deadline_of_the_deployments_last_template_does_not_count() -> None:
    world = settled()
    world.fate = "crash"
    edited(world, TWO)
    world.deployment["status"]["conditions"][1].update(
        status="False", reason="ProgressDeadlineExceeded"
    )
    world.edit(THREE)
    for _ in range(3):  # the new template is applied; the Deployment's controller sleeps
        plan(world.observed(), world.defaults, world.now)
        world.reconcile()
    assert "failedRevision" not in world.status
    assert world.running == world.status["revision"]
