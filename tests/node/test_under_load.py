"""Requests, short ones and streams, while replicas come and go: none fails, none is cut."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from servewright_operator import names
from support.cluster import (
    LIGHT,
    MakeModel,
    Namespace,
    Object,
    RunningLoad,
    control,
    needs_control,
    until,
)

# After a crash the Lease lasts for 15 s, and the other one looks every 2 s.
TAKEOVER_S = 20.0
# A restarted API server is there at once; a client that saw it go waits before it tries again.
RECONNECT_S = 60.0
REPAIR_S = 15.0
# Between the kill and its being noticed in the pod, the socket of the dead may still be called.
ENDPOINT_S = 1.0
KILL = """
import json, os, signal, sys, time, urllib.request
state = json.load(urllib.request.urlopen("http://127.0.0.1:9000/state"))
os.kill(state["processes"][sys.argv[1]], signal.SIGKILL)
print(time.time())
"""
COMPONENTS, PROCESSES = ["kube-apiserver"], ["replica"]
# Of the long form.
ALL_FAULTS = os.environ.get("SERVEWRIGHT_FAULTS") == "all"  # `make faults`
MORE_COMPONENTS = [
    *("etcd", "kube-controller-manager", "kube-scheduler"),
    *("kubelet-{node}", "containerd-{node}", "kube-proxy-{node}"),
]
MORE_PROCESSES = ["driver", "raylet", "GCS"]

pytestmark = pytest.mark.faults


@pytest.fixture
def load(serving: Namespace) -> Iterator[RunningLoad]:
    """A load on the Service, which has had answers."""
    with serving.load(serving.url("m"), **LIGHT) as running:
        yield running


def test_a_rolling_update_loses_no_request(
    serving: Namespace, load: RunningLoad, make_model: MakeModel
) -> None:
    before = serving.get("msvc", "m")["status"]["revision"]
    serving.apply(make_model({"spec.replicas": 2, "spec.limits.maxQueued": 33}))
    after = serving.wait_ready("m")["status"]["revision"]
    old = f"{names.SERVICE_LABEL}=m,{names.REVISION_LABEL}={before}"
    until("the old pods are gone", lambda: not serving.find("pods", old))

    account = load.stop_unharmed()
    assert set(account.revisions) == {before, after}


def test_a_pod_that_is_deleted_loses_no_request(serving: Namespace, load: RunningLoad) -> None:
    victim, other = serving.pods("m")
    serving.kubectl("delete", "pod", victim["metadata"]["name"])  # waits until it is gone
    serving.wait_ready("m")
    assert other["metadata"]["uid"] in serving.uids("m")
    load.stop_unharmed()


def test_the_operator_may_be_killed(
    serving: Namespace, load: RunningLoad, operator: Namespace
) -> None:
    pods = serving.uids("m")
    leader = holder(operator)
    operator.kubectl("delete", "pod", leader, "--grace-period=0", "--force")
    killed_at = time.monotonic()
    until("another one leads", lambda: holder(operator) != leader, timeout_s=TAKEOVER_S + 10)
    assert time.monotonic() - killed_at < TAKEOVER_S

    deleted_is_made_anew(serving, "pdb/m")
    assert serving.uids("m") == pods
    load.stop_unharmed()


def holder(operator: Namespace) -> str:
    """Name of the pod that leads; the identity in the Lease may say more."""
    lease = operator.get("lease", "servewright-operator")
    identity: str = lease["spec"]["holderIdentity"]
    pods = [pod["metadata"]["name"] for pod in operator.find("pods")]
    return next((name for name in pods if identity.startswith(name)), identity)


def deleted_is_made_anew(space: Namespace, child: str) -> None:
    """A child that is deleted is there again soon: somebody is at work."""
    uid = space.kubectl("get", child, "--output=jsonpath={.metadata.uid}")
    space.kubectl("delete", child)

    def is_new() -> bool:
        now = space.kubectl("get", child, "--ignore-not-found", "--output=jsonpath={.metadata.uid}")
        return now not in ("", uid)

    until(f"{child} is made anew", is_new, timeout_s=REPAIR_S)


@needs_control
@pytest.mark.parametrize("component", COMPONENTS + (MORE_COMPONENTS if ALL_FAULTS else []))
def test_a_component_of_kubernetes_may_be_killed(
    serving: Namespace, load: RunningLoad, component: str
) -> None:
    pods = serving.uids("m")
    name = component.format(node=serving.pods("m")[0]["spec"]["nodeName"])
    control("kill", name)
    control("restart", name)
    until("the API server answers", lambda: serving.get("msvc", "m"), timeout_s=RECONNECT_S)

    edit_is_carried_out(serving)
    serving.wait_ready("m")
    assert serving.uids("m") == pods
    load.stop_unharmed()


def edit_is_carried_out(space: Namespace) -> None:
    """An edit that changes no pod reaches the Deployment: operator and API server are at work. (A
    child that is deleted again and again would be made anew ever later.)"""
    field = "progressDeadlineSeconds"
    seconds = space.get("msvc", "m")["spec"]["rollout"][field] + 1
    wanted = {"spec": {"rollout": {field: seconds}}}
    space.kubectl("patch", "msvc/m", "--type=merge", f"--patch={json.dumps(wanted)}")
    until(
        "an edit is carried out",
        lambda: space.get("deployment", "m")["spec"][field] == seconds,
        timeout_s=REPAIR_S,
    )


@pytest.mark.parametrize("process", PROCESSES + (MORE_PROCESSES if ALL_FAULTS else []))
def test_kill_9_of_a_process_costs_its_own_pods_requests_alone(
    serving: Namespace, process: str
) -> None:
    victim, other = serving.pods("m")
    # Some seconds each: they do not end between the kill and its being noticed.
    streams: Object = {"streams": 2, "stream_tokens": 600, "keep_alive": 0, "fresh": 0}
    patient: Object = {"reconnect_s": 60.0}
    with (
        serving.load(pod_url(victim), **streams, **patient) as on_victim,
        serving.load(pod_url(other), **streams, **patient) as on_other,
        serving.load(serving.url("m"), **LIGHT, **patient) as on_both,
    ):
        words = (victim["metadata"]["name"], "python", "-c", KILL, process)
        killed_at = float(serving.run(*words))
        for running in (on_other, on_both):
            running.wait_for(2)
        lost, kept, mixed = on_victim.stop(), on_other.stop(), on_both.stop()

    assert kept.failures == []
    # Visibly: cut, never ended as if it were whole. Each stream that was under way, once. (What
    # asks the pod itself, past the Service, also meets it while it starts again.)
    assert 1 <= lost.truncated.total() <= streams["streams"]
    assert all(began < killed_at for began, _, _ in lost.failures[: lost.truncated.total()])
    # Through the Service no request that began later is lost.
    assert [failure for failure in mixed.failures if failure[0] > killed_at + ENDPOINT_S] == []
    assert len(mixed.failures) <= LIGHT["keep_alive"] + LIGHT["fresh"] + LIGHT["streams"]

    service = serving.wait_ready("m")
    failure = service["status"]["lastFailure"]
    assert failure["pod"] == victim["metadata"]["name"]
    assert process in failure["message"]
    assert "ended unexpectedly" in failure["message"]
    assert failure["exitCode"] == 1


def pod_url(pod: Object) -> str:
    return f"http://{pod['status']['podIP']}:{names.HTTP_PORT}"
