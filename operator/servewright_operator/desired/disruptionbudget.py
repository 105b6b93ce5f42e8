"""The PodDisruptionBudget: a drain of nodes takes one replica at a time."""

from __future__ import annotations

from servewright_operator import kinds, names
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object


def build(owner: Owner) -> Object:
    """PodDisruptionBudget NAME."""
    return {
        **child(kinds.DISRUPTION_BUDGET, owner),
        "spec": {
            "maxUnavailable": 1,
            # A replica that serves nobody must not hold up the drain of its node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(owner.key.name)},
        },
    }
