"""Threads, the GIL and fork: the pool belongs to the process, not to a runner."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from servewright_runtime import native
from support.native_model import Model, Piece, logits_of, make_batch, make_model, random_tokens

BEST = native.variants()[0]


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="module")
def tokens(model: Model) -> list[int]:
    return random_tokens(model.config, 60)


def test_runners_in_several_threads_do_not_disturb_each_other(
    model: Model, tokens: list[int]
) -> None:
    wanted = logits_of(model.runner(BEST).step(make_batch([Piece(tokens)])))

    def run(threads: int) -> None:
        runner = model.runner(BEST, threads=threads)
        for _ in range(15):
            got = logits_of(runner.step(make_batch([Piece(tokens)])))
            np.testing.assert_array_equal(got, wanted)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, [1, 2, 3]))


def test_one_runner_called_from_several_threads_takes_turns(
    model: Model, tokens: list[int]
) -> None:
    runner = model.runner(BEST, threads=2)
    wanted = logits_of(runner.step(make_batch([Piece(tokens)])))

    def run(slot: int) -> None:
        for _ in range(10):
            got = runner.step(make_batch([Piece(tokens, first_block=4 * slot)]))
            np.testing.assert_array_equal(logits_of(got), wanted)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))


def test_other_python_threads_run_during_a_step(model: Model) -> None:
    """No thread is made to give up the GIL here, so this one counts only if step() releases it."""
    runner = model.runner("base")
    batch = make_batch([Piece(random_tokens(model.config, 900))])
    counted, seen = 0, []

    def work() -> None:
        before = counted
        runner.step(batch)
        seen.append(counted - before)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100.0)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            counted += 1
            time.sleep(0)  # gives the GIL to who wants it
    finally:
        sys.setswitchinterval(interval)
    assert seen[0] > 0


def in_child(work: object) -> int:
    """Exit status of a forked child that runs `work`; 1 if it fails, killed after 30 s."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_pool(model: Model, tokens: list[int]) -> None:
    runner = model.runner(BEST, threads=3)
    wanted = logits_of(runner.step(make_batch([Piece(tokens)])))

    def again() -> None:
        for _ in range(3):
            np.testing.assert_array_equal(
                logits_of(runner.step(make_batch([Piece(tokens)]))), wanted
            )

    assert in_child(again) == 0
    assert in_child(lambda: in_child(again) == 0 or os._exit(1)) == 0
    again()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_runner_steps_can_step(
    model: Model, tokens: list[int]
) -> None:
    runner, other = model.runner(BEST, threads=2), model.runner(BEST, threads=2)
    wanted = logits_of(runner.step(make_batch([Piece(tokens)])))
    stop = threading.Event()

    def keep_stepping() -> None:
        while not stop.is_set():
            other.step(make_batch([Piece(tokens)]))

    thread = threading.Thread(target=keep_stepping)
    thread.start()
    try:
        for _ in range(5):
            assert (
                in_child(
                    lambda: np.testing.assert_array_equal(
                        logits_of(runner.step(make_batch([Piece(tokens)]))), wanted
                    )
                )
                == 0
            )
    finally:
        stop.set()
        thread.join(30)


def test_workers_sleep_when_nothing_runs(model: Model, tokens: list[int]) -> None:
    """CPU time of the process while it waits: spinning workers would burn all of it."""
    runner = model.runner(BEST, threads=3)
    runner.step(make_batch([Piece(tokens)]))
    waited = threading.Event()
    waited.wait(0.2)  # longer than any bounded spin
    before = os.times()
    waited.wait(0.5)
    after = os.times()
    assert (after.user + after.system) - (before.user + before.system) < 0.25
