"""The children of a ModelService: pure builders, one kind a file.

Nothing here reads the cluster, the clock or the environment, so the same input always gives the
same bytes and a golden file can hold the whole answer.
"""

from __future__ import annotations

from servewright_api.modelservice import ModelService
from servewright_operator.desired import (
    controllerrevision,
    deployment,
    disruptionbudget,
    networkpolicy,
    podmonitor,
    secrets,
)
from servewright_operator.desired import service as service_
from servewright_operator.desired.child import Owner
from servewright_operator.objects import Object, Observed, Rollout


def build(service: ModelService, rollout: Rollout, observed: Observed) -> list[Object]:
    """Every child, in the order to apply them: what a pod needs is there before it."""
    owner = Owner(observed.key, observed.service["metadata"]["uid"])
    made = secrets.wanted(revision.template for revision in rollout.kept)
    in_use = {rollout.wanted, rollout.target, rollout.last_good}
    running = [revision.template for revision in rollout.kept if revision.name in in_use]
    return [
        *(
            secrets.build(owner, name, key, observed.secrets[name])
            for name, key in made.items()
            # Of a revision that is only now remembered again it is read in the next pass.
            if name in observed.secrets
        ),
        *(controllerrevision.build(owner, revision) for revision in rollout.kept),
        networkpolicy.build(owner, running),
        service_.build(owner),
        deployment.build(owner, service, rollout.template()),
        *([disruptionbudget.build(owner)] if _has_several(service) else []),
        *([podmonitor.build(owner)] if observed.has_pod_monitors else []),
    ]


def _has_several(service: ModelService) -> bool:
    return service.spec.replicas > 1 and not service.spec.suspend
