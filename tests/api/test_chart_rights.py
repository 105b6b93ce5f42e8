"""The chart grants the operator what it asks the API server for, and nothing else.

The operator runs as the ServiceAccount that the chart makes, through a story in which it does all
it ever does; the API server's audit log is compared with the chart's rules, both ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servewright_api import revision
from servewright_operator import names
from support import apiserver, audit, helm
from support.apiserver import ApiServer
from support.helm import CHART, CRDS, documents, template
from support.manifests import make_service
from support.operator_process import operator_process
from support.pod_monitors import POD_MONITORS
from support.waiting import eventually

NAMESPACE = "models"
SOURCE = "pvc://models/mine.gguf"
CHILDREN = {
    "deployments": "apps/v1",
    "controllerrevisions": "apps/v1",
    "services": "v1",
    "networkpolicies": "networking.k8s.io/v1",
    "poddisruptionbudgets": "policy/v1",
    "podmonitors": "monitoring.coreos.com/v1",
}
# Asked for by the API server itself, of whoever writes an owner reference that blocks deletion.
BY_ADMISSION = ("update", "servewright.io", "modelservices/finalizers")

pytestmark = pytest.mark.skipif(helm.program() is None, reason=helm.HOW_TO_GET_IT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server that writes an audit log to tmp_path/audit.log."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(audit.POLICY)
    flags = (
        f"--audit-policy-file={policy}",
        f"--audit-log-path={tmp_path / 'audit.log'}",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
    )
    with apiserver.api_server(own=True, flags=flags) as found:
        yield found


class Story:
    """What happens in a namespace, told by an admin."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def write(self, document: dict[str, Any]) -> None:
        """Server-side apply."""
        document["metadata"]["namespace"] = NAMESPACE
        words = ("apply", "--server-side", "--force-conflicts", "--filename=-")
        self._server.kubectl(*words, stdin=json.dumps(document))

    def serve(self, name: str, **spec: Any) -> None:
        """Apply a ModelService."""
        self.write(
            {
                "apiVersion": "servewright.io/v1alpha1",
                "kind": "ModelService",
                "metadata": {"name": name},
                "spec": {"model": {"source": SOURCE}, **spec},
            }
        )

    def run(self, *words: str) -> None:
        self._server.kubectl(*words, f"--namespace={NAMESPACE}")

    def found(self, what: str, *words: str) -> list[dict[str, Any]]:
        """Objects of a kind."""
        listed = self._server.kubectl("get", what, "-ojson", f"--namespace={NAMESPACE}", *words)
        items: list[dict[str, Any]] = json.loads(listed)["items"]
        return items

    def names(self, what: str) -> set[str]:
        return {one["metadata"]["name"] for one in self.found(what)}


def tell(story: Story) -> None:
    """All that an operator ever has to do about ModelServices."""
    namesakes_stand_in_the_way(story)
    children_are_made(story)
    a_made_secret_is_edited(story)
    a_pod_fails(story)
    strays_are_pruned(story)
    revisions_and_secrets_are_no_longer_wanted(story)


def namesakes_stand_in_the_way(story: Story) -> None:
    spec = {"spec.model.source": SOURCE, "spec.replicas": 2}
    metadata = {"metadata.name": "taken", "metadata.namespace": NAMESPACE}
    stored = names.revision_object("taken", revision(make_service({**metadata, **spec})))
    for plural, api_version in CHILDREN.items():
        name = stored if plural == "controllerrevisions" else "taken"
        story.write(stranger(plural, api_version, name))
    story.serve("taken", replicas=2)
    refused = "--field-selector=reason=Refused"
    eventually(lambda: len(story.found("events", refused)) >= len(CHILDREN))


def children_are_made(story: Story) -> None:
    story.serve("chat", replicas=2)
    eventually(lambda: all("chat" in " ".join(story.names(plural)) for plural in CHILDREN))
    eventually(lambda: {"chat-probe", "chat-api-keys"} <= story.names("secrets"))
    eventually(lambda: story.found("msvc", "--field-selector=metadata.name=chat")[0].get("status"))


def a_made_secret_is_edited(story: Story) -> None:
    """Of a ModelService whose children are refused: each try looks at its Secrets anew."""
    story.run("label", "secret/taken-probe", f"{names.SERVICE_LABEL}=other", "--overwrite")
    mine = f"--selector={names.SERVICE_LABEL}=taken"
    eventually(lambda: len(story.found("secrets", mine)) == 2, interval_s=0.5)


def a_pod_fails(story: Story) -> None:
    (deployment,) = (one for one in story.found("deployments") if one["metadata"]["name"] == "chat")
    template = deployment["spec"]["template"]
    controller = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "chat-1",
        "uid": "00000000-0000-0000-0000-000000000001",
        "controller": True,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "chat-1-1",
            "labels": template["metadata"]["labels"],
            "ownerReferences": [controller],
        },
        "spec": {**template["spec"], "nodeName": "nowhere"},
    }
    story.write(pod)
    ended = {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:00Z"}
    status = {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": names.REPLICA_CONTAINER,
                "image": "x",
                "imageID": "x",
                "ready": False,
                "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {**ended, "startedAt": "2026-01-01T00:00:00Z"}},
            }
        ],
    }
    patch = json.dumps({"status": status})
    story.run("patch", "pod/chat-1-1", "--subresource=status", "--type=merge", f"--patch={patch}")
    eventually(
        lambda: story.found("msvc", "--field-selector=metadata.name=chat")[0]["status"].get(
            "lastFailure"
        )
    )


def strays_are_pruned(story: Story) -> None:
    (service,) = story.found("msvc", "--field-selector=metadata.name=chat")
    owner = {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": "chat",
        "uid": service["metadata"]["uid"],
        "controller": True,
    }
    for plural, api_version in CHILDREN.items():
        stray = stranger(plural, api_version, "stray")
        if plural == "controllerrevisions":
            stray["data"] = story.found(plural, f"--selector={names.SERVICE_LABEL}=chat")[0]["data"]
        stray["metadata"] |= {"labels": names.labels("chat"), "ownerReferences": [owner]}
        story.write(stray)
    eventually(lambda: not any("stray" in story.names(plural) for plural in CHILDREN))


def revisions_and_secrets_are_no_longer_wanted(story: Story) -> None:
    for max_batch in (1, 2, 3, 4):
        another_revision(story, max_batch)
    eventually(lambda: "chat-probe" not in story.names("secrets"))


def another_revision(story: Story, max_batch: int) -> None:
    before = story.names("controllerrevisions")
    story.serve("chat", access={"mode": "Open"}, engine={"maxBatch": max_batch})
    eventually(lambda: story.names("controllerrevisions") - before)


def stranger(plural: str, api_version: str, name: str) -> dict[str, Any]:
    """A small object of a kind of children that somebody else made."""
    labels = {"matchLabels": {"app": "other"}}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "deployments": (
            "Deployment",
            {
                "spec": {
                    "replicas": 0,
                    "selector": labels,
                    "template": {
                        "metadata": {"labels": {"app": "other"}},
                        "spec": {"containers": [{"name": "replica", "image": "other"}]},
                    },
                }
            },
        ),
        "controllerrevisions": ("ControllerRevision", {"revision": 99, "data": {"other": "x"}}),
        "services": ("Service", {"spec": {"selector": {"app": "other"}, "ports": [{"port": 1}]}}),
        "networkpolicies": ("NetworkPolicy", {"spec": {"podSelector": labels}}),
        "poddisruptionbudgets": (
            "PodDisruptionBudget",
            {"spec": {"selector": labels, "maxUnavailable": 0}},
        ),
        "podmonitors": (
            "PodMonitor",
            {"spec": {"selector": labels, "podMetricsEndpoints": [{"port": "other"}]}},
        ),
    }
    kind, body = bodies[plural]
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **body}


@pytest.mark.parametrize("namespaces", ["", NAMESPACE], ids=["whole cluster", "one namespace"])
def test_the_operator_may_do_what_it_does_and_nothing_else(
    server: ApiServer, tmp_path: Path, namespaces: str
) -> None:
    server.kubectl("apply", "--filename=-", stdin=POD_MONITORS)
    server.kubectl("create", "namespace", NAMESPACE)
    helm.helm("install", "servewright-crds", CRDS, kubeconfig=server.kubeconfig)
    server.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
    watched = f"--set-json=watchNamespaces={json.dumps(namespaces.split())}"
    where = ("--namespace=servewright", "--create-namespace")
    helm.helm("install", "servewright", CHART, *where, watched, kubeconfig=server.kubeconfig)
    account = ("servewright", "servewright")
    with operator_process(
        server.kubeconfig_for(*account),
        tmp_path / "operator.log",
        lease_namespace="servewright",
        namespaces=tuple(namespaces.split()),
    ) as running:
        tell(Story(server))
        # Told to go, not killed: to release the Lease takes a right too.
        assert running.stop() == 0

    granted = audit.grants(documents(template(watched)), *account)
    with (tmp_path / "audit.log").open() as log:
        asked = audit.requests(log, *account)
    missing, unused = audit.compare(granted, asked)
    assert missing == set()
    assert [(one.verb, one.group, one.resource) for one in unused] == [BY_ADMISSION]
