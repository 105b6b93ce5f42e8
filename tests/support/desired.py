"""What the operator would apply in a situation: inputs of the builders, in short."""

from __future__ import annotations

from collections.abc import Sequence

from servewright_api.modelservice import ModelService
from servewright_api.revision import revision
from servewright_operator import desired
from servewright_operator.desired import pod, secrets
from servewright_operator.names import Key
from servewright_operator.objects import Object, Observed, Rollout, StoredRevision
from servewright_operator.settings import PodDefaults

PODS = PodDefaults(
    "example.com/servewright-runtime:0.1.0", "example.com/servewright-runtime-cuda:0.1.0"
)
UID = "11111111-2222-3333-4444-555555555555"


def make_rollout(
    service: ModelService,
    *earlier: ModelService,
    pods: PodDefaults = PODS,
    rolled_back: bool = False,
) -> Rollout:
    """`service` is wanted after `earlier`; rolled_back: it failed and the one before it runs."""
    asked_for = {revision(each): each for each in (*earlier, service)}
    kept = [
        StoredRevision(name, number, pod.template(each, name, pods))
        for number, (name, each) in enumerate(asked_for.items(), start=1)
    ]
    *_, last_good, wanted = [None, *(stored.name for stored in kept)]
    assert wanted is not None
    return Rollout(
        wanted=wanted,
        target=last_good if rolled_back and last_good else wanted,
        kept=kept,
        last_good=last_good,
        failed=wanted if rolled_back else None,
        why="it crashed" if rolled_back else "",
    )


def make_observed(
    service: ModelService, rollout: Rollout, *, pod_monitors: bool = False, uid: str = UID
) -> Observed:
    """What a cluster shows that knows the ModelService, with a value for each Secret made."""
    made = secrets.wanted([stored.template for stored in rollout.kept])
    return Observed(
        key=Key(service.metadata.namespace, service.metadata.name),
        service={"metadata": {"name": service.metadata.name, "uid": uid}},
        secrets={name: f"value-of-{name}" for name in made},
        has_pod_monitors=pod_monitors,
    )


def children_of(
    service: ModelService,
    *earlier: ModelService,
    pods: PodDefaults = PODS,
    rolled_back: bool = False,
    pod_monitors: bool = False,
    uid: str = UID,
) -> list[Object]:
    """Every child."""
    rollout = make_rollout(service, *earlier, pods=pods, rolled_back=rolled_back)
    observed = make_observed(service, rollout, pod_monitors=pod_monitors, uid=uid)
    return desired.build(service, rollout, observed)


def one(children: Sequence[Object], kind: str) -> Object:
    """The only child of a kind."""
    (child,) = (child for child in children if child["kind"] == kind)
    return child
