"""Situations that a ModelService gets into, each played in a pretended cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from support.pretend import Fate, Pretend

OTHER_MODEL = {"spec.engine.threads": 2}


def settled(changes: Mapping[str, object] | None = None, fate: Fate = "good") -> Pretend:
    world = Pretend(changes, fate)
    world.reconcile()
    world.settle()
    return world


def settled_after(
    changes: Mapping[str, object],
    fate: Fate = "good",
    spec: Mapping[str, object] | None = None,
) -> Pretend:
    """What served well with `spec`, once changes of that fate have settled."""
    world = settled(spec)
    world.fate = fate
    world.edit(changes)
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
    return settled_after(OTHER_MODEL, "crash")


def rolled_back_because_it_hung() -> Pretend:
    return settled_after(OTHER_MODEL, "hang")


def not_rolled_back_where_it_must_not() -> Pretend:
    return settled_after(OTHER_MODEL, "crash", {"spec.rollout.autoRollback": False})


def does_not_answer() -> Pretend:
    return settled(fate="mute")


def suspended() -> Pretend:
    return settled_after({"spec.suspend": True})


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
