"""Whatever somebody else writes into a child's spec, by whichever kind of request, one pass puts
it back, and the next one has nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from servewright_operator import foreign, names
from servewright_operator.client import ApiError
from support import editing
from support.apiserver import ApiServer
from support.editing import APPLY, JSON, MERGE, STRATEGIC, Cluster, in_pod, in_replica
from support.foreign_specs import EXEC


@pytest.fixture
def cluster(api_server: ApiServer, namespace: str) -> Iterator[Cluster]:
    """The children of a ModelService that has every one."""
    with editing.cluster(api_server, namespace) as made:
        yield made


REPLICA = "/spec/template/spec/containers/0"
EDITS: list[tuple[str, str, str, Any, str]] = [
    (
        "a container",
        "Deployment",
        STRATEGIC,
        in_pod(containers=[{"name": "side", "image": "x"}]),
        "spec.template.spec.containers[side] set by somebody",
    ),
    (
        "a volume and its mount",
        "Deployment",
        STRATEGIC,
        in_pod(
            volumes=[{"name": "v", "emptyDir": {}}],
            containers=[{"name": "replica", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        ),
        "spec.template.spec.volumes[v] set by somebody",
    ),
    (
        "a key of the nodeSelector",
        "Deployment",
        MERGE,
        in_pod(nodeSelector={"disk": "hdd"}),
        "spec.template.spec.nodeSelector set by somebody",
    ),
    (
        "a label of the pods",
        "Deployment",
        MERGE,
        {"spec": {"template": {"metadata": {"labels": {"theirs": "1"}}}}},
        "spec.template.metadata.labels.theirs set by somebody",
    ),
    (
        "the network of the host",
        "Deployment",
        MERGE,
        in_pod(hostNetwork=True),
        "spec.template.spec.hostNetwork set by somebody",
    ),
    (
        "another default",
        "Deployment",
        MERGE,
        in_pod(schedulerName="theirs"),
        "spec.template.spec.schedulerName set by somebody",
    ),
    (
        "the default itself, claimed",
        "Deployment",
        APPLY,
        in_pod(dnsPolicy="ClusterFirst"),
        "spec.template.spec.dnsPolicy set by somebody",
    ),
    (
        "a hook",
        "Deployment",
        APPLY,
        in_replica(lifecycle={"preStop": EXEC}),
        "spec.template.spec.containers[replica].lifecycle.preStop.exec.command set by somebody",
    ),
    (
        "the half of a volume",
        "Deployment",
        APPLY,
        in_pod(volumes=[{"name": "model", "emptyDir": {"sizeLimit": "1Ki"}}]),
        "spec.template.spec.volumes[model].emptyDir.sizeLimit set by somebody",
    ),
    # Together with ours these would be refused: no probe has two handlers, no volume two sources.
    (
        "another handler of a probe",
        "Deployment",
        JSON,
        [{"op": "replace", "path": f"{REPLICA}/livenessProbe", "value": EXEC}],
        "spec.template.spec.containers[replica].livenessProbe.exec.command set by somebody",
    ),
    (
        "another source of a volume",
        "Deployment",
        JSON,
        [
            {
                "op": "replace",
                "path": "/spec/template/spec/volumes/0",
                "value": {"name": "tmp", "hostPath": {"path": "/"}},
            }
        ],
        "spec.template.spec.volumes[tmp].hostPath set by somebody",
    ),
    (
        "a variable twice",
        "Deployment",
        JSON,
        [{"op": "add", "path": f"{REPLICA}/env/-", "value": {"name": "HOME", "value": "/theirs"}}],
        "spec.template.spec.containers[replica].env[HOME] set by somebody",
    ),
    (
        "all containers replaced",
        "Deployment",
        MERGE,
        in_pod(containers=[{"name": "side", "image": "x"}]),
        "spec.template.spec.containers[replica] changed",
    ),
    (
        "the way of rollouts",
        "Deployment",
        MERGE,
        {"spec": {"strategy": {"type": "Recreate", "rollingUpdate": None}}},
        "spec.strategy.type set by somebody",
    ),
    (
        "a port",
        "Service",
        APPLY,
        {"spec": {"ports": [{"name": "x", "port": 9999}]}},
        "spec.ports[9999/TCP] set by somebody",
    ),
    (
        "addresses outside",
        "Service",
        MERGE,
        {"spec": {"externalIPs": ["192.0.2.1"]}},
        "spec.externalIPs set by somebody",
    ),
    (
        "a load balancer",
        "Service",
        MERGE,
        {"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}},
        "spec.type set by somebody",
    ),
    (
        "sessions",
        "Service",
        MERGE,
        {"spec": {"sessionAffinity": "ClientIP"}},
        "spec.sessionAffinity set by somebody",
    ),
    (
        "kinds of traffic",
        "NetworkPolicy",
        MERGE,
        {"spec": {"policyTypes": ["Ingress"]}},
        "spec.policyTypes set by somebody",
    ),
    (
        "another bound",
        "PodDisruptionBudget",
        MERGE,
        {"spec": {"maxUnavailable": None, "minAvailable": 1}},
        "spec.minAvailable set by somebody",
    ),
]


@pytest.mark.parametrize(
    ("kind", "content_type", "changes", "told"),
    [case[1:] for case in EDITS],
    ids=[f"{case[0]} of a {case[1]}" for case in EDITS],
)
def test_what_somebody_else_sets_is_told_and_undone(
    cluster: Cluster, kind: str, content_type: str, changes: Any, told: str
) -> None:
    live = cluster.fresh(kind)
    cluster.edit(live, content_type, changes)
    assert cluster.get(live)["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]
    (message,) = cluster.put_back(kind)
    assert told in message
    after = cluster.get(live)
    assert after["spec"] == live["spec"]
    assert foreign.fields(after) == []


COMMANDS: list[tuple[tuple[str, ...], str]] = [
    (("set", "env", "deployment", "NEW=1"), ".env[NEW] set by kubectl-set"),
    (("set", "env", "deployment", "HOME-"), ".env[HOME] changed"),
    (("set", "image", "deployment", "*=theirs"), ".image set by kubectl-set"),
    (("set", "resources", "deployment", "--limits=cpu=7"), ".limits.cpu set by kubectl-set"),
    (("set", "serviceaccount", "deployment", "theirs"), ".serviceAccountName set by kubectl-set"),
    (
        ("rollout", "restart", "deployment"),
        ".annotations.kubectl.kubernetes.io/restartedAt set by kubectl-rollout",
    ),
    (("rollout", "pause", "deployment"), "spec.paused set by kubectl-rollout"),
    (("scale", "deployment", "--replicas=9"), "spec.replicas changed"),
]


@pytest.mark.parametrize(
    ("words", "told"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS]
)
def test_what_kubectl_does_to_the_deployment_is_undone(
    cluster: Cluster, words: tuple[str, ...], told: str
) -> None:
    live = cluster.fresh("Deployment")
    at = words.index("deployment")
    cluster.kubectl(*words[:at], f"deployment/{live['metadata']['name']}", *words[at + 1 :])
    (message,) = cluster.put_back("Deployment")
    assert told in message
    assert cluster.get(live)["spec"] == live["spec"]


def test_labels_and_annotations_of_a_child_stay_whosever_they_are(cluster: Cluster) -> None:
    live = cluster.fresh("Deployment")
    theirs = {"metadata": {"labels": {"theirs": "1"}, "annotations": {"theirs.example": "2"}}}
    cluster.edit(live, MERGE, {**theirs, **in_pod(hostNetwork=True)})
    assert len(cluster.put_back("Deployment")) == 1
    metadata = cluster.get(live)["metadata"]
    assert metadata["labels"]["theirs"] == "1"
    assert metadata["annotations"]["theirs.example"] == "2"
    cluster.edit(live, MERGE, {"metadata": {"labels": {"theirs": "3"}}})
    assert cluster.put_back("Deployment") == []


def test_an_edit_that_the_operator_has_not_seen_is_not_lost_from_the_book(
    cluster: Cluster,
) -> None:
    live = cluster.fresh("Deployment")
    cluster.edit(live, MERGE, in_pod(hostNetwork=True), "first")
    seen = cluster.get(live)
    cluster.edit(live, MERGE, in_pod(hostPID=True), "second")
    with pytest.raises(ApiError) as refused:
        cluster.pass_over(seen)
    assert refused.value.status == 409
    (message,) = cluster.put_back("Deployment")
    assert "hostNetwork set by first" in message
    assert "hostPID set by second" in message
    assert cluster.get(live)["spec"] == live["spec"]


def test_an_operator_that_ends_half_way_leaves_the_rest_to_the_next(cluster: Cluster) -> None:
    live = cluster.fresh("Deployment")
    cluster.edit(live, MERGE, in_pod(hostNetwork=True))
    # What it does first changes nothing that runs, and all that it knew is then in the object.
    adoption = foreign.adoption(cluster.get(live))
    cluster.edit(live, MERGE, adoption, names.FIELD_MANAGER)
    assert cluster.get(live)["spec"]["template"]["spec"]["hostNetwork"] is True
    cluster.put_back("Deployment")
    assert cluster.get(live)["spec"] == live["spec"]


def test_an_edit_of_what_a_webhook_added_takes_it_along(cluster: Cluster) -> None:
    """It is in nobody's book; the webhook adds it to our apply anew."""
    live = cluster.fresh("Deployment")
    side = {"name": "side", "image": "webhooks"}
    cluster.edit(live, STRATEGIC, in_pod(containers=[side]))
    cluster.edit(live, MERGE, {"metadata": {"managedFields": live["metadata"]["managedFields"]}})
    assert cluster.put_back("Deployment") == []
    cluster.kubectl("set", "image", f"deployment/{live['metadata']['name']}", "side=theirs")
    (message,) = cluster.put_back("Deployment")
    assert "containers[side] set by kubectl-set" in message
    assert cluster.get(live)["spec"] == live["spec"]


def test_a_book_that_somebody_emptied_is_begun_anew(cluster: Cluster) -> None:
    live = cluster.fresh("Deployment")
    cluster.edit(live, MERGE, {"metadata": {"managedFields": [{}]}, **in_pod(hostNetwork=True)})
    assert "managedFields" not in cluster.get(live)["metadata"]
    # Nobody can tell whose the addition is until the next apply, and after it all can.
    cluster.edit(live, MERGE, {"spec": {"replicas": 7}})
    cluster.pass_over(cluster.get(live))
    cluster.put_back("Deployment")
    assert cluster.get(live)["spec"] == live["spec"]
