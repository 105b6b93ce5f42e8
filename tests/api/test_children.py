"""The children as a real API server takes, completes, keeps and judges them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from servewright_api.modelservice import ModelService
from servewright_operator.holding import difference, holds, with_hash
from servewright_operator.objects import Object
from servewright_operator.rendering import DEFAULT_CUDA_IMAGE, DEFAULT_IMAGE, render
from servewright_operator.settings import PodDefaults
from support.apiserver import ApiServer
from support.desired import children_of, one
from support.manifests import make_manifest, make_service
from support.modelservices import model_services
from support.objects import Objects, Refused
from support.tree import ROOT

CASES = sorted((ROOT / "tests" / "golden").glob("*/in.yaml"))
# Each example is some 30 requests.
EXAMPLES = 25


@pytest.fixture
def objects(api_server: ApiServer) -> Iterator[Objects]:
    found = Objects(api_server)
    yield found
    found.close()


def golden_services(namespace: str) -> list[ModelService]:
    """The ModelServices of the golden cases that a cluster takes."""
    manifests = [yaml.safe_load(path.read_text())["modelService"] for path in CASES]
    found = []
    for path, manifest in zip(CASES, manifests, strict=True):
        if not path.parent.name.startswith("refused"):
            manifest["metadata"]["namespace"] = namespace
            found.append(ModelService.model_validate(manifest))
    return found


def in_namespace(service: ModelService, namespace: str) -> ModelService:
    metadata = service.metadata.model_copy(update={"namespace": namespace})
    return service.model_copy(update={"metadata": metadata})


def make_owner(server: ApiServer, namespace: str, name: str) -> str:
    """The uid of a ModelService to own the children, or they would be garbage."""
    manifest = make_manifest(
        {"metadata.name": name, "spec.model.source": "https://models.example.com/m.gguf"}
    )
    words = (
        "apply",
        f"--namespace={namespace}",
        "--filename=-",
        "--output=jsonpath={.metadata.uid}",
    )
    return server.kubectl(*words, stdin=json.dumps(manifest))


@pytest.fixture
def uid(api_server: ApiServer, namespace: str) -> str:
    """Of the owner "mine"."""
    return make_owner(api_server, namespace, "mine")


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model_services())
def test_what_is_applied_is_held_whatever_ran_before(
    objects: Objects, namespace: str, uid: str, service: ModelService
) -> None:
    """No apply is ever repeated for nothing, and nothing of an earlier spec stays."""
    for child in children_of(in_namespace(service, namespace), uid=uid):
        live = objects.apply(with_hash(child))
        assert difference(live, child) is None
        assert holds(live, child)
        if child["kind"] == "ControllerRevision":
            # Its template is rendered anew here, which the operator never does.
            objects.delete(live)
        elif child["kind"] == "Deployment":
            elsewhere = copy.deepcopy(child)
            elsewhere["metadata"]["namespace"] = "default"
            assert live["spec"] == objects.would_create(elsewhere)["spec"]


EDITS: list[tuple[str, Any, str]] = [
    ("Deployment", {"spec": {"replicas": 7}}, "spec.replicas"),
    ("Deployment", {"spec": {"minReadySeconds": 5}}, "spec.minReadySeconds"),
    ("Deployment", {"spec": {"paused": True}}, "spec.paused"),
    ("Deployment", {"spec": {"strategy": {"rollingUpdate": {"maxSurge": "50%"}}}}, ""),
    ("Deployment", {"metadata": {"labels": {"servewright.io/modelservice": "x"}}}, ""),
    ("Deployment", {"metadata": {"annotations": None}}, ""),
    ("Deployment", {"metadata": {"ownerReferences": None}}, ""),
    ("Deployment", {"spec": {"template": {"spec": {"serviceAccountName": "x"}}}}, ""),
    ("Deployment", {"spec": {"template": {"spec": {"nodeSelector": {"disk": "x"}}}}}, ""),
    ("Deployment", {"spec": {"template": {"spec": {"tolerations": None}}}}, ""),
    (
        "Deployment",
        {"spec": {"template": {"spec": {"enableServiceLinks": True}}}},
        "spec.template.spec.enableServiceLinks",
    ),
    ("Service", {"spec": {"selector": {"more": "x"}}}, "spec.selector.more"),
    ("Service", {"spec": {"publishNotReadyAddresses": True}}, "spec.publishNotReadyAddresses"),
    ("Service", {"spec": {"type": "NodePort"}}, "spec.type"),
    ("Service", {"spec": {"ports": [{"port": 8000, "targetPort": 1}]}}, ""),
    ("NetworkPolicy", {"spec": {"egress": [{}]}}, "spec.egress"),
    ("NetworkPolicy", {"spec": {"ingress": None}}, "spec.ingress"),
    ("NetworkPolicy", {"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}, ""),
    ("PodDisruptionBudget", {"spec": {"maxUnavailable": "50%"}}, "spec.maxUnavailable"),
    ("Secret", {"data": {"servewright-probe": "eA=="}}, "data.servewright-probe"),
]


@pytest.mark.parametrize(("kind", "changes", "path"), EDITS, ids=[str(edit[:2]) for edit in EDITS])
def test_an_edit_is_noticed_told_and_undone_by_an_apply(
    api_server: ApiServer, objects: Objects, namespace: str, kind: str, changes: Any, path: str
) -> None:
    manifest = yaml.safe_load((ROOT / "tests/golden/everything/in.yaml").read_text())
    service = in_namespace(ModelService.model_validate(manifest["modelService"]), namespace)
    uid = make_owner(api_server, namespace, service.metadata.name)
    child = one(children_of(service, uid=uid), kind)
    live = objects.apply(with_hash(child))
    assert holds(live, child)
    edited = objects.edit(live, changes)
    assert not holds(edited, child)
    assert (difference(edited, child) or "").startswith(path)
    assert difference(edited, child)
    again = objects.apply(with_hash(child))
    assert holds(again, child)
    assert again.get("spec") == live.get("spec")


def test_an_apply_of_the_same_again_changes_nothing(
    objects: Objects, namespace: str, uid: str
) -> None:
    service = make_service({"spec.model.source": "https://models.example.com/m.gguf"})
    for child in children_of(in_namespace(service, namespace), uid=uid):
        first, second = (objects.apply(with_hash(child)) for _ in range(2))
        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


def test_a_restricted_namespace_takes_every_pod(
    api_server: ApiServer, objects: Objects, namespace: str
) -> None:
    api_server.kubectl(
        "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"
    )

    for account in ("default", "models"):  # where nothing makes them
        api_server.run_kubectl("create", "serviceaccount", account, f"--namespace={namespace}")

    def pod_of(template: Object) -> Object:
        spec = dict(template["spec"])
        # These classes would have to exist; Pod Security does not look at them.
        for field in ("priorityClassName", "runtimeClassName"):
            spec.pop(field, None)
        metadata = {**template["metadata"], "name": "replica", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    templates = [
        one(children_of(service), "Deployment")["spec"]["template"]
        for service in golden_services(namespace)
    ]
    assert len(templates) > 10
    for template in templates:
        objects.would_create(pod_of(template))

    loose = copy.deepcopy(templates[0])
    del loose["spec"]["securityContext"]
    with pytest.raises(Refused, match="violates PodSecurity"):
        objects.would_create(pod_of(loose))


def test_kubectl_takes_what_servewright_manifests_prints(
    api_server: ApiServer, namespace: str
) -> None:
    for service in golden_services(namespace):
        pods = PodDefaults(DEFAULT_IMAGE, DEFAULT_CUDA_IMAGE)
        text = render([service], pods, pod_monitors=False)
        api_server.kubectl("apply", "--dry-run=server", "--filename=-", stdin=text)
