"""What the operator asks about a pod to tell why it fails, and how seldom."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from servewright_operator import failures
from servewright_operator.deployed import Deployed
from servewright_operator.objects import Observed
from support import pod_objects as pods
from support.observed import NOW, OVERDUE, POD, QUIET, observed
from support.pod_objects import BORN, Object


def asked(seen: Observed, after_s: float = 100) -> list[tuple[str | None, bool, bool]]:
    now = BORN + timedelta(seconds=after_s)
    found = failures.questions(seen, Deployed.of(seen, now), now)
    return [(one.container, one.previous, one.events) for one in found]


@pytest.mark.parametrize(
    ("seen", "questions"),
    [
        pytest.param(pods.ready(POD), [], id="nothing of a pod that serves"),
        pytest.param(pods.loading(POD), [], id="nothing of a pod that loads"),
        pytest.param(pods.unschedulable(POD), [], id="nothing of a pod without a node"),
        pytest.param(
            pods.crashed(POD), [("replica", True, False)], id="the last life's log of a crash loop"
        ),
        pytest.param(
            pods.crashed(POD, is_back=True),
            [("replica", True, False)],
            id="the last life's log of a pod that is back",
        ),
        pytest.param(
            pods.crashed(POD, 0, "Completed", ""),
            [("replica", True, True)],
            id="log and Events of a pod that ended well",
        ),
        pytest.param(
            pods.fetch_failed(POD, ""), [("fetch", True, False)], id="the log of a failed fetch"
        ),
        pytest.param(
            pods.on_a_node(
                POD, replica=pods.container("replica", state=pods.terminated(1, "Error"))
            ),
            [("replica", False, False)],
            id="the present log of a container that has just ended",
        ),
        pytest.param(QUIET, [(None, False, True)], id="the Events of a pod that is being made"),
        pytest.param(pods.ending(pods.crashed(POD)), [], id="nothing of a pod that goes"),
    ],
)
def test_what_is_asked(seen: Object, questions: list[Any]) -> None:
    assert asked(observed(seen)) == questions


def test_a_pod_that_hangs_is_asked_for_log_and_events() -> None:
    assert asked(observed(pods.loading(POD), children=[OVERDUE])) == [("replica", False, True)]


def test_a_pod_that_is_being_made_is_asked_about_at_ever_longer_intervals() -> None:
    seen = observed(QUIET)
    once: dict[str, int] = {}
    for after_s in range(1, 3600):
        now = BORN + timedelta(seconds=after_s)
        for question in failures.questions(seen, Deployed.of(seen, now), now):
            once.setdefault(question.once, after_s)
    assert list(once.values()) == [11, 21, 41, 81, 161, 321, 641, 1281, 2561]


def test_the_next_look_is_when_the_next_question_comes() -> None:
    seen = observed(QUIET)
    for after_s in (1, 5, 12, 50, 300):
        now = BORN + timedelta(seconds=after_s)
        look = failures.next_look(seen, Deployed.of(seen, now), now)
        assert look is not None
        before = failures.questions(seen, Deployed.of(seen, now), look - timedelta(seconds=1))
        then = failures.questions(seen, Deployed.of(seen, now), look)
        assert [one.once for one in before] != [one.once for one in then]
    loading = observed(pods.loading(POD))
    assert failures.next_look(loading, Deployed.of(loading, NOW), NOW) is None


def test_a_death_is_asked_about_once_though_the_container_is_started_again() -> None:
    dead = pods.terminated(1, "Error")
    lives = [
        pods.container("replica", state=dead),
        pods.container("replica", state=pods.waiting("CrashLoopBackOff"), lastState=dead),
        pods.container("replica", state=pods.running(30), lastState=dead, restartCount=1),
    ]
    asked = set()
    for life in lives:
        seen = observed(pods.on_a_node(POD, replica=life))
        asked |= {one.once for one in failures.questions(seen, Deployed.of(seen, NOW), NOW)}
    assert len(asked) == 1
