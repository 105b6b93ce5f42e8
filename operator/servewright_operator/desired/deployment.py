"""The Deployment that keeps the replicas alive, also while no operator runs.

How many there are and how they are replaced is what spec says now; what runs in them is the stored
template and nothing else, so that neither a new operator nor a new default restarts a replica.
"""

from __future__ import annotations

import copy

from servewright_api.modelservice import ModelService
from servewright_operator import kinds, names
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object

# ReplicaSets of earlier revisions that stay, for people to look at: templates to go back to are in
# the ControllerRevisions.
_HISTORY = 2


def build(owner: Owner, service: ModelService, template: Object) -> Object:
    """Deployment NAME."""
    spec = service.spec
    return {
        **child(kinds.DEPLOYMENT, owner),
        "spec": {
            "replicas": 0 if spec.suspend else spec.replicas,
            "selector": {"matchLabels": names.selector(owner.key.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": spec.rollout.max_surge,
                    "maxUnavailable": spec.rollout.max_unavailable,
                },
            },
            "paused": False,  # said, so that a pause by someone else is undone: it stops rollbacks
            "minReadySeconds": 0,  # a ready replica has answered the probe
            "progressDeadlineSeconds": spec.rollout.progress_deadline_seconds,
            "revisionHistoryLimit": _HISTORY,
            "template": copy.deepcopy(template),
        },
    }
