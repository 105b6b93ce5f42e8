"""Which pods fail, in their own words."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_operator import failures
from servewright_operator.deployed import Deployed
from servewright_operator.objects import Failure, Observed, PodWords
from support import pod_objects as pods
from support.observed import NOW, OVERDUE, POD, QUIET, REVISION, UID, deployment, observed
from support.odd import spoil
from support.pod_objects import BORN

NO_KEYS = 'MountVolume.SetUp failed for volume "keys" : secret "mine-keys" not found'
NO_CONFIG = 'secret "proxy" not found'
BAD_DIGEST = "mine: sha256:1111 was wanted, but the file has sha256:2222; correct the digest."
FULL_DISK = 'Usage of EmptyDir volume "model" exceeds the limit "1Gi".'


def failing(seen: Observed, now: Any = NOW) -> list[Failure]:
    return failures.failing(seen, Deployed.of(seen, now), now)


@pytest.mark.parametrize(
    ("seen", "reason", "message", "exit_code"),
    [
        pytest.param(
            observed(pods.crashed(POD)),
            "ProbeFailed",
            "mine: the probe wanted 'Paris', but got 'a a a a'.",
            1,
            id="a crash loop tells the runtime's own reason and message",
        ),
        pytest.param(
            observed(pods.crashed(POD, message="Traceback ...\nValueError: boom")),
            "CrashLoopBackOff",
            "Traceback ...\nValueError: boom",
            1,
            id="a crash loop without such a message tells the end of its log",
        ),
        pytest.param(
            observed(pods.crashed(POD, message="")),
            "CrashLoopBackOff",
            "The container replica ended with exit code 1.",
            1,
            id="a crash loop without any word tells the exit code",
        ),
        pytest.param(
            observed(pods.crashed(POD, message="a warning\n" + pods.own_words("Bug", "sorry"))),
            "Bug",
            "sorry",
            1,
            id="the runtime's message is found among lines of a log",
        ),
        pytest.param(
            observed(pods.crashed(POD, 137, "OOMKilled", "")),
            "OOMKilled",
            "Out of memory: the kernel killed the container.",
            137,
            id="a container that the kernel killed says OOMKilled and 137",
        ),
        pytest.param(
            observed(pods.crashed(POD, 137, "Error", pods.own_words("OutOfMemory", "More!"))),
            "OOMKilled",
            "More!",
            137,
            id="a supervisor that saw the kernel kill says OOMKilled with its words",
        ),
        pytest.param(
            observed(pods.crashed(POD, 137, "OOMKilled", pods.own_words("Error", "Killed."))),
            "OOMKilled",
            "Killed.",
            137,
            id="OOMKilled outweighs the runtime's own reason",
        ),
        pytest.param(
            observed(pods.fetch_failed(POD, pods.own_words("DigestMismatch", BAD_DIGEST))),
            "DigestMismatch",
            BAD_DIGEST,
            2,
            id="a digest that is not the wanted one ends the fetch with 2",
        ),
        pytest.param(
            observed(pods.fetch_failed(POD, pods.own_words("NoSpace", "No room."), exit_code=1)),
            "NoSpace",
            "No room.",
            1,
            id="a full disk ends the fetch with the runtime's words",
        ),
        pytest.param(
            observed(pods.evicted(POD, FULL_DISK), children=[deployment()]),
            "Evicted",
            FULL_DISK,
            None,
            id="an evicted pod tells what it used too much of",
        ),
        pytest.param(
            observed(pods.unschedulable(POD)),
            "Unschedulable",
            pods.SCHEDULER_SAYS,
            None,
            id="a pod without a node tells the scheduler's words",
        ),
        pytest.param(
            observed(
                pods.unschedulable(POD, 'persistentvolumeclaim "models" not found'),
            ),
            "Unschedulable",
            'persistentvolumeclaim "models" not found',
            None,
            id="a missing claim is told by the scheduler",
        ),
        pytest.param(
            observed(pods.no_image(POD, is_backing_off=False)),
            "ErrImagePull",
            f'rpc error: code = NotFound desc = failed to pull "{pods.IMAGE}": not found',
            None,
            id="an image that cannot be pulled tells the registry's words",
        ),
        pytest.param(
            observed(pods.no_image(POD, is_backing_off=True)),
            "ErrImagePull",
            f'rpc error: code = NotFound desc = failed to pull "{pods.IMAGE}": not found',
            None,
            id="so it does while the kubelet backs off",
        ),
        pytest.param(
            observed(pods.no_image(POD, is_backing_off=True, is_told=False)),
            "ErrImagePull",
            f"The image {pods.IMAGE} cannot be pulled.",
            None,
            id="and where an older kubelet does not say the cause meanwhile",
        ),
        pytest.param(
            observed(pods.not_configurable(POD, NO_CONFIG)),
            "CreateContainerConfigError",
            NO_CONFIG,
            None,
            id="a Secret that is missing for a variable is told by the kubelet",
        ),
        pytest.param(
            observed(
                QUIET,
                words=PodWords(
                    events=(
                        f"FailedMount: {NO_KEYS}",
                        "FailedMount: Unable to attach or mount volumes: timed out waiting for it",
                    )
                ),
            ),
            "FailedMount",
            NO_KEYS,
            None,
            id="a Secret that is missing for a volume is told by an Event",
        ),
        pytest.param(
            observed(
                pods.crashed(POD, 0, "Completed", ""),
                words=PodWords(
                    events=(
                        "Unhealthy: Liveness probe failed: HTTP probe failed with statuscode: 503",
                        "Unhealthy: Readiness probe failed: connection refused",
                    )
                ),
            ),
            "Unhealthy",
            "Liveness probe failed: HTTP probe failed with statuscode: 503",
            0,
            id="a container that ended well was told to by the kubelet",
        ),
        pytest.param(
            observed(pods.node_lost(POD)),
            "NodeLost",
            "The pod was serving when node node-1 was last heard of.",
            None,
            id="a pod that served on a node that is gone",
        ),
        pytest.param(
            observed(
                pods.loading(POD),
                words=PodWords(events=("Unhealthy: Startup probe failed: statuscode: 503",)),
                children=[OVERDUE],
                states={UID: {"phase": "Loading"}},
            ),
            "Hanging",
            "Container replica runs since 2026-11-23T04:00:05Z and the pod is not ready. "
            "Startup probe failed: statuscode: 503. Its phase is Loading.",
            None,
            id="a pod that hangs tells its phase once the deadline is over",
        ),
        pytest.param(
            observed(pods.fetching(POD), children=[OVERDUE]),
            "Hanging",
            "Container fetch runs since 2026-11-23T04:00:02Z and the pod is not ready.",
            None,
            id="so does one whose download does not end",
        ),
    ],
)
def test_a_failing_pod_is_told_in_its_own_words(
    seen: Observed, reason: str, message: str, exit_code: int | None
) -> None:
    (failure,) = failing(seen)
    assert (failure.pod, failure.revision) == ("mine-1", REVISION)
    assert (failure.reason, failure.message, failure.exit_code) == (reason, message, exit_code)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(observed(POD), id="that was just made"),
        pytest.param(observed(QUIET), id="whose containers are being made"),
        pytest.param(observed(pods.fetching(POD)), id="that fetches"),
        pytest.param(observed(pods.loading(POD)), id="that loads"),
        pytest.param(observed(pods.loading(POD), children=[deployment()]), id="that loads in time"),
        pytest.param(observed(pods.ready(POD)), id="that serves"),
        pytest.param(observed(pods.ready(POD), children=[OVERDUE]), id="that serves beside others"),
        pytest.param(observed(pods.ending(pods.crashed(POD))), id="that was told to go"),
        pytest.param(observed(pods.crashed(POD, is_back=True)), id="that crashed and serves again"),
    ],
)
def test_nothing_is_wrong_with_a_pod(seen: Observed) -> None:
    assert failing(seen) == []


def test_a_crash_loop_is_called_the_same_in_each_of_its_states() -> None:
    """Else conditions and Events would turn with it."""
    dead = pods.terminated(1, "Error", "boom")
    states = [
        pods.waiting("CrashLoopBackOff", "back-off 10s"),
        pods.running(30),
        pods.terminated(1, "Error", "boom", start_s=30, end_s=31),
    ]
    told = set()
    for state in states:
        replica = pods.container("replica", state=state, lastState=dead, restartCount=1)
        (failure,) = failing(observed(pods.on_a_node(POD, replica=replica)))
        told.add((failure.reason, failure.message, failure.exit_code))
    assert told == {("CrashLoopBackOff", "boom", 1)}


def test_a_single_death_that_was_overcome_is_no_crash_loop() -> None:
    seen = observed(pods.crashed(POD, 1, "Error", "killed", restarts=1, is_back=True))
    assert [one.reason for one in failures.overcome(seen, NOW)] == ["Error"]


def test_a_container_that_is_back_is_told_as_overcome_with_its_log() -> None:
    seen = observed(
        pods.crashed(POD, 137, "OOMKilled", "", is_back=True), words=PodWords(log_tail="the end\n")
    )
    (failure,) = failures.overcome(seen, NOW)
    assert (failure.reason, failure.exit_code, failure.log_tail) == ("OOMKilled", 137, "the end")
    assert failure.time == BORN + timedelta(seconds=8)


def test_an_evicted_pod_fails_no_more_once_there_are_pods_enough() -> None:
    enough = deployment()
    enough["status"]["readyReplicas"] = 1
    seen = observed(pods.evicted(POD, FULL_DISK), children=[enough])
    assert failing(seen) == []
    assert [one.reason for one in failures.overcome(seen, NOW)] == ["Evicted"]


def test_pods_that_cannot_be_made_are_told_in_the_words_of_the_api_server() -> None:
    live = deployment()
    words = 'pods "mine-x" is forbidden: exceeded quota: small, requested: memory=1Gi'
    live["status"]["conditions"] = [
        {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": words,
            "lastTransitionTime": pods.after(3),
        }
    ]
    (failure,) = failing(observed(children=[live]))
    assert (failure.pod, failure.reason, failure.message) == ("", "FailedCreate", words)
    assert failure.time == BORN + timedelta(seconds=3)


def test_words_are_cut_and_odd_reasons_are_not_passed_on() -> None:
    words = pods.own_words("not a word; rm -rf", "x" * 10_000)
    seen = observed(pods.crashed(POD, message=words), words=PodWords(log_tail="y" * 10_000))
    (failure,) = failing(seen)
    assert failure.reason == "Error"
    assert len(failure.message) <= failures.MAX_MESSAGE
    assert len(failure.log_tail) == failures.MAX_LOG_TAIL


_SITUATIONS = [
    POD,
    QUIET,
    pods.fetching(POD),
    pods.loading(POD),
    pods.ready(POD),
    pods.crashed(POD),
    pods.crashed(POD, 0, "Completed", "", is_back=True),
    pods.fetch_failed(POD, "x"),
    pods.no_image(POD, is_backing_off=True),
    pods.evicted(POD, FULL_DISK),
    pods.node_lost(POD),
    pods.unschedulable(POD),
    OVERDUE,
]


@given(st.data())
def test_odd_pods_and_deployments_crash_nothing(data: st.DataObject) -> None:
    pod = copy.deepcopy(data.draw(st.sampled_from(_SITUATIONS[:-1])))
    live = copy.deepcopy(OVERDUE)
    spoil(data, pod)
    spoil(data, live)
    live["kind"] = "Deployment"
    seen = replace(observed(pod, children=[live]), states={UID: pod})
    for failure in [*failing(seen), *failures.overcome(seen, NOW)]:
        assert failure.reason.isidentifier()
        assert len(failure.message) <= failures.MAX_MESSAGE
    failures.questions(seen, Deployed.of(seen, NOW), NOW)
    failures.next_look(seen, Deployed.of(seen, NOW), NOW)
