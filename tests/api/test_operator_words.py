"""What a ModelService's status says while its pods fail: their own words, found by the operator's
process through real objects, and never that it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from servewright_operator import kinds
from servewright_operator.objects import Object
from support.kubelet import CRASH_MESSAGE, PULL_MESSAGE, fated
from support.operator_process import OperatorProcess
from support.place import Place
from support.waiting import eventually

NOWHERE = {"nodeSelector": {"example.com/gpu": "h900"}}
MISSING = {"secretKeyRef": {"name": "mine", "key": "token"}}
# What is in spec, and (reason, part of the message, exit code) of lastFailure and Degraded.
CASES: Mapping[str, tuple[dict[str, Any], tuple[str, str, int | None]]] = {
    "no-image": ({"pod": fated("no image")}, ("ErrImagePull", PULL_MESSAGE, None)),
    "oom": ({"pod": fated("out of memory")}, ("OOMKilled", "Out of memory", 137)),
    "crash": ({"pod": fated("crash")}, ("ProbeFailed", CRASH_MESSAGE, 1)),
    "no-node": (
        {"pod": NOWHERE},
        ("Unschedulable", "didn't match Pod's node affinity/selector", None),
    ),
    "no-gpu": (
        {"accelerator": {"type": "nvidia"}},
        ("Unschedulable", "Insufficient nvidia.com/gpu", None),
    ),
    "no-secret": (
        {"pod": {**fated("no secret"), "env": [{"name": "TOKEN", "valueFrom": MISSING}]}},
        ("CreateContainerConfigError", 'secret "mine" not found', None),
    ),
}


@pytest.fixture(scope="module")
def place(controlled_place: Place, controlled_operator: OperatorProcess) -> Place:
    """A ModelService of each case, and one whose pods serve."""
    for name, (spec, _) in CASES.items():
        controlled_place.serve(name, **spec)
    controlled_place.serve("fine")
    return controlled_place


@pytest.mark.parametrize("name", CASES)
def test_status_says_what_the_pod_says(place: Place, name: str) -> None:
    reason, message, exit_code = CASES[name][1]
    eventually(lambda: place.condition("Degraded", name).get("status") == "True", interval_s=0.2)
    status = place.status(name)
    failure = status["lastFailure"]
    assert failure["reason"] == reason
    assert message in failure["message"]
    assert failure.get("exitCode") == exit_code
    assert failure["pod"] in [pod["metadata"]["name"] for pod in place.pods(name)]
    assert failure["revision"] == status["revision"]
    degraded = place.condition("Degraded", name)
    assert degraded["reason"] == reason
    assert message in degraded["message"]
    assert place.condition("Scheduled", name)["status"] == str(reason != "Unschedulable")
    ready = place.condition("Ready", name)
    assert ready["status"] == "False"
    assert message in ready["message"]
    told = place.events("PodFailing", name)
    assert len(told) == 1
    assert message in told[0]


def test_what_nobody_could_find_out_is_never_called_ready(place: Place) -> None:
    """Its pods are ready, but nothing answers at its Service's address."""
    eventually(lambda: place.condition("Available", "fine").get("status") == "True", interval_s=0.2)
    eventually(lambda: "lastProbe" in place.status("fine"), interval_s=0.2)
    status = place.status("fine")
    assert status["lastGoodRevision"] == status["revision"]
    assert place.condition("Ready", "fine")["status"] in ("Unknown", "False")
    assert status["lastProbe"]["result"] != "Succeeded"
    assert place.condition("Degraded", "fine")["status"] == "False"


def test_a_status_that_is_told_is_not_written_again(
    place: Place, controlled_operator: OperatorProcess
) -> None:
    eventually(
        lambda: all(place.condition("Degraded", n).get("status") == "True" for n in CASES),
        interval_s=0.2,
    )
    written = {name: status_write(place, name) for name in CASES}
    passes = controlled_operator.passes()
    for name in CASES:
        place.touch(name)
    eventually(lambda: controlled_operator.passes() >= passes + len(CASES), interval_s=0.1)
    assert {name: status_write(place, name) for name in CASES} == written


def status_write(place: Place, name: str) -> Object:
    """What the API server has noted of the last write that changed the status."""
    managed = place.get(kinds.MODEL_SERVICE, name)["metadata"]["managedFields"]
    (entry,) = (entry for entry in managed if entry.get("subresource") == "status")
    return dict(entry)
