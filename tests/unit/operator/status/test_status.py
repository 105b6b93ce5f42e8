"""The story that status tells, situation by situation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from servewright_operator.decide import plan
from servewright_operator.objects import Note, PodWords
from servewright_operator.settings import PodDefaults
from support import pod_objects
from support.pretend import KEY, PODS, Pretend
from support.situations import SITUATIONS, refused, rolled_back, settled, truths
from support.tree import ROOT

GOLDEN = ROOT / "tests" / "golden" / "status"


# One golden a situation


def names_of(situation: Callable[[], Pretend]) -> str:
    return situation.__name__.replace("_", "-")


@pytest.mark.parametrize("situation", SITUATIONS, ids=names_of)
def test_the_status_is_as_the_file_says(
    situation: Callable[[], Pretend], golden: Callable[[Path, str], None]
) -> None:
    world = situation()
    events = [f"{note.type} {note.reason}: {note.message}" for note in world.told]
    told = yaml.safe_dump_all(
        [world.status, events], sort_keys=False, allow_unicode=True, width=100
    )
    golden(GOLDEN / f"{names_of(situation)}.yaml", told)


@pytest.mark.parametrize("situation", SITUATIONS, ids=names_of)
def test_a_second_look_at_the_same_world_changes_nothing(
    situation: Callable[[], Pretend],
) -> None:
    world = situation()
    again = plan(world.observed(), world.defaults, world.now)
    assert again.status == world.status
    assert again.notes == []


@pytest.mark.parametrize("situation", SITUATIONS, ids=names_of)
def test_a_decision_changes_nothing_that_it_was_given(situation: Callable[[], Pretend]) -> None:
    seen = situation().observed()
    before = copy.deepcopy(seen)
    plan(seen, PODS, pod_objects.BORN + timedelta(hours=1))
    assert seen == before


@pytest.mark.parametrize("situation", SITUATIONS, ids=names_of)
def test_a_restarted_operator_writes_nothing(situation: Callable[[], Pretend]) -> None:
    """It remembers no call, no state and no word, and its defaults are new."""
    world = situation()
    world.restart_operator(PodDefaults("registry.example/runtime:2", "registry.example/cuda:2"))
    writes, children = world.status_writes, len(world.child_writes)
    made = world.reconcile()
    assert (world.status_writes, len(world.child_writes)) == (writes, children)
    assert made.notes == []


@pytest.mark.parametrize("situation", SITUATIONS, ids=names_of)
def test_conditions_never_contradict_each_other(situation: Callable[[], Pretend]) -> None:
    assert_no_contradiction(situation())


def assert_no_contradiction(world: Pretend) -> None:
    found = truths(world)
    assert list(found) == [
        "Admitted",
        "Scheduled",
        "ModelReady",
        "Available",
        "Progressing",
        "Degraded",
        "Ready",
    ]
    if found["Ready"] == "True":
        assert found["Admitted"] == found["Available"] == found["ModelReady"] == "True"
        assert found["Progressing"] == "False"
        assert world.probe is None or world.probe.revision == world.running
    if "Unknown" in (found["Admitted"], found["Available"]):
        assert found["Ready"] != "True"
    for one in world.status["conditions"]:
        assert one["observedGeneration"] == world.service["metadata"]["generation"]
        assert one["message"]


# The name that clients write


def test_the_models_name_is_told_before_anything_runs() -> None:
    world = Pretend({"spec.model.name": "clients-say"}, fate="no node")
    world.reconcile()
    assert world.status["model"] == {"name": "clients-say"}
    assert world.status["endpoints"] == {"openai": "http://mine.default.svc:8000/v1"}


def test_the_models_name_is_that_of_the_revision_which_is_to_run() -> None:
    world = settled()
    known = world.status["model"]
    assert known["name"] == "mine"
    world.fate = "crash"
    world.edit({"spec.model.name": "newer"})
    world.reconcile()
    assert world.status["model"]["name"] == "newer"
    world.settle()
    assert world.status["model"] == known  # it was rolled back


def test_a_refused_spec_leaves_the_models_name() -> None:
    assert refused().status["model"] == settled().status["model"]


# Times


def test_a_transition_time_changes_with_its_condition_alone() -> None:
    world = settled()
    before = {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]}
    world.edit({"spec.replicas": 2})
    for _ in range(10):
        world.step()
    after = {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]}
    assert before.pop("Scheduled") < after.pop("Scheduled")  # the new pod waited for a node
    assert after == before
    assert world.message("Available") == "2 of 2 replicas are ready."


def test_what_has_no_time_of_its_own_keeps_the_time_when_it_was_first_seen() -> None:
    world = Pretend(fate="no image")
    world.reconcile()
    for _ in range(4):
        world.step()
    first = world.status["lastFailure"]
    for _ in range(4):
        world.step()
    assert world.status["lastFailure"] == first
    assert first["reason"] == "ErrImagePull"


def test_a_message_that_lost_the_cause_does_not_replace_one_that_told_it() -> None:
    """As older kubelets say it: the cause once, then only that they back off."""
    world = Pretend(fate="no image")
    world.reconcile()
    for _ in range(4):
        world.step()
    told = copy.deepcopy(world.status)
    pod = world.pods["mine-1"]
    waiting = pod["status"]["initContainerStatuses"][0]["state"]["waiting"]
    waiting.update(
        reason="ImagePullBackOff", message=f'Back-off pulling image "{pod_objects.IMAGE}"'
    )
    world.reconcile()
    assert world.status == told


# Failures


def test_a_log_that_is_gone_does_not_take_the_log_that_was_told() -> None:
    world = Pretend(fate="crash")
    for _ in range(5):
        world.step()
    words = {"uid-mine-1": PodWords(log_tail="loading\nboom")}
    made = plan(replace(world.observed(), words=words), PODS, world.now)
    assert made.status["lastFailure"]["logTail"] == "loading\nboom"
    world.service["status"] = made.status
    again = plan(world.observed(), PODS, world.now)
    assert again.status == made.status


def test_a_restart_that_was_overcome_is_told_once() -> None:
    world = settled()
    base = world.pods["mine-1"]
    world.pods["mine-1"] = pod_objects.crashed(base, 137, "OOMKilled", "", is_back=True)
    made = world.reconcile()
    assert [(note.type, note.reason) for note in made.notes] == [("Warning", "Restarted")]
    assert "OOMKilled (exit code 137)" in made.notes[0].message
    assert world.status["lastFailure"]["reason"] == "OOMKilled"
    assert world.truth("Degraded") == "False"
    assert world.reconcile().notes == []


def test_of_several_failing_pods_the_one_that_was_told_stays() -> None:
    world = Pretend({"spec.replicas": 3}, "crash")
    world.reconcile()
    for _ in range(6):
        world.step()
    told = copy.deepcopy(world.status["lastFailure"])
    for name, seconds in (("mine-2", 41), ("mine-3", 42), ("mine-2", 81)):
        last = world.pods[name]["status"]["containerStatuses"][0]["lastState"]["terminated"]
        last["finishedAt"] = pod_objects.after(seconds)
        world.reconcile()
    assert world.status["lastFailure"]["pod"] == told["pod"]


# Refused specs, and those that go


def test_a_refused_spec_leaves_what_serves_alone() -> None:
    world = settled()
    children = copy.deepcopy(world.children)
    world.edit({"spec.engine.threads": 0})
    made = world.reconcile()
    assert made.children is None
    assert world.children == children
    assert truths(world) | {"Ready": "False", "Admitted": "False"} == truths(world)
    assert world.truth("Available") == "True"
    assert "spec.engine.threads: must be at least 1, but 0 came." in world.message("Admitted")
    assert [(note.type, note.reason) for note in made.notes] == [
        ("Warning", "InvalidSpec"),
        ("Warning", "NotReady"),
    ]
    world.edit({"spec.engine.threads": None})
    world.settle()
    assert world.truth("Ready") == "True"
    assert world.children == children


def test_a_spec_that_was_refused_from_the_start_has_no_children() -> None:
    world = Pretend({"spec.engine.threads": 0})
    made = world.reconcile()
    assert made.children is None
    assert world.reason("Ready") == "InvalidSpec"
    assert_no_contradiction(world)


def test_a_service_that_is_being_deleted_is_left_alone() -> None:
    world = settled()
    world.service["metadata"]["deletionTimestamp"] = pod_objects.after(900)
    made = world.reconcile()
    assert (made.children, made.status, made.notes, made.probe) == (None, world.status, (), None)


# Notes, and a status that is none


def test_events_are_told_on_transitions_alone() -> None:
    world = settled()
    told = [(note.type, str(note.reason)) for note in world.told]
    assert told == [("Normal", "RollingOut"), ("Normal", "Complete"), ("Normal", "Ready")]
    for _ in range(10):
        world.step()
    assert len(world.told) == 3


def test_a_stored_status_of_nonsense_is_replaced() -> None:
    world = settled()
    good = copy.deepcopy(world.status)
    for nonsense in ({}, {"conditions": "x", "lastProbe": 1, "model": [], "lastFailure": None}):
        seen = world.observed()
        seen.service["status"] = nonsense
        made = plan(seen, PODS, world.now)
        kinds = [one["type"] for one in made.status["conditions"]]
        assert kinds == [one["type"] for one in good["conditions"]]
        assert made.status["lastGoodRevision"] == good["lastGoodRevision"]


def test_notes_are_events_of_the_two_types_that_kubernetes_has() -> None:
    world = rolled_back()
    assert {note.type for note in world.told} == {"Normal", "Warning"}
    assert all(isinstance(note, Note) and note.message for note in world.told)
    assert KEY.name == "mine"
