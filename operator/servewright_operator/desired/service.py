"""The address that clients call, and the operator's own probe too."""

from __future__ import annotations

from servewright_operator import kinds, names
from servewright_operator.desired.child import Owner, child
from servewright_operator.objects import Object


def build(owner: Owner) -> Object:
    """Service NAME."""
    return {
        **child(kinds.SERVICE, owner),
        "spec": {
            "type": "ClusterIP",
            "publishNotReadyAddresses": False,  # ready is what answered the probe
            "selector": names.selector(owner.key.name),
            "ports": [
                {
                    "name": names.HTTP_PORT_NAME,
                    "port": names.HTTP_PORT,
                    "targetPort": names.HTTP_PORT_NAME,
                    "protocol": "TCP",
                }
            ],
        },
    }
