"""Made Secrets, which nothing watches, and odd objects that stand where ours should."""

from __future__ import annotations

from typing import Any

import pytest

from servewright_operator import names, observe
from support.fake_kubernetes import FakeKubernetes, Fault
from support.operators import make_service, running_operator, settle
from support.pod_objects import crashed, pod
from support.waiting import eventually

Object = dict[str, Any]
KEYS = names.api_keys_secret("m")


def test_a_deleted_secret_is_made_again_with_its_value_and_one_event(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put(make_service("m", access={"mode": "ApiKey"}))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        before = fake.get("Secret", KEYS)
        assert before is not None
        fake.remove("Secret", KEYS)
        operator.pass_over("m")
        assert fake.get("Secret", KEYS) is None  # it was seen lately
        monkeypatch.setattr(observe, "SECRETS_MAX_S", 0)
        for _ in range(3):
            operator.pass_over("m")
        after = fake.get("Secret", KEYS)
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["data"] == before["data"]
    told = [event["message"] for event in fake.all("Event") if event["reason"] == "Repaired"]
    assert told == [f"Secret {KEYS} was deleted; it is made again."]


def test_a_value_that_a_user_writes_into_a_made_secret_stays(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put(make_service("m", access={"mode": "ApiKey"}))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        edited = fake.change("Secret", KEYS, lambda s: s["data"].update({names.API_KEY: "bXk="}))
        monkeypatch.setattr(observe, "SECRETS_MAX_S", 0)
        for _ in range(2):
            operator.pass_over("m")
        kept = fake.get("Secret", KEYS)
    assert kept is not None
    assert kept["data"] == edited["data"]


@pytest.mark.parametrize(
    "content", [{}, {"data": {}}, {"data": {"template": {}}}, {"data": {"template": {"spec": 1}}}]
)
def test_an_owned_controllerrevision_without_a_template_stops_nothing(
    fake: FakeKubernetes, content: Object
) -> None:
    service = fake.put(make_service("m"))
    owner = {"kind": "ModelService", "name": "m", "uid": service["metadata"]["uid"]}
    fake.put(
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": "m-odd",
                "namespace": "default",
                "labels": names.labels("m"),
                "ownerReferences": [{**owner, "apiVersion": "x", "controller": True}],
            },
            "revision": 7,
            **content,
        }
    )
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        eventually(lambda: fake.get("Deployment", "m"))
        eventually(lambda: fake.get("ControllerRevision", "m-odd") is None)


def test_a_log_that_does_not_come_does_not_hold_up_a_pass(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert observe.LOG_TIMEOUT_S <= 5
    monkeypatch.setattr(observe, "LOG_TIMEOUT_S", 0.2)
    fake.faults.append(Fault("get-log", "Pod", delay_s=60.0, times=1))
    fake.put(make_service("m"))
    failing = crashed(pod(owner="m", name="m-1"))
    controller = {"kind": "ReplicaSet", "name": "m", "uid": "rs", "controller": True}
    failing["metadata"]["ownerReferences"] = [controller]
    fake.put(failing)
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        status = (fake.get("ModelService", "m") or {})["status"]
    assert status["lastFailure"]["reason"] == "ProbeFailed"
    assert "logTail" not in status["lastFailure"]
