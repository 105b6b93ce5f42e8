"""The operator goes, comes back, and is upgraded: what is served stays as it is. What others
change in its children it puts right."""

from __future__ import annotations

import json

import pytest

from servewright_operator import names
from support.cluster import MakeModel, Namespace, Object, call, condition, until
from support.installation import OPERATOR_NAMESPACE, install_operator
from support.waiting import consistently

CHILDREN = "deployments,replicasets,pods,services,networkpolicies,pdb,controllerrevisions,secrets"
# An image that nobody has: whoever rendered a pod anew with it would show.
OTHER_DEFAULTS = ["--set", "runtime.image.tag=9.9.9", "--set", "runtime.image.pullPolicy=Always"]
STAYS_S = 6.0
REPAIR_S = 15.0
GONE_S = 90.0


def stays_the_same(space: Namespace, pods: set[str]) -> None:
    """No pod of `m` changes while an operator has time to look at everything."""
    consistently(lambda: space.uids("m") == pods, for_s=STAYS_S, interval_s=1.0)


def revisions(space: Namespace) -> dict[str, str]:
    """UIDs and contents of the ControllerRevisions, by name."""
    return {
        one["metadata"]["name"]: f"{one['metadata']['uid']} {one['data']}"
        for one in space.find("controllerrevisions", f"{names.SERVICE_LABEL}=m")
    }


def test_an_upgrade_with_other_defaults_touches_no_pod(
    serving: Namespace, operator: Namespace, helm_set: list[str], make_model: MakeModel
) -> None:
    pods, kept = serving.uids("m"), revisions(serving)
    install_operator(*helm_set, *OTHER_DEFAULTS)
    try:
        stays_the_same(serving, pods)
        assert revisions(serving) == kept
        serving.wait_ready("m")

        # Who asks for it gets today's defaults; here a bad image, so what serves stays.
        hasty = {"spec.replicas": 2, "spec.rollout.progressDeadlineSeconds": 15}
        serving.apply(make_model(hasty))
        serving.kubectl(
            "annotate", "msvc/m", f"{names.RESTARTED_AT_ANNOTATION}=2026-01-01T00:00:00Z"
        )
        service = serving.wait_condition("m", "Ready", "False", "RolledBack")
        assert "9.9.9" in service["status"]["lastFailure"]["message"]
        serving.kubectl("annotate", "msvc/m", f"{names.RESTARTED_AT_ANNOTATION}-")
        serving.apply(make_model({"spec.replicas": 2}))
        serving.wait_ready("m")
        assert serving.uids("m") == pods
    finally:
        rollback = ("helm", "rollback", "servewright", f"--namespace={OPERATOR_NAMESPACE}")
        call(*rollback, "--wait", "--timeout=3m", timeout_s=200)
    stays_the_same(serving, pods)
    serving.wait_ready("m")


def test_what_is_served_needs_no_operator(serving: Namespace, operator: Namespace) -> None:
    victim, other = serving.pods("m")
    scale_operator(operator, 0)
    try:
        serving.kubectl("delete", "pod", victim["metadata"]["name"], "--wait=false")
        until("it has a successor", lambda: len(serving.uids("m") - {uid(victim)}) == 2)
        wait = ("wait", "deployment/m", "--for=condition=Available", "--timeout=120s")
        serving.kubectl(*wait, timeout_s=150)
    finally:
        scale_operator(operator, 2)
    serving.wait_ready("m")
    assert uid(other) in serving.uids("m")


def uid(child: Object) -> str:
    found: str = child["metadata"]["uid"]
    return found


def test_a_model_deleted_without_an_operator_leaves_no_child(
    space: Namespace, operator: Namespace, make_model: MakeModel
) -> None:
    space.apply(make_model({"spec.replicas": 0, "spec.access.mode": "ApiKey"}))
    label = f"{names.SERVICE_LABEL}=m"
    made = {"Deployment", "Service", "NetworkPolicy", "ControllerRevision", "Secret"}

    def kinds() -> set[str]:
        return {child["kind"] for child in space.find(CHILDREN, label)}

    until("the children are there", lambda: kinds() >= made)
    scale_operator(operator, 0)
    try:
        space.kubectl("delete", "msvc", "m", "--timeout=30s")
        until("no child is left", lambda: not kinds(), timeout_s=GONE_S)
    finally:
        scale_operator(operator, 2)


def scale_operator(operator: Namespace, replicas: int) -> None:
    """And wait until it is so."""
    operator.kubectl("scale", "deployment/servewright", f"--replicas={replicas}")
    words = ("rollout", "status", "deployment/servewright", "--timeout=120s")
    operator.kubectl(*words, timeout_s=150)
    until("its pods are gone", lambda: len(operator.find("pods")) == replicas)


@pytest.mark.parametrize("kind", ["deployment", "service", "networkpolicy", "poddisruptionbudget"])
def test_a_child_that_is_deleted_is_made_anew(serving: Namespace, kind: str) -> None:
    pods = serving.uids("m")
    ask = ("get", kind, "m", "--ignore-not-found", "--output=jsonpath={.metadata.uid}")
    before = serving.kubectl(*ask)
    # Its ReplicaSet and pods are left for the new Deployment to adopt.
    serving.kubectl("delete", kind, "m", "--cascade=orphan")
    until("it is made anew", lambda: serving.kubectl(*ask) not in ("", before), timeout_s=REPAIR_S)
    until("an Event says so", lambda: told_repaired(serving, kind), timeout_s=REPAIR_S)
    serving.wait_ready("m")
    assert serving.uids("m") == pods


@pytest.mark.parametrize(
    ("kind", "spec", "path", "value"),
    [
        ("deployment", {"replicas": 1}, ".spec.replicas", "2"),
        ("service", {"publishNotReadyAddresses": True}, ".spec.publishNotReadyAddresses", ""),
        ("networkpolicy", {"ingress": []}, ".spec.ingress[0].ports[0].port", "8000"),
        ("poddisruptionbudget", {"maxUnavailable": 2}, ".spec.maxUnavailable", "1"),
    ],
)
def test_an_edit_of_a_child_by_others_is_reverted(
    serving: Namespace, kind: str, spec: Object, path: str, value: str
) -> None:
    patch = json.dumps({"spec": spec})
    serving.kubectl("patch", kind, "m", "--type=merge", f"--patch={patch}")
    read = ("get", kind, "m", f"--output=jsonpath={{{path}}}")
    until("it is reverted", lambda: serving.kubectl(*read) == value, timeout_s=REPAIR_S)
    until("an Event says so", lambda: told_repaired(serving, kind), timeout_s=REPAIR_S)


def told_repaired(space: Namespace, kind: str) -> bool:
    return any(kind in told.lower() for told in space.events("Repaired", "m"))


def test_uninstalling_leaves_the_models_and_a_new_operator_takes_them_up(
    serving: Namespace, operator: Namespace, helm_set: list[str]
) -> None:
    pods = serving.uids("m")
    call(
        "helm",
        "uninstall",
        "servewright",
        f"--namespace={OPERATOR_NAMESPACE}",
        "--wait",
        timeout_s=120,
    )
    stays_the_same(serving, pods)
    install_operator(*helm_set)
    serving.wait_ready("m")
    stays_the_same(serving, pods)
    assert condition(serving.get("msvc", "m"), "Ready")["status"] == "True"
