"""What holds whatever happens: any history of edits, fates, restarts and lost memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from servewright_operator.decide import plan
from servewright_operator.settings import PodDefaults
from support.odd import spoil
from support.pretend import Fate, Pretend

FATES: list[Fate] = ["good", "slow", "crash", "hang", "no node", "no image", "mute"]
ORDER = ["Admitted", "Scheduled", "ModelReady", "Available", "Progressing", "Degraded", "Ready"]

_EDITS = st.one_of(
    st.builds(lambda n: {"spec.engine.threads": n}, st.integers(1, 3)),
    st.builds(lambda n: {"spec.replicas": n}, st.integers(0, 3)),
    st.builds(lambda on: {"spec.suspend": on}, st.booleans()),
    st.builds(lambda on: {"spec.rollout.autoRollback": on}, st.booleans()),
    st.just({"spec.engine.threads": 0}),  # refused
)
_EVENTS = st.one_of(
    st.tuples(st.just("edit"), _EDITS),
    st.tuples(st.just("fate"), st.sampled_from(FATES)),
    st.tuples(st.just("restart"), st.integers(1, 3)),
    st.tuples(st.just("steps"), st.integers(1, 30)),
    st.tuples(st.just("forget"), st.sampled_from(["ControllerRevision", "Service", "status"])),
)


def happen(world: Pretend, event: tuple[str, Any]) -> None:
    what, detail = event
    match what:
        case "edit":
            world.edit(detail)
        case "fate":
            world.fate = detail
        case "restart":
            world.restart_operator(
                PodDefaults(f"registry.example/runtime:{detail}", f"registry.example/cuda:{detail}")
            )
        case "steps":
            for _ in range(detail):
                world.step()
                check(world)
        case "forget" if detail == "status":
            world.service.pop("status", None)
        case "forget":
            for name in [name for name in world.children if name[0] == detail]:
                del world.children[name]


def check(world: Pretend) -> None:
    """What holds at every moment."""
    conditions = {one["type"]: one for one in world.status["conditions"]}
    found = {kind: one["status"] for kind, one in conditions.items()}
    assert list(conditions) == ORDER
    if found["Ready"] == "True":
        assert found["Admitted"] == found["Available"] == "True"
        assert found["Progressing"] == "False"
        assert world.running == world.status["revision"] == world.status["lastGoodRevision"]
        assert "failedRevision" not in world.status
    assert (conditions["Ready"]["reason"] == "RolledBack") <= ("failedRevision" in world.status)
    for one in conditions.values():
        assert one["observedGeneration"] == world.service["metadata"]["generation"]
        assert len(one["message"]) <= 4096
    if world.probe is not None:
        assert world.probe.revision == world.running
    assert len(world.revisions) <= 4
    if world.children and found["Admitted"] == "True":
        assert world.running in world.revisions


@settings(max_examples=10)
@given(st.lists(_EVENTS, max_size=12), st.booleans())
def test_any_history_comes_to_rest(events: list[tuple[str, Any]], remembers: bool) -> None:
    world = Pretend()
    for event in events:
        happen(world, event)
    world.settle(most=200)
    check(world)
    again = plan(world.observed(), world.defaults, world.now)
    assert again.status == world.status
    assert again.notes == []
    if not remembers:
        world.restart_operator()
        assert plan(world.observed(), world.defaults, world.now).status == world.status


@settings(max_examples=10)
@given(st.lists(_EVENTS, max_size=12))
def test_a_spec_that_is_good_in_the_end_is_ready_in_the_end(
    events: list[tuple[str, Any]],
) -> None:
    """Whatever failed before: a revision that nobody tried yet gets its chance."""
    world = Pretend()
    for event in events:
        happen(world, event)
    world.fate = "good"
    world.edit({"spec.engine.threads": 7, "spec.replicas": 2, "spec.suspend": False})
    world.reconcile()
    world.settle(most=200)
    assert world.truth("Ready") == "True"
    assert world.status["readyReplicas"] == 2


@settings(max_examples=10)
@given(st.lists(_EVENTS, max_size=12))
def test_a_service_that_was_good_stays_available_through_any_revision(
    events: list[tuple[str, Any]],
) -> None:
    world = Pretend()
    world.reconcile()
    world.settle()
    pods = set(world.pods)
    for event in events:
        if event[0] in ("fate", "restart", "steps"):
            happen(world, event)
    world.fate = "crash"
    world.edit({"spec.engine.threads": 7})
    for _ in range(40):
        world.step()
        assert world.truth("Available") == "True"
    assert pods <= set(world.pods)  # they never stopped serving
    assert world.reason("Ready") == "RolledBack"


@settings(max_examples=40)
@given(st.data())
def test_an_odd_world_crashes_nothing(data: st.DataObject) -> None:
    """Fields of pods, of the Deployment and of the stored status that are missing or not of
    their type."""
    world = Pretend(fate=data.draw(st.sampled_from(FATES)))
    world.reconcile()
    for _ in range(data.draw(st.integers(0, 25))):
        world.step()
    live = world.children[("Deployment", "mine")]
    for thing in (world.service["status"], live.get("status"), *world.pods.values()):
        spoil(data, thing)
    made = plan(world.observed(), world.defaults, world.now + timedelta(seconds=30))
    assert [one["type"] for one in made.status["conditions"]] == ORDER
