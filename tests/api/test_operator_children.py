"""The operator's process and the children of ModelServices: what it makes is its own, what others
add stays, what others break is put right, and what is right costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from servewright_operator import kinds, names
from servewright_operator.objects import Object
from support.apiserver import ApiServer
from support.objects import Refused
from support.operator_process import OperatorProcess, operator_process
from support.place import USER, Place
from support.waiting import eventually

KEYS = {"mode": "ApiKey"}
# Long enough for a pass that would come of something that happened before.
SOON_S = 10.0
FULL = Counter(
    {
        "Deployment": 1,
        "ControllerRevision": 1,
        "Service": 1,
        "NetworkPolicy": 1,
        "PodDisruptionBudget": 1,
        "Secret": 2,
    }
)


@pytest.fixture(scope="module")
def operator(
    api_server: ApiServer, module_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One for the whole cluster, which must outlive every test without a mistake of its own."""
    log = tmp_path_factory.mktemp("operator") / "log"
    with operator_process(api_server.kubeconfig, log, lease_namespace=module_namespace) as running:
        yield running
        assert running.is_running
        assert running.mistakes() == []


def counted(place: Place) -> Counter[str]:
    return Counter(kind for kind, _ in place.children())


def serve(place: Place, operator: OperatorProcess, **spec: Any) -> None:
    """A ModelService with all of its children, about which nothing is left to do."""
    place.serve(replicas=3, access=KEYS, **spec)
    eventually(lambda: counted(place) == FULL, interval_s=0.1)
    eventually(place.status, interval_s=0.1)
    quiet(place, operator)


def waits_for_a_secret(place: Place, template: Object) -> Object:
    """A pod as the kubelet leaves one whose Secret is not there."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "m-1", "uid": "0"}
    metadata = {
        "name": "m-1-1",
        "namespace": place.namespace,
        "labels": template["metadata"]["labels"],
        "ownerReferences": [{**owner, "controller": True}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    made = place.objects.request("POST", kinds.POD.path(place.namespace), body=pod)
    message = 'secret "m-probe" not found'
    container = {
        "name": names.REPLICA_CONTAINER,
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "CreateContainerConfigError", "message": message}},
    }
    place.objects.request(
        "PATCH",
        kinds.POD.path(place.namespace, "m-1-1") + "/status",
        body={"status": {"phase": "Pending", "containerStatuses": [container]}},
        content_type="application/merge-patch+json",
    )
    return {**made, "apiVersion": "v1", "kind": "Pod"}


def quiet(place: Place, operator: OperatorProcess) -> None:
    """Return once two passes in a row have written nothing."""

    def is_so() -> bool:
        before = operator.writes()
        for _ in range(2):
            touched(place, operator)
        return operator.writes() == before

    eventually(is_so)


def touched(place: Place, operator: OperatorProcess) -> None:
    """Have a pass made over the ModelService."""
    before = operator.passes()
    place.touch()
    eventually(lambda: operator.passes() > before, interval_s=0.05)


def test_every_desired_field_is_the_operators_and_nothing_of_the_user(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    for which, child in place.children().items():
        managers = {
            entry["manager"]
            for entry in child["metadata"]["managedFields"]
            if "subresource" not in entry
        }
        assert managers == {names.FIELD_MANAGER}, which
    service = place.get(kinds.MODEL_SERVICE)
    managed = {
        (entry["manager"], entry.get("subresource", ""))
        for entry in service["metadata"]["managedFields"]
    }
    assert managed == {(USER, ""), (names.FIELD_MANAGER, "status")}
    assert "finalizers" not in service["metadata"]
    assert set(service["metadata"]["annotations"]) == {"example.com/touched"}


def test_fields_of_a_second_manager_stay_and_cost_nothing(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    before = operator.writes()
    for kind in (kinds.DEPLOYMENT, kinds.SERVICE, kinds.NETWORK_POLICY):
        theirs = {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": {
                "name": "m",
                "namespace": place.namespace,
                "labels": {"theirs": "1"},
                "annotations": {"theirs": "1"},
            },
        }
        place.objects.apply(theirs, manager="another")
    for _ in range(3):
        touched(place, operator)
    assert operator.writes() == before
    for kind in (kinds.DEPLOYMENT, kinds.SERVICE, kinds.NETWORK_POLICY):
        metadata = place.get(kind)["metadata"]
        assert metadata["labels"]["theirs"] == metadata["annotations"]["theirs"] == "1"
        assert "another" in [entry["manager"] for entry in metadata["managedFields"]]


def test_neither_passes_nor_a_resync_write_anything(
    place: Place, operator: OperatorProcess
) -> None:
    # The second LIST comes 15 s after the first; those after it only every five minutes.
    operator.stop()
    operator.start()
    serve(place, operator)
    before, versions = operator.writes(), place.versions()
    listed = operator.value("last_resync_timestamp_seconds")
    for _ in range(3):
        touched(place, operator)
    eventually(lambda: operator.value("last_resync_timestamp_seconds") > listed, interval_s=0.5)
    touched(place, operator)
    assert operator.writes() == before
    service = (kinds.MODEL_SERVICE.name, "m")
    after = place.versions()
    assert {**after, service: ""} == {**versions, service: ""}


def test_deleted_children_come_back_each_with_one_event(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    before = place.children()
    for child in before.values():
        place.objects.delete(child)
    # Secrets cannot be watched: somebody has to miss one.
    waiting = waits_for_a_secret(place, before["Deployment", "m"]["spec"]["template"])

    def are_back() -> bool:
        after = place.children()
        return after.keys() == before.keys() and all(
            after[which]["metadata"]["uid"] != child["metadata"]["uid"]
            for which, child in before.items()
        )

    eventually(are_back, interval_s=0.1)
    place.objects.delete(waiting)
    quiet(place, operator)
    wanted = sorted(f"{kind} {name} was deleted; it is made again." for kind, name in before)
    assert sorted(place.events("Repaired")) == wanted
    after = place.children()
    for which, child in before.items():
        for content in ("spec", "data", "revision"):
            if which[0] != "Service":  # its address is a new one
                assert after[which].get(content) == child.get(content), which


def test_edits_are_put_back_each_with_one_event(place: Place, operator: OperatorProcess) -> None:
    serve(place, operator)
    specs = {which: child.get("spec") for which, child in place.children().items()}
    place.edit(kinds.DEPLOYMENT, "m", {"spec": {"replicas": 7}})
    place.edit(kinds.SERVICE, "m", {"spec": {"selector": {"app": "theirs"}}})
    place.edit(kinds.NETWORK_POLICY, "m", {"spec": {"ingress": [{}]}})
    place.edit(kinds.DISRUPTION_BUDGET, "m", {"spec": {"maxUnavailable": "100%"}})
    eventually(lambda: len(place.events("Repaired")) >= 4, interval_s=0.1)
    quiet(place, operator)
    assert {which: child.get("spec") for which, child in place.children().items()} == specs
    told = Counter(message.split()[0] for message in place.events("Repaired"))
    assert told == {
        "Deployment": 1,
        "NetworkPolicy": 1,
        "PodDisruptionBudget": 1,
        "Service": 1,
    }


def test_the_budget_goes_when_one_replica_is_wanted_and_comes_with_a_second(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": 1}})
    eventually(lambda: place.find(kinds.DISRUPTION_BUDGET, "m") is None, interval_s=0.1)
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"replicas": 2}})
    eventually(lambda: place.find(kinds.DISRUPTION_BUDGET, "m"), interval_s=0.1)
    quiet(place, operator)
    assert place.events("Repaired") == []


def test_made_keys_go_with_the_last_revision_that_mounts_them(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    for max_batch in (1, 2):
        another_revision(place, max_batch)
        assert counted(place)["Secret"] == 2
    another_revision(place, 3)
    eventually(lambda: counted(place)["Secret"] == 0, interval_s=0.1)
    assert counted(place)["ControllerRevision"] == 3
    assert place.events("Repaired") == []


def another_revision(place: Place, max_batch: int) -> None:
    """Ask for one without keys, and wait until it is stored."""
    before = {name for kind, name in place.children() if kind == "ControllerRevision"}
    spec = {"access": {"mode": "Open"}, "engine": {"maxBatch": max_batch}}
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": spec})
    eventually(
        lambda: {name for kind, name in place.children() if kind == "ControllerRevision"} - before,
        interval_s=0.1,
    )


def test_scaling_and_suspending_reach_the_deployment(
    place: Place, operator: OperatorProcess
) -> None:
    serve(place, operator)
    path = kinds.MODEL_SERVICE.path(place.namespace, "m", "scale")
    scale = place.objects.request("GET", path)
    assert scale["spec"]["replicas"] == 3
    assert scale["status"]["selector"] == ",".join(
        f"{label}={value}" for label, value in names.selector("m").items()
    )
    place.objects.request("PUT", path, body={**scale, "spec": {"replicas": 5}})
    template = place.get(kinds.DEPLOYMENT)["spec"]["template"]
    wants(place, 5)
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"suspend": True}})
    wants(place, 0)
    eventually(lambda: place.condition("Ready").get("reason") == "Suspended", interval_s=0.1)
    assert place.find(kinds.DISRUPTION_BUDGET, "m") is None
    place.edit(kinds.MODEL_SERVICE, "m", {"spec": {"suspend": False}})
    wants(place, 5)
    assert place.get(kinds.DEPLOYMENT)["spec"]["template"] == template
    assert counted(place)["ControllerRevision"] == 1


def wants(place: Place, replicas: int) -> None:
    """Return once the Deployment wants so many."""
    eventually(lambda: place.get(kinds.DEPLOYMENT)["spec"]["replicas"] == replicas, interval_s=0.1)


def test_a_namespace_that_is_going_is_left_alone_in_silence(
    place: Place, operator: OperatorProcess
) -> None:
    """No controller empties it here, so the ModelService stays, and nothing can be made for it."""
    serve(place, operator)
    place.objects.request("DELETE", f"/api/v1/namespaces/{place.namespace}")
    tried = sum(operator.writes().values())
    for kind in (kinds.SERVICE, kinds.DISRUPTION_BUDGET):
        place.delete(kind, "m")
    with pytest.raises(Refused):
        place.serve("another")

    def has_tried() -> bool:
        return sum(operator.writes().values()) > tried

    eventually(has_tried, timeout_s=SOON_S, interval_s=0.1)
    for _ in range(5):
        touched(place, operator)
    complaints = [
        one for one in operator.records("warning", "error") if place.namespace in str(one)
    ]
    assert complaints == []
    assert place.events("Repaired") == place.events("Refused") == []
