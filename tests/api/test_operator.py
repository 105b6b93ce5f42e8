"""The operator on a real API server: its defaults, its garbage collector, its conflicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from servewright_operator import metrics
from support.apiserver import ApiServer
from support.operators import RunningOperator, make_service, running_operator, settle
from support.waiting import eventually

Object = dict[str, Any]
LOOKS = ("get", "list", "get-log")
# A garbage collector that has just started knows our kind after half a minute.
GARBAGE_S = 120.0
CHILDREN = "deployments,controllerrevisions,services,networkpolicies,poddisruptionbudgets,secrets"
# Whole paths: what `..` finds comes in any order.
UIDS = "--output=jsonpath={.items[*].metadata.uid}"
VERSIONS = "--output=jsonpath={.items[*].metadata.resourceVersion}"


def writes() -> dict[tuple[str, str], int]:
    """How often each verb that changes something was asked of each kind, by this process."""
    found: dict[tuple[str, str], int] = {}
    for metric in metrics.API_REQUESTS.collect():
        for sample in metric.samples:
            labels = sample.labels
            if sample.name.endswith("_total") and labels["verb"] not in LOOKS:
                asked = (labels["verb"], labels["kind"])
                found[asked] = found.get(asked, 0) + int(sample.value)
    return {asked: times for asked, times in found.items() if asked[1] != "Lease"}


class Cluster:
    """A namespace, and the operator that works in it."""

    def __init__(self, server: ApiServer, namespace: str, running: RunningOperator) -> None:
        self.server, self.namespace, self.running = server, namespace, running

    def apply(self, manifest: Object) -> None:
        manifest["metadata"]["namespace"] = self.namespace
        self.server.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))

    def run(self, *words: str) -> str:
        return self.server.kubectl(*words, f"--namespace={self.namespace}")

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.run("get", kind, name, "--output=json"))
        return found

    def names(self, kinds: str) -> list[str]:
        words = ("get", kinds, "--selector=servewright.io/modelservice", "--output=name")
        return sorted(self.run(*words).split())

    def settle(self, *names: str) -> None:
        """Until passes over these ModelServices change nothing any more."""
        settle(self.running, *names, namespace=self.namespace)

        def is_quiet() -> bool:
            before = writes()
            self.running.pass_over(*names, namespace=self.namespace)
            return writes() == before

        eventually(is_quiet, interval_s=0.2)

    def messages(self, reason: str) -> list[str]:
        events = json.loads(self.run("get", "events", "--output=json"))["items"]
        return [event["message"] for event in events if event["reason"] == reason]


@contextmanager
def operator_at(
    server: ApiServer,
    namespace: str,
    *,
    identity: str = "operator-1",
    kubeconfig: Path | None = None,
) -> Iterator[Cluster]:
    """An operator for a namespace, an admin unless `kubeconfig` says otherwise."""
    with running_operator(
        kubeconfig or server.kubeconfig,
        identity=identity,
        namespaces=(namespace,),
        lease_namespace=namespace,
    ) as running:
        yield Cluster(server, namespace, running)


@pytest.fixture
def cluster(api_server: ApiServer, namespace: str) -> Iterator[Cluster]:
    """Without controllers: nothing happens but what the operator does."""
    with operator_at(api_server, namespace) as made:
        yield made


@pytest.fixture
def controlled_cluster(control_plane: ApiServer, controlled_namespace: str) -> Iterator[Cluster]:
    """With controllers: ReplicaSets and pods are made, garbage is collected."""
    with operator_at(control_plane, controlled_namespace) as made:
        yield made


def full_service() -> Object:
    """One that has every child."""
    return make_service("m", access={"mode": "ApiKey"}, replicas=2)


def test_once_settled_a_pass_writes_nothing(cluster: Cluster) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    assert [name.split("/")[0] for name in cluster.names(CHILDREN)] == [
        "controllerrevision.apps",
        "deployment.apps",
        "networkpolicy.networking.k8s.io",
        "poddisruptionbudget.policy",
        "secret",
        "secret",
        "service",
    ]
    before = writes()
    for _ in range(3):
        cluster.running.pass_over("m", namespace=cluster.namespace)
    assert writes() == before
    assert cluster.get("modelservice", "m")["status"]["observedGeneration"] == 1


def test_another_operator_changes_nothing_that_the_first_left(cluster: Cluster) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    cluster.running.stop()
    before = writes()
    versions = cluster.run("get", CHILDREN, VERSIONS)
    with operator_at(cluster.server, cluster.namespace, identity="operator-2") as second:
        settle(second.running, "m", namespace=cluster.namespace)
    assert writes() == before
    assert cluster.run("get", CHILDREN, VERSIONS) == versions


EDITS: list[tuple[str, Object, Callable[[Object], bool]]] = [
    ("deployment", {"spec": {"replicas": 5}}, lambda live: live["spec"]["replicas"] == 2),
    (
        "service",
        {"spec": {"selector": {"app": "theirs"}}},
        lambda live: "app" not in live["spec"]["selector"],
    ),
    (
        "networkpolicy",
        {"spec": {"ingress": [{}]}},
        lambda live: live["spec"]["ingress"] != [{}],
    ),
    (
        "poddisruptionbudget",
        {"spec": {"maxUnavailable": "100%"}},
        lambda live: live["spec"]["maxUnavailable"] != "100%",
    ),
    (
        "deployment",
        {"spec": {"template": {"spec": {"nodeSelector": {"theirs": "1"}}}}},
        lambda live: "nodeSelector" not in live["spec"]["template"]["spec"],
    ),
    (
        "service",
        {"spec": {"externalIPs": ["192.0.2.1"]}},
        lambda live: "externalIPs" not in live["spec"],
    ),
    (
        "deployment",
        {"metadata": {"labels": {"servewright.io/modelservice": "theirs"}}},
        lambda live: live["metadata"]["labels"]["servewright.io/modelservice"] == "m",
    ),
    (
        "deployment",
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "theirs"}}},
        lambda live: live["metadata"]["labels"]["app.kubernetes.io/managed-by"] != "theirs",
    ),
]
IDS = [
    "a Deployment's replicas",
    "a Service's selector",
    "a NetworkPolicy's ingress",
    "a budget's limit",
    "where a Deployment's pods may run",
    "where a Service is reached",
    "whose a Deployment is",
    "who manages a Deployment",
]


@pytest.mark.parametrize(("kind", "edit", "is_back"), EDITS, ids=IDS)
def test_an_edit_of_a_spec_of_ours_is_put_back_with_an_event(
    cluster: Cluster, kind: str, edit: Object, is_back: Callable[[Object], bool]
) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    cluster.run("patch", kind, "m", "--type=merge", f"--patch={json.dumps(edit)}")
    eventually(lambda: is_back(cluster.get(kind, "m")), interval_s=0.2)
    eventually(lambda: cluster.messages("Repaired"), interval_s=0.2)
    cluster.settle("m")


def test_what_others_add_beside_ours_stays(cluster: Cluster) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    before = writes()
    cluster.run("annotate", "deployment", "m", "theirs=1")
    cluster.run("label", "service", "m", "theirs=1")
    cluster.settle("m")
    assert writes() == before
    assert cluster.get("service", "m")["metadata"]["labels"]["theirs"] == "1"


def test_what_was_added_while_no_operator_ran_is_dropped(cluster: Cluster) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    cluster.running.stop()
    spec = cluster.get("deployment", "m")["spec"]
    cluster.run("set", "env", "deployment/m", "NEW=1")
    assert cluster.get("deployment", "m")["spec"] != spec
    with operator_at(cluster.server, cluster.namespace, identity="operator-2") as second:
        settle(second.running, "m", namespace=cluster.namespace)
        assert cluster.get("deployment", "m")["spec"] == spec
        (message,) = cluster.messages("Repaired")
        assert "containers[replica].env[NEW] set by kubectl-set" in message


@pytest.mark.parametrize("kind", CHILDREN.split(",")[:-1])
def test_a_deleted_child_is_made_again_in_seconds(cluster: Cluster, kind: str) -> None:
    cluster.apply(full_service())
    cluster.settle("m")
    uids = ("get", kind, "--selector=servewright.io/modelservice=m", UIDS)
    before = cluster.run(*uids)
    cluster.run("delete", kind, "--selector=servewright.io/modelservice=m", "--wait=false")
    eventually(lambda: cluster.run(*uids) not in ("", before), interval_s=0.2)
    eventually(lambda: cluster.messages("Repaired"), interval_s=0.2)


def test_other_namespaces_are_not_touched(cluster: Cluster, api_server: ApiServer) -> None:
    cluster.apply(make_service("m"))
    api_server.kubectl("apply", "--filename=-", stdin=json.dumps(make_service("elsewhere")))
    try:
        cluster.settle("m")
        assert [key.name for key in cluster.running.operator.store.service_keys()] == ["m"]
    finally:
        api_server.kubectl("delete", "modelservice", "elsewhere", "--namespace=default")


def test_a_modelservice_deleted_while_no_operator_runs_takes_its_children_along(
    controlled_cluster: Cluster,
) -> None:
    cluster = controlled_cluster
    cluster.apply(full_service())
    cluster.settle("m")
    assert len(cluster.names(CHILDREN)) == 7
    cluster.running.stop()
    cluster.run("delete", "modelservice", "m")
    eventually(lambda: cluster.names(CHILDREN) == [], timeout_s=GARBAGE_S, interval_s=0.5)
    before = writes()
    with operator_at(cluster.server, cluster.namespace, identity="operator-2") as second:
        eventually(lambda: second.running.operator.is_ready)
    assert writes() == before


def test_a_rollout_that_somebody_else_began_is_undone(
    controlled_cluster: Cluster,
) -> None:
    cluster = controlled_cluster

    def pods() -> set[str]:
        words = ("get", "pods", "--selector=servewright.io/modelservice=m")
        return set(cluster.run(*words, "--output=jsonpath={..metadata.uid}").split())

    def replica_sets() -> list[int]:
        words = ("get", "replicasets", "--output=jsonpath={.items[*].spec.replicas}")
        return sorted(int(replicas) for replicas in cluster.run(*words).split())

    cluster.apply(full_service())
    eventually(lambda: len(pods()) == 2, interval_s=0.2)
    # As a kubelet would tell. A Deployment with too few ready pods scales nothing away.
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
    for name in cluster.run("get", "pods", "--output=name").split():
        changes = f"--patch={json.dumps({'status': ready})}"
        cluster.run("patch", name, "--subresource=status", "--type=merge", changes)
    eventually(
        lambda: cluster.get("deployment", "m")["status"].get("availableReplicas") == 2,
        interval_s=0.2,
    )
    cluster.settle("m")
    before = pods()
    cluster.run("rollout", "restart", "deployment/m")
    eventually(lambda: cluster.messages("Repaired"), interval_s=0.2)
    (message,) = cluster.messages("Repaired")
    assert "kubectl.kubernetes.io/restartedAt set by kubectl-rollout" in message
    # The new ReplicaSet, if there ever was one, is scaled away again; no pod was replaced.
    eventually(lambda: replica_sets() in ([2], [0, 2]), interval_s=0.2)
    eventually(lambda: pods() == before, interval_s=0.2)


def test_a_namesake_of_a_deleted_modelservice_gets_children_of_its_own(
    controlled_cluster: Cluster,
) -> None:
    cluster = controlled_cluster
    cluster.apply(full_service())
    cluster.settle("m")
    cluster.run("delete", "modelservice", "m", "--wait=true")
    cluster.apply(full_service())
    uid = cluster.get("modelservice", "m")["metadata"]["uid"]

    def owners() -> list[str]:
        path = "--output=jsonpath={.items[*].metadata.ownerReferences[*].uid}"
        selector = "--selector=servewright.io/modelservice=m"
        return cluster.run("get", CHILDREN, selector, path).split()

    eventually(lambda: owners() == [uid] * 7, timeout_s=GARBAGE_S, interval_s=0.5)


def test_credentials_come_from_a_kubeconfig_with_a_token(
    api_server: ApiServer, namespace: str
) -> None:
    """As in a pod, kopf and our own client log in with the same token."""
    api_server.kubectl("create", "serviceaccount", "operator", f"--namespace={namespace}")
    binding = f"test-{namespace}"
    api_server.kubectl(
        "create",
        "clusterrolebinding",
        binding,
        "--clusterrole=cluster-admin",
        f"--serviceaccount={namespace}:operator",
    )
    try:
        config = api_server.kubeconfig_for(namespace, "operator")
        with operator_at(api_server, namespace, kubeconfig=config) as cluster:
            cluster.apply(make_service("m"))
            cluster.settle("m")
            assert "deployment.apps/m" in cluster.names(CHILDREN)
    finally:
        api_server.kubectl("delete", "clusterrolebinding", binding)
