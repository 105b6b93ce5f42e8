"""kill -9 of each process of a run: it ends, says who it was, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from support import runs
from support.runs import Run
from support.waiting import eventually

Start = Callable[..., Run]

pytestmark = pytest.mark.faults

VICTIMS = ["replica", "raylet"]
MORE_VICTIMS = ["driver", "GCS", "dashboard agent", "runtime-env agent"]


@pytest.mark.parametrize("victim", VICTIMS + (MORE_VICTIMS if runs.ALL_FAULTS else []))
def test_the_death_of_a_process_ends_the_run_with_its_name(start: Start, victim: str) -> None:
    run = start()
    run.wait_until_ready()
    members = run.members()

    os.kill(run.pids[victim], signal.SIGKILL)

    runs.assert_nothing_left(run, members)
    assert run.process.returncode == 1
    assert run.termination["reason"] == "ProcessDied"
    begin = f"The {victim} (pid {run.pids[victim]}) ended unexpectedly"
    assert run.termination["message"].startswith(begin)
    assert run.termination["message"] in run.log


def test_the_death_of_the_supervisor_ends_everything(start: Start) -> None:
    run = start()
    run.wait_until_ready()
    members = run.members()

    os.kill(run.pids["supervisor"], signal.SIGKILL)

    runs.assert_nothing_left(run, members)


@pytest.mark.skipif(not runs.ALL_FAULTS, reason="make faults runs it")
def test_the_death_of_the_supervisor_during_the_start_ends_everything(start: Start) -> None:
    run = start()

    def has_raylet() -> bool:
        children = psutil.Process(run.process.pid).children(recursive=True)
        return any(process.name() == "raylet" for process in children)

    eventually(has_raylet, timeout_s=runs.START_S)
    run.learn_where_it_lives()
    members = run.members()

    os.kill(run.process.pid, signal.SIGKILL)

    runs.assert_nothing_left(run, members)


@pytest.mark.skipif(not runs.ALL_FAULTS, reason="make faults runs it")
def test_a_replica_that_answers_no_more_ends_the_run(start: Start) -> None:
    run = start()
    run.wait_until_ready()
    members = run.members()

    os.kill(run.pids["replica"], signal.SIGSTOP)

    assert run.process.wait(timeout=60) == 1
    assert run.termination["reason"] == "NotAlive"
    assert "no answer within 5 s" in run.termination["message"]
    runs.assert_nothing_left(run, members)


def test_the_death_of_serves_controller_interrupts_nothing(start: Start) -> None:
    run = start()
    run.wait_until_ready()
    (controller,) = controllers(run)

    controller.kill()

    def is_replaced() -> bool:
        assert run.complete().status == 200
        is_there = any(each.pid != controller.pid for each in controllers(run))
        return is_there and run.state()["serve"] is not None

    eventually(is_replaced, timeout_s=60)
    eventually(lambda: run.state()["serve"].get("status") == "RUNNING", timeout_s=60)
    assert run.readyz() == 200
    assert run.stop() == 0


def controllers(run: Run) -> list[psutil.Process]:
    """Serve's controllers among the run's processes; any of those may end meanwhile."""
    found = []
    for process in psutil.Process(run.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::ServeContr"):
                found.append(process)
    return found
