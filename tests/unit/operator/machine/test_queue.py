"""The queue: no change is missed, no key is worked on twice at once, failures come back later."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from servewright_operator.names import Key
from servewright_operator.queue import BACKOFF_MAX_S, Queue

A, B, C = (Key("default", name) for name in "abc")


class Clock:
    """A loop's clock and timers, moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(when, call)
        heapq.heappush(self._due, (when, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._due)
            if not timer.is_cancelled:
                timer.call()
        self.now = end


class Timer:
    """One call that is due."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self._when, self.call, self.is_cancelled = when, call, False

    def cancel(self) -> None:
        self.is_cancelled = True

    def when(self) -> float:
        return self._when


def make_queue() -> tuple[Queue, Clock]:
    clock = Clock()
    return Queue(call_at=clock.call_at, clock=lambda: clock.now, jitter=lambda: 0.0), clock


def take(queue: Queue) -> Key | None:
    """What `get` gives at once; None where it would wait."""
    if not queue.waiting:
        return None
    getting: Coroutine[Any, Any, Key] = queue.get()
    try:
        getting.send(None)
    except StopIteration as stopped:
        key: Key = stopped.value
        return key
    raise AssertionError("a key that waits is given without waiting")


def test_first_come_is_first_served() -> None:
    queue, _ = make_queue()
    for key in (B, A, C, A, B):
        queue.add(key)
    assert [take(queue), take(queue), take(queue), take(queue)] == [B, A, C, None]


def test_a_key_added_while_it_is_worked_on_is_worked_on_again_afterwards() -> None:
    queue, _ = make_queue()
    queue.add(A)
    assert take(queue) == A
    queue.add(A)
    queue.add(A)
    assert take(queue) is None
    queue.done(A)
    assert take(queue) == A
    queue.done(A)
    assert take(queue) is None


def test_of_several_delays_the_earliest_counts() -> None:
    queue, clock = make_queue()
    queue.add_after(A, 10)
    queue.add_after(A, 2)
    queue.add_after(A, 5)
    clock.advance(1.9)
    assert take(queue) is None
    clock.advance(0.2)
    assert take(queue) == A
    queue.done(A)
    clock.advance(60)
    assert take(queue) is None


def test_failures_come_back_later_and_later_until_one_succeeds() -> None:
    queue, clock = make_queue()
    waits = [queue.retry(A) for _ in range(12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, *[BACKOFF_MAX_S] * 3]
    clock.advance(1)
    assert take(queue) == A
    queue.done(A)
    queue.succeeded(A)
    assert queue.retry(A) == 1


def test_the_api_servers_own_wish_makes_a_retry_later() -> None:
    queue, _ = make_queue()
    assert queue.retry(A, at_least_s=30) == 30


def test_a_forgotten_key_does_not_come_back() -> None:
    queue, clock = make_queue()
    queue.retry(A)
    queue.forget(A)
    clock.advance(10)
    assert take(queue) is None


def test_the_age_of_the_longest_pass_is_known() -> None:
    queue, clock = make_queue()
    assert queue.oldest_s == 0
    queue.add(A)
    queue.add(B)
    take(queue)
    clock.advance(3)
    take(queue)
    clock.advance(4)
    assert queue.oldest_s == 7
    queue.done(A)
    assert queue.oldest_s == 4


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "later", "retry", "get", "done", "wait"]),
        st.sampled_from([A, B, C]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_each_wish_gets_a_pass_that_begins_after_it(
    steps: list[tuple[str, Key, int]],
) -> None:
    queue, clock = make_queue()
    open_wishes: set[Key] = set()
    working: set[Key] = set()

    def get() -> bool:
        key = take(queue)
        if key is None:
            return False
        assert key not in working
        working.add(key)
        open_wishes.discard(key)
        return True

    def done(key: Key) -> None:
        if key in working:
            working.remove(key)
            queue.done(key)

    for step, key, number in steps:
        match step:
            case "add":
                queue.add(key)
                open_wishes.add(key)
            case "later":
                queue.add_after(key, number)
                open_wishes.add(key)
            case "retry":
                queue.retry(key)
                open_wishes.add(key)
            case "get":
                get()
            case "done":
                done(key)
            case "wait":
                clock.advance(number)
    clock.advance(10 * BACKOFF_MAX_S)
    while True:
        for key in list(working):
            done(key)
        if not get():
            break
    assert not open_wishes
    assert len(queue) == 0
