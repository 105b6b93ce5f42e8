"""Where a start's time went: the parts make the whole."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_operator.cold_start import cold_start
from support import pod_objects as pods
from support.pod_objects import BORN, Object

STATE: Object = {"phase": "Ready", "coldStart": {"start": 6.0, "load": 4.5, "warm": 1.25}}


def test_the_parts_are_told_by_the_pod_and_by_its_state() -> None:
    # born 0, scheduled 1, fetch 2 to 4, replica 5, ready 20
    assert cold_start(pods.ready(pods.pod()), STATE) == {
        "schedule": 1.0,
        "pull": 2.0,  # the image before the fetch, and the container after it
        "fetch": 2.0,
        "start": 6.0,
        "load": 4.5,
        "warm": 4.5,  # 1.25 of its own, and until the kubelet saw it
    }


def test_a_model_on_a_claim_is_not_fetched() -> None:
    pod = pods.ready(pods.pod())
    pod["status"]["initContainerStatuses"] = []
    found = cold_start(pod, STATE)
    assert found is not None
    assert (found["fetch"], found["pull"]) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("pod", "state"),
    [
        pytest.param(pods.ready(pods.pod()), {}, id="without a state"),
        pytest.param(pods.ready(pods.pod()), {"coldStart": {}}, id="of a state without parts"),
        pytest.param(pods.loading(pods.pod()), STATE, id="of a pod that is not ready"),
        pytest.param(
            pods.crashed(pods.pod(), is_back=True), STATE, id="of a pod that was restarted"
        ),
    ],
)
def test_nothing_is_told(pod: Object, state: Object) -> None:
    assert cold_start(pod, state) is None


def test_a_pod_that_was_ready_before_tells_nothing() -> None:
    pod = pods.ready(pods.pod())
    pod["status"]["conditions"][1]["lastTransitionTime"] = pods.after(4000)
    assert cold_start(pod, STATE) is None


@given(
    whole_s=st.integers(0, 3),
    node_s=st.floats(0, 5),
    image_s=st.floats(0, 100),
    fetch_s=st.floats(0, 100),
    gap_s=st.floats(0, 3),
    own=st.lists(st.floats(0, 100), min_size=3, max_size=3),
    unseen_s=st.floats(0, 5),
)
def test_the_parts_sum_to_the_whole_within_a_second_a_boundary(
    whole_s: int,
    node_s: float,
    image_s: float,
    fetch_s: float,
    gap_s: float,
    own: list[float],
    unseen_s: float,
) -> None:
    """Kubernetes cuts its stamps to whole seconds."""
    times = [0.4 * whole_s]
    for step in (node_s, image_s, fetch_s, gap_s, sum(own) + unseen_s):
        times.append(times[-1] + step)
    born, scheduled, fetching, fetched, started, ready = (
        pods.stamp((BORN + timedelta(seconds=time)).replace(microsecond=0)) for time in times
    )
    pod: Any = copy.deepcopy(pods.ready(pods.pod()))
    pod["metadata"]["creationTimestamp"] = born
    status = pod["status"]
    status["conditions"][0]["lastTransitionTime"] = scheduled
    status["conditions"][1]["lastTransitionTime"] = ready
    ended = status["initContainerStatuses"][0]["state"]["terminated"]
    ended.update(startedAt=fetching, finishedAt=fetched)
    status["containerStatuses"][0]["state"]["running"]["startedAt"] = started
    state = {"coldStart": dict(zip(("start", "load", "warm"), own, strict=True))}
    parts = cold_start(pod, state)
    assert parts is not None
    assert all(seconds >= 0 for seconds in parts.values())
    assert abs(sum(parts.values()) - (times[-1] - times[0])) <= 2.0
    assert parts["load"] == round(own[1], 3)
    for part, seconds in (("schedule", node_s), ("fetch", fetch_s), ("pull", image_s + gap_s)):
        assert abs(parts[part] - seconds) <= (2.0 if part == "pull" else 1.0)
