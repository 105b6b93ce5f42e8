"""What an API server does to an operator on a bad day, and that the operator gets over it."""

from __future__ import annotations

import threading

import httpx
import pytest

from servewright_operator import kinds, resync
from servewright_operator.resync import NotInstalled
from support import fake_kinds
from support.fake_kubernetes import FakeKubernetes, Fault
from support.operators import (
    RunningOperator,
    make_service,
    make_settings,
    running_operator,
    settle,
)
from support.waiting import eventually

WATCHES = 7  # one a kind


def test_a_cut_watch_goes_on_where_it_was(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        eventually(lambda: fake.count("watch").total() >= WATCHES)
        fake.cut_watches()
        fake.put(make_service("while-it-was-cut"))
        eventually(lambda: fake.get("Deployment", "while-it-was-cut"))


def test_after_a_410_the_watch_lists_anew(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        eventually(lambda: fake.count("watch").total() >= WATCHES)
        fake.requests.clear()
        fake.cut_watches(gone=True)
        fake.put(make_service("while-it-was-gone"))
        eventually(lambda: fake.get("Deployment", "while-it-was-gone"))
        assert fake.count("list")["list", "ModelService"] >= 1


def test_what_vanished_while_no_watch_was_up_is_found_by_a_list(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url, resync_s=2.0) as operator:
        settle(operator, "m")
        fake.remove("Service", "m", told=False)
        eventually(lambda: fake.get("Service", "m"))
        fake.remove("ModelService", "m", told=False)
        eventually(lambda: len(operator.operator.store.service_keys()) == 0)


def test_what_vanished_before_a_410_is_found_without_waiting_for_the_next_resync(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "SECOND_AFTER_S", 0.1)
    fake.put(make_service("m"))
    with running_operator(fake.url, resync_s=3600.0) as operator:
        settle(operator, "m")
        eventually(lambda: fake.count("watch").total() >= WATCHES)
        eventually(lambda: fake.count()["list", "ModelService"] >= 3)  # ours twice and kopf's
        fake.remove("Service", "m", told=False)
        fake.cut_watches(gone=True)
        eventually(lambda: fake.get("Service", "m"))


@pytest.mark.parametrize("code", [409, 429, 500, 503])
def test_a_refused_write_is_made_again_later(fake: FakeKubernetes, code: int) -> None:
    fake.faults.append(Fault("apply", "Deployment", code, headers={"Retry-After": "1"}))
    fake.faults.append(Fault("apply-status", "ModelService", code))
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        eventually(lambda: "status" in (fake.get("ModelService", "m") or {}))
        operator.pass_over("m")
        # What was done before the fault is not done again.
        assert fake.count()["apply", "Service"] == 1
        assert fake.count()["apply", "Deployment"] == 2
        assert fake.count()["apply-status", "ModelService"] == 2


def test_one_modelservice_that_fails_does_not_keep_others_waiting(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url, workers=1) as operator:
        settle(operator, "m")
        fake.faults.append(Fault("apply", "NetworkPolicy", 500, times=1))
        fake.put(make_service("unlucky"))
        eventually(lambda: fake.count()["apply", "NetworkPolicy"] == 2)
        fake.put(make_service("lucky"))
        eventually(lambda: fake.get("Deployment", "lucky"))
        eventually(lambda: fake.get("Deployment", "unlucky"))


def test_nothing_is_written_before_everything_is_listed(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
    fake.requests.clear()
    # Seen without its Deployment, the ModelService would seem to lack one.
    may_be_listed = threading.Event()
    fake.faults.append(Fault("list", "Deployment", released=may_be_listed))
    fake.faults.append(Fault("list", "Service", 503))
    with running_operator(fake.url, identity="operator-2") as operator:
        eventually(lambda: fake.count()["list", "ModelService"])
        assert _status(operator, "readyz") == 503
        may_be_listed.set()
        eventually(lambda: _status(operator, "readyz") == 200)
        operator.pass_over("m")
    assert fake.writes() == []


def test_without_the_crds_the_operator_ends_with_the_cure(fake: FakeKubernetes) -> None:
    fake.faults.append(Fault("list", "ModelService", 404))
    operator = RunningOperator(fake.url, make_settings())
    operator.start()
    eventually(lambda: operator.error)
    operator.stop()
    assert isinstance(operator.error, NotInstalled)
    assert "install the chart servewright-crds" in str(operator.error)


def test_podmonitors_that_come_are_made_and_watched_and_may_go_again(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url, resync_s=1.0) as operator:
        settle(operator, "m")
        with monkeypatch.context() as installed:
            installed.setitem(fake_kinds.KIND, kinds.POD_MONITOR.plural, kinds.POD_MONITOR.name)
            kind = (*kinds.POD_MONITOR[::2], kinds.POD_MONITOR.name, True)
            installed.setattr(fake_kinds, "_KINDS", [*fake_kinds._KINDS, kind])
            eventually(lambda: fake.get("PodMonitor", "m"))
            eventually(lambda: fake.count()["watch", "PodMonitor"])
            assert _transitions(fake) == 1  # given up, and taken again
        eventually(lambda: _transitions(fake) == 2)
        settle(operator, "m")
        fake.put(make_service("later"))
        eventually(lambda: fake.get("Deployment", "later"))
        assert operator.error is None


def test_a_crd_that_is_too_old_is_told_of_once_and_on_each_modelservice(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    words = ".status.revision: field not declared in schema"
    fake.faults.append(Fault("apply-status", "ModelService", 500, times=4, message=words))
    for name in ("m", "other"):
        fake.put(make_service(name))
    with running_operator(fake.url) as operator:
        eventually(lambda: _has_status(fake, "m") and _has_status(fake, "other"))
        operator.pass_over("m", "other")
    cure = (
        "The CRD of ModelServices is older than the operator, which therefore writes no status: "
        "upgrade the chart servewright-crds."
    )
    # Not the fake API server's, of watches that were hung up on.
    ours = [each for each in caplog.records if each.name.startswith("servewright_operator")]
    assert [each.message for each in ours if each.levelname == "ERROR"] == [cure]
    told = [each for each in fake.all("Event") if each["reason"] == "OldCrd"]
    assert {each["involvedObject"]["name"] for each in told} == {"m", "other"}
    assert {each["message"] for each in told} == {cure}


def test_two_operators_that_race_converge(fake: FakeKubernetes) -> None:
    """As when a Lease fails to keep them apart: each has one of its own here."""
    names = [f"m{number}" for number in range(5)]
    with (
        running_operator(fake.url, identity="a", lease_name="a") as one,
        running_operator(fake.url, identity="b", lease_name="b") as other,
    ):
        for name in names:
            fake.put(make_service(name, access={"mode": "ApiKey"}))
        for operator in (one, other):
            eventually(lambda: all(_has_status(fake, name) for name in names))
            settle(operator, *names)
        secrets = {each["metadata"]["name"]: each["data"] for each in fake.all("Secret")}
        fake.requests.clear()
        for operator in (one, other, one):
            settle(operator, *names)
        assert fake.writes() == []
    assert len(fake.all("Deployment")) == len(names)
    # Whoever made a key first, nobody has overwritten it.
    assert {each["metadata"]["name"]: each["data"] for each in fake.all("Secret")} == secrets


def test_health_and_metrics_are_told(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        assert _status(operator, "livez") == 200
        text = httpx.get(_url(operator, "metrics")).text
    assert "servewright_operator_leader 1.0" in text
    assert 'servewright_operator_modelservices{condition="Admitted",status="True"} 1.0' in text
    assert 'code="200",kind="Deployment",verb="list"' in text


def test_a_spec_that_cannot_be_read_leaves_the_children_alone(fake: FakeKubernetes) -> None:
    fake.put(make_service("m"))
    with running_operator(fake.url) as operator:
        settle(operator, "m")
        fake.requests.clear()
        fake.change("ModelService", "m", lambda live: live["spec"]["model"].update(source="?"))
        eventually(lambda: fake.count()["apply-status", "ModelService"])
        operator.pass_over("m")
    kinds = {each.kind for each in fake.writes()}
    assert kinds == {"ModelService", "Event"}


def _transitions(fake: FakeKubernetes) -> int:
    """How often the Lease went from one to another, or to the same again."""
    lease = fake.get("Lease", "servewright-operator", "servewright") or {}
    return int(lease["spec"]["leaseTransitions"])


def _has_status(fake: FakeKubernetes, name: str) -> bool:
    return "status" in (fake.get("ModelService", name) or {})


def _url(operator: RunningOperator, path: str) -> str:
    return f"http://127.0.0.1:{operator.operator.port}/{path}"


def _status(operator: RunningOperator, path: str) -> int:
    return httpx.get(_url(operator, path), timeout=10).status_code
