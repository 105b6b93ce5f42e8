"""Waiting for a condition, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMEOUT_S = 30.0
INTERVAL_S = 0.01


def eventually(
    condition: Callable[[], object], *, timeout_s: float = TIMEOUT_S, interval_s: float = INTERVAL_S
) -> None:
    """Return once `condition` holds; AssertionError when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(interval_s)


def consistently(
    condition: Callable[[], object], *, for_s: float, interval_s: float = INTERVAL_S
) -> None:
    """Return when `condition` has held for so long; AssertionError once it does not."""
    started = time.monotonic()
    while (held_s := time.monotonic() - started) < for_s:
        assert condition(), f"no longer so after {held_s:.1f} s"
        time.sleep(interval_s)


def at_rest(
    read: Callable[[], object],
    *,
    for_s: float,
    timeout_s: float = TIMEOUT_S,
    interval_s: float = INTERVAL_S,
) -> None:
    """Return once `read` has given the same for so long; AssertionError when it has not within
    `timeout_s`."""
    last, since = read(), time.monotonic()

    def is_so() -> bool:
        nonlocal last, since
        if (now := read()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= for_s

    eventually(is_so, timeout_s=timeout_s, interval_s=interval_s)
