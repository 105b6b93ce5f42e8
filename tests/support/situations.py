"""Situations that a ModelService gets into, each played in a pretended cluster."""

from __future__ import annotations

from collections.abc import Callable

from support.pretend import Fate, Pretend

OTHER_MODEL = {"spec.engine.threads": 2}


def settled(changes: dict[str, object] | None = None, fate: Fate = "good") -> Pretend:
    world = Pretend(changes, fate)
    world.reconcile()
    world.settle()
    return world


def truths(world: Pretend) -> dict[str, str]:
    return {one["type"]: one["status"] for one in world.status["conditions"]}


def just_created() -> Pretend:
    world = Pretend()
    world.reconcile()
    return world


def being_loaded() -> Pretend:
    world = just_created()
    for _ in range(3):
        world.step()
    return world


def serving_well() -> Pretend:
    return settled()


def with_three_replicas() -> Pretend:
    return settled({"spec.replicas": 3})


def first_revision_crashes() -> Pretend:
    return settled(fate="crash")


def first_revision_has_no_node() -> Pretend:
    return settled(fate="no node")


def image_is_missing() -> Pretend:
    return settled(fate="no image")


def rolling_out() -> Pretend:
    world = settled()
    world.edit(OTHER_MODEL)
    for _ in range(3):
        world.step()
    return world


def rolled_back() -> Pretend:
    world = settled()
    world.fate = "crash"
    world.edit(OTHER_MODEL)
    world.reconcile()
    world.settle()
    return world


def rolled_back_because_it_hung() -> Pretend:
    world = settled()
    world.fate = "hang"
    world.edit(OTHER_MODEL)
    world.reconcile()
    world.settle()
    return world


def not_rolled_back_where_it_must_not() -> Pretend:
    world = settled({"spec.rollout.autoRollback": False})
    world.fate = "crash"
    world.edit(OTHER_MODEL)
    world.reconcile()
    world.settle()
    return world


def does_not_answer() -> Pretend:
    return settled(fate="mute")


def suspended() -> Pretend:
    world = settled()
    world.edit({"spec.suspend": True})
    world.reconcile()
    world.settle()
    return world


def scaled_to_zero() -> Pretend:
    return settled({"spec.replicas": 0})


def refused() -> Pretend:
    world = settled()
    world.edit({"spec.engine.threads": 0, "spec.limits.maxQueued": -1})
    world.settle()
    return world


SITUATIONS: list[Callable[[], Pretend]] = [
    just_created,
    being_loaded,
    serving_well,
    with_three_replicas,
    first_revision_crashes,
    first_revision_has_no_node,
    image_is_missing,
    rolling_out,
    rolled_back,
    rolled_back_because_it_hung,
    not_rolled_back_where_it_must_not,
    does_not_answer,
    suspended,
    scaled_to_zero,
    refused,
]
