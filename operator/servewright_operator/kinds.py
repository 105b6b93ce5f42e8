"""The kinds of Kubernetes objects that the operator touches, and where they are kept."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of namespaced object."""

    api_version: str
    name: str  # as in a manifest's `kind`
    plural: str  # as in a URL

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        """Where the API server keeps one object, all of a namespace, or (None) all there are."""
        root = "/apis" if "/" in self.api_version else "/api"
        parts = [root, self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


MODEL_SERVICE = Kind("servewright.io/v1alpha1", "ModelService", "modelservices")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
CONTROLLER_REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
SERVICE = Kind("v1", "Service", "services")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")
POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

# Made by us, watched and listed. Secrets are made too, but seen one by one: to list them would
# take the right to read everybody's.
CHILDREN = (
    DEPLOYMENT,
    CONTROLLER_REVISION,
    SERVICE,
    NETWORK_POLICY,
    DISRUPTION_BUDGET,
)
# What is watched and listed wherever the operator runs; PodMonitors besides, where they exist.
WATCHED = (MODEL_SERVICE, *CHILDREN, POD)

BY_NAME = {
    kind.name: kind for kind in (MODEL_SERVICE, *CHILDREN, POD_MONITOR, POD, SECRET, EVENT, LEASE)
}
