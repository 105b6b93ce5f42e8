"""A revision that does not come up: never Ready, rolled back, told in the pod's own words, while
the pods of the last good one serve on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from servewright_operator import names
from support.cluster import (
    LIGHT,
    MakeModel,
    Namespace,
    RunningLoad,
    condition,
    seconds_to_ready,
    until,
)

# Long enough for a pod to get to where it fails: until its containers begin, or, as many times
# as long as the good revision took for it, until its model is loaded beside a load.
DEADLINE_S, STARTS = 20, 3
ROLLED_BACK_S = 60.0
DEADLINE = "spec.rollout.progressDeadlineSeconds"

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Bad:
    """Changes that make a revision bad, and what its pods say of it."""

    changes: dict[str, Any]
    reason: str
    words: str
    exit_code: int | None = None
    starts: bool = False  # Ray and the engine, before it fails
    path: str = "/smollm2.gguf"  # on the file server


BAD = {
    "crashes": Bad(
        {"spec.engine.kvCache": "1Mi"}, "InvalidConfiguration", "kvCache", 2, starts=True
    ),
    "hangs": Bad({}, "Hanging", "fetch", path="/hang/smollm2.gguf"),
    "talks nonsense": Bad({"spec.probe.expect": "Lisbon"}, "ProbeFailed", "Lisbon", 1, starts=True),
    "needs more memory than it has": Bad(
        {
            "spec.resources.requests": {"memory": "256Mi"},
            "spec.resources.limits": {"memory": "320Mi"},
        },
        "OOMKilled",
        "memory",
        137,
        starts=True,
    ),
    "has another digest": Bad(
        {"spec.model.digest": "sha256:" + "0" * 64}, "DigestMismatch", "sha256:0000", 2, starts=True
    ),
    "has no image": Bad({"spec.pod.image": "localhost/not-there:1"}, "ErrImagePull", "not-there"),
}


@pytest.fixture(scope="module")
def load(module_space: Namespace, make_model: MakeModel) -> Iterator[RunningLoad]:
    """A load on `m` for the whole module; each test looks at its account."""
    module_space.apply(make_model())
    module_space.wait_ready("m")
    with module_space.load(module_space.url("m"), **LIGHT) as running:
        yield running
        running.stop_unharmed()


@pytest.fixture
def stable(module_space: Namespace, load: RunningLoad, make_model: MakeModel) -> Namespace:
    """A namespace in which `m` is Ready, by one replica that stays the same throughout."""
    module_space.apply(make_model())
    module_space.wait_ready("m")
    return module_space


@pytest.mark.parametrize("what", BAD)
def test_a_revision_that_does_not_come_up_is_rolled_back(
    stable: Namespace, load: RunningLoad, make_model: MakeModel, files: str, what: str
) -> None:
    bad = BAD[what]
    before = stable.get("msvc", "m")["status"]
    pods = stable.uids("m")
    source = {"spec.model.source": files + bad.path}

    start_s = max(map(seconds_to_ready, stable.pods("m")))
    deadline_s = max(DEADLINE_S, round(STARTS * start_s)) if bad.starts else DEADLINE_S

    stable.apply(make_model({DEADLINE: deadline_s, **source, **bad.changes}))
    patience_s = deadline_s + ROLLED_BACK_S
    service = stable.wait_condition("m", "Ready", "False", "RolledBack", timeout_s=patience_s)

    status = service["status"]
    assert status["lastGoodRevision"] == before["revision"]
    assert status["failedRevision"] not in (None, before["revision"])
    assert condition(service, "Available")["status"] == "True"
    failure = status["lastFailure"]
    assert failure["revision"] == status["failedRevision"]
    assert failure["reason"] == bad.reason
    assert bad.words in failure["message"]
    assert failure.get("exitCode") == bad.exit_code
    assert failure["message"] in condition(service, "Ready")["message"]
    assert any(failure["reason"] in told for told in stable.events("RolledBack", "m"))

    bad_pods = f"{names.REVISION_LABEL}={status['failedRevision']}"
    until("the bad pods are gone", lambda: not stable.find("pods", bad_pods))
    assert stable.uids("m") == pods
    account = load.wait_for(1)
    assert account.failures == []
    assert set(account.revisions) == {before["revision"]}

    # Put back: Ready at once, by the pods that never stopped.
    stable.apply(make_model())
    stable.wait_ready("m")
    assert stable.uids("m") == pods


def test_without_automatic_rollback_a_bad_revision_is_told_and_left(
    stable: Namespace, load: RunningLoad, make_model: MakeModel
) -> None:
    pods = stable.uids("m")
    left = {"spec.rollout.autoRollback": False, "spec.probe.expect": "Madrid"}
    stable.apply(make_model({DEADLINE: DEADLINE_S, **left}))
    service = stable.wait_condition("m", "Progressing", "False", "ProgressDeadlineExceeded")
    assert condition(service, "Ready")["status"] == "False"
    assert service["status"].get("failedRevision") is None
    assert len(stable.uids("m") - pods) == 1
    assert load.wait_for(1).failures == []

    stable.apply(make_model())
    stable.wait_ready("m")
    assert stable.uids("m") == pods


def test_a_first_revision_that_fails_is_left_for_inspection(
    space: Namespace, make_model: MakeModel
) -> None:
    space.apply(make_model({DEADLINE: DEADLINE_S, "spec.access.secretRef.name": "absent"} | KEYS))
    service = space.wait_condition("m", "Progressing", "False", "ProgressDeadlineExceeded")
    assert condition(service, "Ready")["status"] == "False"
    assert "absent" in service["status"]["lastFailure"]["message"]
    assert len(space.pods("m")) == 1


KEYS = {"spec.access.mode": "ApiKey"}
