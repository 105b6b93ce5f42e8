"""The kinds that the fake API server knows, and how a client finds them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

_KINDS = [
    ("v1", "namespaces", "Namespace", False),
    ("v1", "pods", "Pod", True),
    ("v1", "services", "Service", True),
    ("v1", "secrets", "Secret", True),
    ("v1", "events", "Event", True),
    ("apps/v1", "deployments", "Deployment", True),
    ("apps/v1", "controllerrevisions", "ControllerRevision", True),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", True),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    ("coordination.k8s.io/v1", "leases", "Lease", True),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", False),
    ("servewright.io/v1alpha1", "modelservices", "ModelService", True),
]
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
# By its plural, which paths have.
KIND = {plural: kind for _, plural, kind, _ in _KINDS}


def discovery(path: str) -> Object:
    """What the API server answers about a path that names no kind: versions, groups, kinds."""
    versions = sorted({version for version, *_ in _KINDS if "/" in version})
    if path.rstrip("/") == "/api":
        return {"versions": ["v1"]}
    if path.rstrip("/") == "/apis":
        groups = []
        for each in versions:
            group, version = each.split("/")
            one = {"groupVersion": each, "version": version}
            groups.append({"name": group, "versions": [one], "preferredVersion": one})
        return {"groups": groups}
    wanted = path.strip("/").split("/", 1)[1]
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": namespaced,
            "verbs": _VERBS,
        }
        for version, plural, kind, namespaced in _KINDS
        if version == wanted
    ]
    return {"groupVersion": wanted, "resources": resources}
