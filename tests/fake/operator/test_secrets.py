"""Made Secrets, which nothing watches, and odd objects that stand where ours should."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from servewright_operator import made, names, observe
from support.fake_kubernetes import FakeKubernetes, Fault
from support.operators import make_service, running_operator, settle
from support.pod_objects import crashed, creating, pod, ready
from support.waiting import eventually

Object = dict[str, Any]
KEYS, PROBE = names.api_keys_secret("m"), names.probe_secret("m")
WITH_KEYS = {"mode": "ApiKey"}


def asked(fake: FakeKubernetes) -> list[tuple[str, str]]:
    """Verb and name of every request about a Secret."""
    return sorted((each.verb, each.name) for each in fake.requests if each.kind == "Secret")


def contents(fake: FakeKubernetes) -> dict[str, Object]:
    return {each["metadata"]["name"]: each["data"] for each in fake.all("Secret")}


def is_another_stored(fake: FakeKubernetes, before: list[str]) -> bool:
    """Whether there is a revision that was not there before."""
    return any(each["metadata"]["name"] not in before for each in fake.all("ControllerRevision"))


def at_once(_: Object, __: str, now: datetime, ___: float) -> datetime:
    """A first turn."""
    return now


def later(_: Object, __: str, now: datetime, ___: float) -> datetime:
    """A first turn that no test lives to see."""
    return now + timedelta(hours=1)


def controlled(pod: Object) -> Object:
    """The same, made by a controller."""
    owner = {"kind": "ReplicaSet", "name": "m", "uid": "rs", "controller": True}
    return {**pod, "metadata": {**pod["metadata"], "ownerReferences": [owner]}}


def kubelet_says(message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "m-1.1", "namespace": "default"},
        "type": "Warning",
        "reason": "FailedMount",
        "message": message,
    }


def test_secrets_of_a_new_modelservice_are_created_unread(fake: FakeKubernetes) -> None:
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        assert asked(fake) == [("create", ""), ("create", "")]
        fake.requests.clear()
        operator.pass_over("m")
    assert fake.count() - fake.count("update") == {}


def test_secrets_that_exist_against_expectation_are_read_and_kept(fake: FakeKubernetes) -> None:
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
    before = contents(fake)
    for kind in ("Deployment", "ControllerRevision"):
        for child in fake.all(kind):
            fake.remove(kind, child["metadata"]["name"])
    fake.change("ModelService", "m", lambda live: live.pop("status"))
    fake.requests.clear()
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        told = asked(fake)
        fake.requests.clear()
        operator.pass_over("m")
    assert told == [("create", ""), ("create", ""), ("get", KEYS), ("get", PROBE)]
    assert contents(fake) == before
    assert fake.writes() == []


def test_a_restart_reads_no_secret_before_its_turn_and_none_twice(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [f"m{number}" for number in range(50)]
    for name in services:
        fake.put(make_service(name, access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, *services)
    before = contents(fake)
    fake.requests.clear()
    monkeypatch.setattr(observe, "first_turn", later)
    with running_operator(fake.url) as operator:
        settle(operator, *services)
        assert asked(fake) == []
    monkeypatch.setattr(observe, "first_turn", at_once)
    with running_operator(fake.url) as operator:
        settle(operator, *services)
        operator.pass_over(*services)
    assert len(asked(fake)) == len(set(asked(fake))) == 2 * len(services)
    assert contents(fake) == before
    assert fake.writes() == []


def roll_out(fake: FakeKubernetes) -> None:
    """What Kubernetes does: the revision runs, in one pod, behind an address."""

    def run(live: Object) -> None:
        live["status"] = {
            "observedGeneration": live["metadata"]["generation"],
            **dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), 1),
            "availableReplicas": 1,
            "conditions": [
                {"type": "Available", "status": "True"},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
            ],
        }

    deployment = fake.change("Deployment", "m", run)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    serving = controlled(ready(pod(labels[names.REVISION_LABEL], owner="m", name="m-1")))
    serving["status"].pop("podIP")
    fake.put(serving)
    fake.change("Service", "m", lambda live: live["spec"].update(clusterIP="127.96.0.7"))


def test_after_a_restart_only_a_key_that_ready_waits_for_is_read_at_once(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        conditions = (fake.get("ModelService", "m") or {})["status"]["conditions"]
        return str(next(one["reason"] for one in conditions if one["type"] == "Ready"))

    def ask_anew(live: Object) -> None:
        live["status"]["conditions"] = []

    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        roll_out(fake)
        eventually(lambda: told() == "ProbeFailed")  # nobody is there to answer
    monkeypatch.setattr(observe, "first_turn", later)
    fake.requests.clear()
    with running_operator(fake.url) as operator:
        settle(operator, "m")
    assert asked(fake) == []
    assert fake.writes() == []
    fake.change("ModelService", "m", ask_anew)
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        eventually(lambda: told() == "ProbeFailed")
    assert asked(fake) == [("get", PROBE)]


@pytest.mark.parametrize(
    "message",
    [
        f'MountVolume.SetUp failed for volume "keys" : secret "{PROBE}" not found',
        'MountVolume.SetUp failed for volume "keys" : references non-existent secret key: default',
    ],
)
def test_a_secret_that_a_pod_waits_for_is_looked_for_at_once_and_once(
    fake: FakeKubernetes, message: str
) -> None:
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        before = contents(fake)
        fake.remove("Secret", PROBE)
        fake.requests.clear()
        fake.put(kubelet_says(message))
        fake.put(controlled(creating(pod(owner="m", name="m-1"))))
        eventually(lambda: fake.get("Secret", PROBE))
        for _ in range(3):
            operator.pass_over("m")
    assert asked(fake) == [("create", ""), ("get", KEYS), ("get", PROBE)]
    assert contents(fake) == before


def test_a_write_that_failed_has_the_secrets_read_again(fake: FakeKubernetes) -> None:
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        before = contents(fake)
        fake.remove("Secret", KEYS)
        fake.requests.clear()
        fake.faults.append(Fault("apply", "Deployment", 500))
        fake.change("ModelService", "m", lambda live: live["spec"].update(replicas=2))
        eventually(lambda: fake.get("Secret", KEYS))
        operator.pass_over("m")
    assert asked(fake) == [("create", ""), ("get", KEYS), ("get", PROBE)]
    assert contents(fake) == before


def test_a_secret_that_is_wanted_no_more_goes_though_it_was_never_read(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
    monkeypatch.setattr(observe, "first_turn", later)
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        for threads in (1, 2, 3):
            before = [each["metadata"]["name"] for each in fake.all("ControllerRevision")]
            spec = {"access": {"mode": "Open"}, "engine": {"threads": threads}}
            service = fake.get("ModelService", "m") or {}
            fake.put({**service, "spec": {**service["spec"], **spec}})
            eventually(partial(is_another_stored, fake, before))
            settle(operator, "m")
        eventually(lambda: fake.all("Secret") == [])


def test_a_deleted_secret_is_made_again_with_its_value_and_one_event(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "LATEST", timedelta(0))
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        before = fake.get("Secret", KEYS)
        assert before is not None
        fake.remove("Secret", KEYS)
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
    monkeypatch.setattr(made, "LATEST", timedelta(0))
    fake.put(make_service("m", access=WITH_KEYS))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        edited = fake.change("Secret", KEYS, lambda s: s["data"].update({names.API_KEY: "bXk="}))
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
    fake.put(controlled(crashed(pod(owner="m", name="m-1"))))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        status = (fake.get("ModelService", "m") or {})["status"]
    assert status["lastFailure"]["reason"] == "ProbeFailed"
    assert "logTail" not in status["lastFailure"]
