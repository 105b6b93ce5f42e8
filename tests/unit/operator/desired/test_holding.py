"""When an apply may be skipped: the API server's own changes are none, everyone else's are."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from servewright_operator import names
from servewright_operator.holding import difference, holds, with_hash
from servewright_operator.objects import Object


def desired() -> Object:
    """Something of everything that builders write."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mine", "labels": {"a": "", "b": "1"}},
        "spec": {
            "minReadySeconds": 0,
            "selector": {"matchLabels": {"app": "mine"}},
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {
                "spec": {
                    "automountServiceAccountToken": False,
                    "nodeSelector": {"disk": "fast"},
                    "containers": [
                        {
                            "name": "replica",
                            "command": ["python", "-m", "it"],
                            "env": [{"name": "A", "value": ""}, {"name": "B", "value": "1000m"}],
                            "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
                            "resources": {"limits": {"cpu": "1000m", "memory": "1.5Gi"}},
                        }
                    ],
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1024Mi"}}],
                }
            },
            "ingress": [{"ports": [{"protocol": "TCP", "port": 8000}]}],
            "egress": [],
        },
    }


def live() -> Object:
    """The same as the API server returns it."""
    stored = with_hash(copy.deepcopy(desired()))
    stored["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 1}
    stored["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    stored["status"] = {"replicas": 1}
    spec = stored["spec"]
    del spec["minReadySeconds"], spec["egress"], spec["strategy"]["rollingUpdate"]["maxUnavailable"]
    spec["progressDeadlineSeconds"] = 600
    pod = spec["template"]["spec"]
    pod["dnsPolicy"] = "ClusterFirst"
    del pod["automountServiceAccountToken"]
    container = pod["containers"][0]
    container["imagePullPolicy"] = "Always"
    container["resources"]["limits"] = {"memory": "1536Mi", "cpu": "1"}
    del container["env"][0]["value"]
    pod["volumes"][0]["emptyDir"]["sizeLimit"] = "1Gi"
    return stored


CONTAINER = "spec.template.spec.containers[replica]"


def test_what_the_api_server_made_of_it_is_held() -> None:
    assert holds(live(), desired())
    assert difference(live(), desired()) is None


def test_a_manifest_with_its_hash_gets_no_other() -> None:
    hashed = with_hash(desired())
    assert with_hash(hashed) == hashed
    assert holds(live(), hashed)


def test_the_hash_is_added_to_a_copy() -> None:
    manifest = desired()
    with_hash(manifest)
    assert manifest == desired()


def test_another_manifest_is_not_held_and_nobodys_edit() -> None:
    wanted = desired()
    del wanted["spec"]["template"]["spec"]["tolerations"]  # live still has it: only the hash tells
    assert not holds(live(), wanted)
    assert difference(live(), wanted) is None


def test_without_the_hash_nothing_is_held() -> None:
    stored = live()
    del stored["metadata"]["annotations"][names.APPLIED_ANNOTATION]
    assert not holds(stored, desired())
    assert difference(stored, desired()) == f"metadata.annotations.{names.APPLIED_ANNOTATION}"


def test_what_others_add_does_not_matter_here() -> None:
    stored = live()
    stored["metadata"]["labels"]["team"] = "x"
    container = stored["spec"]["template"]["spec"]["containers"]
    container[0]["env"].insert(0, {"name": "C", "value": "theirs"})
    container.insert(0, {"name": "sidecar"})
    assert holds(stored, desired())


def test_another_order_of_what_is_ours_is_an_edit() -> None:
    stored = live()
    stored["spec"]["template"]["spec"]["containers"][0]["env"].reverse()
    assert not holds(stored, desired())
    assert difference(stored, desired()) == f"{CONTAINER}.env"


EDITS: list[tuple[str, Any, str]] = [
    ("metadata.labels.a", None, "metadata.labels.a"),
    ("metadata.labels.b", "2", "metadata.labels.b"),
    ("spec.minReadySeconds", 5, "spec.minReadySeconds"),
    ("spec.selector.matchExpressions", [{"key": "a"}], "spec.selector.matchExpressions"),
    ("spec.strategy.rollingUpdate.maxSurge", 1, "spec.strategy.rollingUpdate.maxSurge"),
    (
        "spec.strategy.rollingUpdate.maxUnavailable",
        "25%",
        "spec.strategy.rollingUpdate.maxUnavailable",
    ),
    ("spec.strategy", None, "spec.strategy"),
    ("spec.egress", [{}], "spec.egress"),
    ("spec.ingress.0.from", [{"ipBlock": {}}], "spec.ingress[0].from"),
    ("spec.ingress.0.ports.0.port", 9000, "spec.ingress[0].ports[0].port"),
    ("spec.template.spec.nodeSelector.zone", "b", "spec.template.spec.nodeSelector.zone"),
    ("spec.template.spec.tolerations", [], "spec.template.spec.tolerations"),
    (
        "spec.template.spec.automountServiceAccountToken",
        True,
        "spec.template.spec.automountServiceAccountToken",
    ),
    ("spec.template.spec.containers.0.name", "other", CONTAINER),
    ("spec.template.spec.containers.0.command", ["sh"], f"{CONTAINER}.command"),
    ("spec.template.spec.containers.0.command.2", "that", f"{CONTAINER}.command[2]"),
    ("spec.template.spec.containers.0.env.0.value", "x", f"{CONTAINER}.env[A].value"),
    # A number's other spelling is another text.
    ("spec.template.spec.containers.0.env.1.value", "1", f"{CONTAINER}.env[B].value"),
    ("spec.template.spec.containers.0.env", [], f"{CONTAINER}.env[A]"),
    (
        "spec.template.spec.containers.0.resources.limits.memory",
        "1537Mi",
        f"{CONTAINER}.resources.limits.memory",
    ),
    (
        "spec.template.spec.containers.0.resources.limits",
        None,
        f"{CONTAINER}.resources.limits",
    ),
    ("spec.template.spec.volumes.0.emptyDir", None, "spec.template.spec.volumes[tmp].emptyDir"),
]


@pytest.mark.parametrize(("place", "value", "told"), EDITS, ids=[told for *_, told in EDITS])
def test_an_edit_is_noticed_and_told_by_its_path(place: str, value: object, told: str) -> None:
    stored = live()
    *groups, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target: Any = stored
    for part in groups:
        target = target[part]
    if value is None:
        del target[last]
    else:
        target[last] = value
    assert not holds(stored, desired())
    assert difference(stored, desired()) == told


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("1000m", "1"),
        ("0.5", "500m"),
        ("1.5Gi", "1536Mi"),
        ("1e3", "1k"),
        ("1E3", "1e3"),
        ("1024Ki", "1Mi"),
        ("0.1", "100m"),
        ("1k", "1000"),
        ("2Ei", "2048Pi"),
    ],
)
def test_quantities_are_compared_by_value(written: str, stored: str) -> None:
    manifest = {"metadata": {"name": "x"}, "resources": {"requests": {"cpu": written}}}
    found = with_hash(copy.deepcopy(manifest))
    found["resources"]["requests"]["cpu"] = stored
    assert holds(found, manifest)
    found["resources"]["requests"]["cpu"] = "7"
    assert not holds(found, manifest)
