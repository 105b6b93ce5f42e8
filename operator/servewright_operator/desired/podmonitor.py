"""The PodMonitor, by which the Prometheus operator finds the replicas' metrics."""

from __future__ import annotations

from servewright_operator import kinds, names
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object


def build(owner: Owner) -> Object:
    """PodMonitor NAME."""
    return {
        **child(kinds.POD_MONITOR, owner),
        "spec": {
            "selector": {"matchLabels": names.selector(owner.key.name)},
            "podTargetLabels": [names.SERVICE_LABEL, names.REVISION_LABEL],
            "podMetricsEndpoints": [{"port": names.ADMIN_PORT_NAME, "path": "/metrics"}],
        },
    }
