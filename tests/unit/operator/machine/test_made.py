"""When a made Secret is read: its turn, and what hints that it may not be what it was."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from servewright_operator import made
from servewright_operator.names import Key
from servewright_operator.objects import Observed, PodWords, ProbeRecord
from support.manifests import make_manifest
from support.pod_objects import BORN, creating, not_configurable, pod, ready

MOUNT = 'FailedMount: MountVolume.SetUp failed for volume "keys" : secret "mine-probe" not found'
NO_KEY = "FailedMount: references non-existent secret key: servewright-probe"
NO_CLAIM = 'FailedMount: MountVolume.SetUp failed for volume "model" : claim "m" not found'


def record(reason: str) -> ProbeRecord:
    return ProbeRecord(
        time=BORN,
        revision="aaaaaaaaaa",
        latency_s=0.1,
        result="Failed",
        reason=reason,
        message="",
        failures=1,
        repeats=1,
        succeeded_at=None,
    )


def seen(**parts: Any) -> Observed:
    return Observed(Key("default", "mine"), make_manifest({}), **parts)


@pytest.mark.parametrize(
    ("situation", "hints"),
    [
        pytest.param(seen(), 0, id="nothing happened"),
        pytest.param(seen(probe=record("Http401")), 1, id="401"),
        pytest.param(seen(probe=record("Http403")), 1, id="403"),
        pytest.param(seen(probe=record("Http500")), 0, id="another failure of the probe"),
        pytest.param(seen(pods=[ready(pod())]), 0, id="a pod that is ready"),
        pytest.param(
            seen(pods=[creating(pod())], words={"uid-mine-1": PodWords(events=(MOUNT,))}),
            1,
            id="a pod that cannot mount one",
        ),
        pytest.param(
            seen(pods=[creating(pod())], words={"uid-mine-1": PodWords(events=(MOUNT, NO_KEY))}),
            2,
            id="a pod with two complaints",
        ),
        pytest.param(
            seen(pods=[creating(pod())], words={"uid-mine-1": PodWords(events=(NO_CLAIM,))}),
            0,
            id="a pod that lacks something else",
        ),
    ],
)
def test_a_hint_is_what_speaks_of_a_secret(situation: Observed, hints: int) -> None:
    found = made.hints(situation)
    assert len(found) == hints
    assert made.hints(situation) == found  # so that it is followed once


def test_the_next_refusal_is_another_hint() -> None:
    first = record("Http401")
    later = replace(first, time=first.time + timedelta(minutes=1))
    assert made.hints(seen(probe=first)) != made.hints(seen(probe=later))


def test_a_container_that_waits_for_a_secret_is_a_hint() -> None:
    stuck = not_configurable(pod(), 'secret "theirs" not found')
    assert len(made.hints(seen(pods=[stuck]))) == 1


@pytest.mark.parametrize(
    ("access", "names"),
    [
        ({}, {"mine-probe", "mine-api-keys"}),
        ({"mode": "ApiKey", "secretRef": {"name": "theirs"}}, {"mine-probe"}),
        ({"mode": "Open"}, set()),
    ],
)
def test_the_spec_asks_for_as_many_as_there_are_keys(access: Any, names: set[str]) -> None:
    service = make_manifest({})
    service["spec"]["access"] = access
    assert made.asked_for(service) == names


def test_turns_come_within_five_minutes_and_come_apart() -> None:
    dice = random.Random(1)
    services = 1_000
    due = [BORN] * services  # all at once, in the worst case
    for _ in range(20):
        due = [made.next_turn(time, dice.random()) for time in due]
    times = sorted((time - BORN).total_seconds() for time in due)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 20 * 0.8 * 300 <= times[0] <= times[-1] <= 20 * 300
    assert times[-services // 4] - times[services // 4] > 60
    assert max(pauses) < 60
    for jitter in (0.0, 0.5, 1.0):
        assert timedelta(minutes=4) <= made.next_turn(BORN, jitter) - BORN <= made.LATEST


@pytest.mark.parametrize(
    ("name", "interval_s", "latest_s"),
    [
        ("mine-probe", 60, 60),
        ("mine-probe", 3600, 300),
        ("mine-probe", None, 300),
        ("mine-api-keys", 60, 300),
    ],
)
def test_the_first_turn_of_the_probes_key_comes_within_its_interval(
    name: str, interval_s: int | None, latest_s: int
) -> None:
    service = make_manifest({})
    if interval_s is not None:
        service["spec"]["probe"] = {"intervalSeconds": interval_s}
    latest = made.first_turn(service, name, BORN, 1.0)
    assert latest == BORN + timedelta(seconds=latest_s)
    assert made.first_turn(service, name, BORN, 0.0) == BORN
