"""The pod of a replica: rendered once for a revision, stored, and run to the byte ever after.

It passes the restricted Pod Security Standard, runs as any user id and writes to its volumes
alone. One image serves and, before that, fetches: credentials are mounted only there.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from pydantic import BaseModel

from servewright_api.modelservice import ModelService
from servewright_api.revision import revision_fields
from servewright_operator import names
from servewright_operator.desired import volumes
from servewright_operator.objects import Object
from servewright_operator.settings import PodDefaults

MANIFEST_VARIABLE = "SERVEWRIGHT_MANIFEST"
REVISION_VARIABLE = "SERVEWRIGHT_REVISION"

# What the runtime does after SIGTERM: it lingers while endpoints forget it, drains, and ends.
_LINGER_S = 5
_MARGIN_S = 5
# The kubelet ends a start that takes longer; the Deployment's own deadline reports long before. The
# template outlives edits of progressDeadlineSeconds, so a raised one must find room here.
_STARTUP_S = 3600
_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Kubernetes obeys these, and the runtime need not know them.
_FOR_KUBERNETES = {"pod", "resources"}
# Not the zone too: a node that lacks the label of one constraint counts for none of them, so on a
# cluster without zones two replicas landed on one of two nodes.
_SPREAD_KEY = "kubernetes.io/hostname"
# What the device plugin of each spec.accelerator.type calls it. Nodes that have it are often kept
# for it by a taint of the same key.
_DEVICES = {"nvidia": "nvidia.com/gpu"}


def template(service: ModelService, revision: str, pods: PodDefaults) -> Object:
    """The pod template of `revision`, which `service` asks for."""
    name, given = service.metadata.name, service.spec.pod
    pull_secrets = [*(ref.name for ref in given.image_pull_secrets), *pods.image_pull_secrets]
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Named even where it is the default: the API server keeps the old one in a deprecated twin
        # of this field, which then comes back when the field goes.
        "serviceAccountName": given.service_account_name or "default",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": (
            _LINGER_S + service.spec.rollout.drain_seconds + _MARGIN_S
        ),
        "topologySpreadConstraints": _spread(service),
        "containers": [_replica(service, revision, pods)],
        "volumes": volumes.build(service),
        "imagePullSecrets": [{"name": secret} for secret in dict.fromkeys(pull_secrets)],
        "nodeSelector": dict(given.node_selector),
        "tolerations": _tolerations(service),
        "priorityClassName": given.priority_class_name,
        "runtimeClassName": given.runtime_class_name,
    }
    if volumes.fetches(service):
        spec["initContainers"] = [_fetch(service, revision, pods)]
    return {
        "metadata": {
            "labels": {**given.labels, **names.labels(name), names.REVISION_LABEL: revision},
            **({"annotations": dict(given.annotations)} if given.annotations else {}),
        },
        "spec": {field: value for field, value in spec.items() if value not in (None, [], {})},
    }


def _replica(service: ModelService, revision: str, pods: PodDefaults) -> Object:
    startup_s = max(_STARTUP_S, service.spec.rollout.progress_deadline_seconds)
    return {
        "name": names.REPLICA_CONTAINER,
        **_container(service, revision, pods),
        "resources": _resources(service),
        "command": ["python", "-m", "servewright_runtime.pod"],
        "ports": [
            {"name": names.HTTP_PORT_NAME, "containerPort": names.HTTP_PORT, "protocol": "TCP"},
            {"name": names.ADMIN_PORT_NAME, "containerPort": names.ADMIN_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _probe("/readyz", period_s=1, timeout_s=3, failures=startup_s),
        "readinessProbe": _probe("/readyz", period_s=2, timeout_s=3, failures=3),
        "livenessProbe": _probe("/livez", period_s=10, timeout_s=5, failures=3),
        "volumeMounts": volumes.of_replica(service),
    }


def _fetch(service: ModelService, revision: str, pods: PodDefaults) -> Object:
    return {
        "name": names.FETCH_CONTAINER,
        **_container(service, revision, pods),
        "command": ["python", "-m", "servewright_runtime.pod", "fetch"],
        "volumeMounts": volumes.of_fetch(service),
    }


def _container(service: ModelService, revision: str, pods: PodDefaults) -> Object:
    """What both containers have. The same resources for both cost nothing: they run in turn."""
    ours = {
        "HOME": volumes.TMP,
        MANIFEST_VARIABLE: _manifest(service),
        REVISION_VARIABLE: revision,
    }
    given = service.spec.pod
    default_image = pods.cuda_image if service.spec.accelerator else pods.image
    return {
        "image": given.image or default_image,
        "imagePullPolicy": pods.image_pull_policy,
        "env": [
            *map(_plain, given.env),
            *({"name": name, "value": value} for name, value in ours.items()),
        ],
        "resources": _plain(service.spec.resources),
        "securityContext": copy.deepcopy(_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _resources(service: ModelService) -> Object:
    """CPU and memory, and the accelerator, which the fetcher has no use for."""
    resources, accelerator = _plain(service.spec.resources), service.spec.accelerator
    if accelerator is not None:
        for part in ("requests", "limits"):  # equal, as Kubernetes wants it of extended resources
            resources[part][_DEVICES[accelerator.type]] = str(accelerator.count)
    return resources


def _tolerations(service: ModelService) -> list[Object]:
    """The user's, and of the taint by which nodes are kept for what needs their accelerators."""
    given = list(map(_plain, service.spec.pod.tolerations))
    if service.spec.accelerator is not None:
        key = _DEVICES[service.spec.accelerator.type]
        given.append({"key": key, "operator": "Exists", "effect": "NoSchedule"})
    return given


def _manifest(service: ModelService) -> str:
    """What the runtime is to serve: the fields of spec that make the revision.

    Those that Kubernetes alone obeys are left out: together they could be longer than a variable
    may be. Kubernetes would expand $(NAME), which a prompt may hold, so no $ is written.
    """
    spec = revision_fields(service)
    document = {
        "apiVersion": service.api_version,
        "kind": service.kind,
        "metadata": {"name": service.metadata.name, "namespace": service.metadata.namespace},
        "spec": {group: spec[group] for group in spec.keys() - _FOR_KUBERNETES},
    }
    text = json.dumps([document], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace("$", "\\u0024")


def _probe(path: str, *, period_s: int, timeout_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": names.ADMIN_PORT_NAME},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _spread(service: ModelService) -> list[Object]:
    """The user's constraints, and for nodes without one: spread where it can be."""
    given = list(map(_plain, service.spec.pod.topology_spread))
    if all(constraint["topologyKey"] != _SPREAD_KEY for constraint in given):
        given.append(
            {"maxSkew": 1, "topologyKey": _SPREAD_KEY, "whenUnsatisfiable": "ScheduleAnyway"}
        )
    counted = {
        "labelSelector": {"matchLabels": names.selector(service.metadata.name)},
        "matchLabelKeys": ["pod-template-hash"],  # each revision by itself
    }
    return [{**constraint, **counted} for constraint in given]


def _plain(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
