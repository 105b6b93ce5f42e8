"""Whom the operator calls, and what the answers make of Ready."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from servewright_operator.objects import ProbeRecord
from support.pretend import Pretend
from support.situations import OTHER_MODEL, settled, with_three_replicas

# Probes: failing, unknown and stale are three things


def record(world: Pretend, **changes: object) -> ProbeRecord:
    assert world.record is not None
    return replace(world.record, **changes)  # type: ignore[arg-type]


def test_one_lost_call_changes_nothing_and_two_fail_ready() -> None:
    world = settled()
    good = copy.deepcopy(world.status)
    failed = record(world, result="Failed", reason="TimedOut", message="No.", failures=1)
    world.record = failed
    world.reconcile()
    assert world.status == good
    world.record = replace(failed, failures=2)
    world.reconcile()
    assert (world.truth("Ready"), world.reason("Ready")) == ("False", "ProbeFailed")
    assert world.status["lastProbe"]["result"] == "Failed"


def test_an_answer_of_another_revision_fails_ready() -> None:
    world = settled()
    world.record = record(
        world, result="Failed", reason="WrongRevision", revision="other", failures=2
    )
    world.reconcile()
    assert world.reason("Ready") == "ProbeFailed"
    assert world.status["lastProbe"]["revision"] == "other"


def test_calls_that_the_operator_cannot_make_make_ready_unknown() -> None:
    world = settled()
    good = copy.deepcopy(world.status)
    once = record(world, result="Unknown", reason="NotAsked", message="Network is down.")
    world.record = once
    world.reconcile()
    assert world.status == good
    world.record = replace(once, repeats=2)
    world.reconcile()
    assert (world.truth("Ready"), world.reason("Ready")) == ("Unknown", "ProbePending")
    assert world.message("Ready") == "NotAsked: Network is down."


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"result": "Unknown", "reason": "NotAsked"}, id="what could not be asked"),
        pytest.param({"reason": "Http503", "failures": 4}, id="another failure"),
    ],
)
def test_what_differs_at_every_call_is_not_written_at_every_call(other: dict[str, object]) -> None:
    world = settled()
    failed = record(world, result="Failed", reason="TimedOut", failures=3)
    world.record = failed
    world.reconcile()
    writes, told = world.status_writes, copy.deepcopy(world.status)
    for _ in range(3):
        for changes in (other, {}):
            world.now += timedelta(seconds=2)
            world.record = replace(failed, time=world.now, **changes)  # type: ignore[arg-type]
            world.reconcile()
    assert (world.status_writes, world.status) == (writes, told)
    world.record = replace(failed, time=world.now, repeats=2, **other)  # type: ignore[arg-type]
    world.reconcile()
    assert world.status["lastProbe"]["reason"] == other["reason"]
    assert world.status_writes == writes + 1


def test_an_old_answer_makes_ready_unknown_and_says_so() -> None:
    world = settled()
    made = world.reconcile()
    assert made.requeue_after_s is not None
    while world.truth("Ready") == "True":  # nobody calls any more
        assert made.requeue_after_s is not None
        world.now += timedelta(seconds=made.requeue_after_s)
        made = world.reconcile()
    assert (world.truth("Ready"), world.reason("Ready")) == ("Unknown", "ProbeStale")
    # interval 60, timeout 60
    assert world.now - world.since("Available") <= timedelta(seconds=5 * 60)


def test_the_last_success_is_written_anew_after_five_minutes_only() -> None:
    world = settled()
    writes, started = world.status_writes, world.now
    times = {world.status["lastProbe"]["time"]}
    while world.now - started < timedelta(minutes=16):
        world.step(30)
        times.add(world.status["lastProbe"]["time"])
    assert world.status_writes - writes == 3
    assert len(times) == 4


def test_the_last_failure_of_a_call_keeps_the_time_when_it_began() -> None:
    world = settled(fate="mute")
    writes = world.status_writes
    for _ in range(40):
        world.step(30)
    assert world.status_writes == writes


def test_a_new_operator_holds_on_to_ready_until_it_has_asked_or_it_is_too_old() -> None:
    world = settled()
    world.restart_operator()
    world.now += timedelta(minutes=4)
    world.reconcile()
    assert world.truth("Ready") == "True"
    world.now += timedelta(minutes=10)
    world.reconcile()
    assert (world.truth("Ready"), world.reason("Ready")) == ("Unknown", "ProbeStale")


def test_ready_comes_back_with_an_answer() -> None:
    world = settled()
    good = world.record
    world.record = record(world, result="Failed", failures=3)
    world.reconcile()
    since = world.since("Ready")
    world.now += timedelta(seconds=30)
    assert good is not None
    world.record = replace(good, time=world.now, succeeded_at=world.now)
    world.reconcile()
    assert world.truth("Ready") == "True"
    assert world.since("Ready") > since


# What is asked


def test_the_probe_carries_the_operators_key_where_keys_are_wanted() -> None:
    world = settled({"spec.access.mode": "ApiKey", "spec.probe.expect": "Paris"})
    assert world.probe is not None
    assert (world.probe.key, world.probe.expect) == ("probe-key", "Paris")
    assert world.probe.url == "http://127.96.0.7:8000"
    assert "probe-key" not in repr(world.probe)


def test_what_was_answered_to_the_operator_before_counts_until_the_keys_turn_comes() -> None:
    world = settled({"spec.access.mode": "ApiKey"})
    writes = world.status_writes
    world.restart_operator()
    world.secrets = {}
    made = world.reconcile()
    assert (made.probe, made.lacks_key) == (None, False)
    assert (world.truth("Ready"), world.status_writes) == ("True", writes)


@pytest.mark.parametrize(
    ("status_is_lost", "away"),
    [
        pytest.param(True, timedelta(0), id="nothing was told"),
        pytest.param(False, timedelta(hours=1), id="it was told too long ago"),
    ],
)
def test_a_key_that_ready_waits_for_is_read_at_once(status_is_lost: bool, away: timedelta) -> None:
    world = settled({"spec.access.mode": "ApiKey"})
    world.restart_operator()
    secrets, world.secrets = world.secrets, {}
    world.now += away
    if status_is_lost:
        world.service["status"].pop("lastProbe")
        world.service["status"]["conditions"].pop()
    made = world.reconcile()
    assert (made.probe, made.lacks_key) == (None, True)
    world.secrets = secrets
    made = world.reconcile()
    assert made.probe is not None
    assert not made.lacks_key


def test_open_access_lacks_no_key() -> None:
    world = settled()
    world.restart_operator()
    world.secrets = {}
    world.now += timedelta(hours=1)
    made = world.reconcile()
    assert made.probe is not None
    assert not made.lacks_key


def test_after_a_rollback_the_good_revision_is_asked_in_its_own_way() -> None:
    world = settled({"spec.probe.prompt": "One and", "spec.model.name": "first"})
    world.fate = "crash"
    world.edit({"spec.probe.prompt": "Other", "spec.model.name": "second"})
    world.edit({"spec.access.mode": "ApiKey"})
    world.reconcile()
    world.settle()
    assert world.reason("Ready") == "RolledBack"
    assert world.probe is not None
    assert (world.probe.prompt, world.probe.model, world.probe.key) == ("One and", "first", None)
    assert world.probe.revision == world.status["lastGoodRevision"]


def test_nobody_is_asked_while_a_revision_rolls_out() -> None:
    world = settled()
    world.edit(OTHER_MODEL)
    assert world.reconcile().probe is None


def test_the_first_ready_pod_is_asked_for_its_state() -> None:
    world = with_three_replicas()
    made = world.reconcile()
    assert made.ask_state == {"uid-mine-1": "http://127.1.2.3:9000/state"}


def test_a_pod_that_hangs_is_asked_for_its_state() -> None:
    world = settled(fate="hang")
    assert world.reconcile().ask_state == {"uid-mine-1": "http://127.1.2.3:9000/state"}


def test_nobody_is_asked_without_an_address() -> None:
    world = settled()
    world.children[("Service", "mine")]["spec"].pop("clusterIP")
    assert world.reconcile().probe is None
