"""What a pass asks of the API server, counted."""

from __future__ import annotations

import pytest

from servewright_operator import apply
from support.fake_kubernetes import FakeKubernetes, Fault
from support.operators import make_service, running_operator, settle
from support.waiting import eventually


def test_a_new_modelservice_costs_one_request_a_child_and_one_for_its_status(
    fake: FakeKubernetes,
) -> None:
    fake.put(make_service("other"))
    with running_operator(fake.url) as operator:
        settle(operator, "other")
        eventually(lambda: fake.count("watch").total() >= 7)
        fake.requests.clear()
        fake.put(make_service("m"))
        eventually(lambda: fake.count("create")["create", "Event"])
        operator.pass_over("m")
        asked = [(each.verb, each.kind) for each in fake.requests if each.kind != "Lease"]
    assert asked == [
        ("apply", "ControllerRevision"),
        ("apply", "NetworkPolicy"),
        ("apply", "Service"),
        ("apply", "Deployment"),
        ("apply-status", "ModelService"),
        ("create", "Event"),
    ]


def test_a_second_pass_asks_nothing(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        before = len(fake.writes())
        fake.requests.clear()
        for _ in range(3):
            operator.pass_over("m")
        asked = [each for each in fake.requests if each.kind != "Lease" and each.verb != "watch"]
    assert before > 0
    assert asked == []


def test_a_restart_with_a_thousand_known_objects_writes_nothing(fake: FakeKubernetes) -> None:
    names = [f"m{number}" for number in range(200)]
    for name in names:
        fake.put(make_service(name))
    with running_operator(fake.url) as operator:
        settle(operator, *names)
    kinds = ("ModelService", "ControllerRevision", "NetworkPolicy", "Service", "Deployment")
    assert sum(len(fake.all(kind)) for kind in kinds) == 1_000
    fake.requests.clear()
    with running_operator(fake.url, identity="operator-2") as operator:
        settle(operator, *names)
        eventually(lambda: fake.count("watch").total() >= 7)
        operator.pass_over(*names)
    assert fake.writes() == []
    # One LIST a page for the operator and one for kopf's watch, nothing object by object.
    assert fake.count("get", "list").total() <= 40


def test_an_edited_child_is_put_back_and_told_once(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        fake.change("Deployment", "m", lambda live: live["spec"].update(replicas=7))
        eventually(lambda: (fake.get("Deployment", "m") or {})["spec"]["replicas"] == 1)
        eventually(lambda: _told(fake, "Repaired"))
        operator.pass_over("m")
    assert _told(fake, "Repaired") == ["Deployment m had spec.replicas changed; it is put back."]


def test_a_deleted_child_is_made_again(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        fake.remove("Service", "m")
        eventually(lambda: fake.get("Service", "m"))
        eventually(lambda: _told(fake, "Repaired"))
    assert _told(fake, "Repaired") == ["Service m was deleted; it is made again."]


def test_a_child_that_is_no_longer_wanted_is_deleted(fake: FakeKubernetes) -> None:
    fake.put(make_service("m", replicas=2))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        assert fake.get("PodDisruptionBudget", "m")
        fake.change("ModelService", "m", lambda live: live["spec"].update(replicas=1))
        eventually(lambda: fake.get("PodDisruptionBudget", "m") is None)
        operator.pass_over("m")
    assert _told(fake, "Repaired") == []


def test_a_namesake_that_is_not_ours_stays_as_it_is(fake: FakeKubernetes) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "m", "namespace": "default"},
        "spec": {"selector": {"app": "theirs"}},
    }
    fake.put(theirs)
    fake.put(make_service("m"))
    with running_operator(fake.url):
        eventually(lambda: _told(fake, "Refused"))
        eventually(lambda: fake.get("Deployment", "m"))  # the other children are made
        assert (fake.get("Service", "m") or {})["spec"] == theirs["spec"]
        eventually(lambda: _degraded(fake, "m") == "Refused")
        fake.remove("Service", "m")
        eventually(lambda: _degraded(fake, "m") == "AsExpected")
    assert _told(fake, "Refused") == [
        "Service m exists and does not belong to this ModelService: delete it, or give the "
        "ModelService another name."
    ]


def test_a_deleted_modelservice_is_left_to_the_garbage_collector(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    fake.put(make_service("other"))
    with running_operator(fake.url) as operator:
        settle(operator, "m", "other")
        fake.requests.clear()
        fake.remove("ModelService", "m")
        fake.remove("Deployment", "m")  # as the garbage collector does
        operator.pass_over("m", "other")
    assert fake.writes() == []


def test_a_foreign_controller_is_not_fought_at_full_speed(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insist(written: dict[str, object]) -> None:
        if written["kind"] == "Deployment" and written["spec"]["replicas"] == 1:  # type: ignore[index]
            fake.change("Deployment", "m", lambda live: live["spec"].update(replicas=7))

    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        fake.requests.clear()
        fake.on_write = insist
        fake.change("Deployment", "m", lambda live: live["spec"].update(replicas=7))
        eventually(lambda: fake.count("apply")["apply", "Deployment"] >= 2)  # at once, after 1 s
        monkeypatch.setattr(apply, "_REPAIR_AGAIN_S", 3600.0)
        operator.pass_over("m")
        repairs = fake.count("apply")["apply", "Deployment"]
        for _ in range(20):
            operator.pass_over("m")
    # No sooner, however often a pass is made.
    assert fake.count("apply")["apply", "Deployment"] == repairs


def test_an_edit_that_the_answer_to_a_status_brings_is_acted_on(fake: FakeKubernetes) -> None:
    """No watch tells of it as news: what is known by then is the newer form of the answer."""
    fake.faults.append(Fault("watch", "ModelService", delay_s=60.0, times=9))
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        eventually(lambda: (fake.get("ModelService", "m") or {}).get("status"))
        eventually(lambda: fake.count()["watch", "Deployment"])
        fake.change("ModelService", "m", lambda live: live["spec"].update(replicas=2))
        fake.change("Deployment", "m", lambda live: live.update(status={"replicas": 1}))
        eventually(
            lambda: (fake.get("Deployment", "m") or {})["spec"]["replicas"] == 2, timeout_s=10.0
        )


def _degraded(fake: FakeKubernetes, name: str) -> str:
    conditions = (fake.get("ModelService", name) or {}).get("status", {}).get("conditions", [])
    return next((one["reason"] for one in conditions if one["type"] == "Degraded"), "")


def _told(fake: FakeKubernetes, reason: str) -> list[str]:
    return [event["message"] for event in fake.all("Event") if event["reason"] == reason]
