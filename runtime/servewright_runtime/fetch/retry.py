"""How long to wait for a server that does not answer well, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """Bounds of a download. The clock, sleep and dice are here so that tests hold them."""

    attempts: int = 6  # in a row that brought less than progress_bytes; about 12 s of waiting
    progress_bytes: int = 1 << 20
    first_wait_s: float = 0.5  # doubles from failure to failure
    max_wait_s: float = 30.0
    max_retry_after_s: float = 120.0  # a server that asks for more is not waited for
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0
    # A connection slower than this is dropped and resumed: 64 KiB in 60 s is 1 kB/s.
    stall_s: float = 60.0
    stall_bytes: int = 64 << 10
    max_redirects: int = 10
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    dice: Callable[[], float] = random.random  # [0, 1)

    def wait_s(self, failures: int, retry_after_s: float | None) -> float:
        """Seconds until the next attempt after `failures` in a row.

        Half of it is drawn, so that clients which failed together do not come back together.
        """
        wait = min(self.max_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return max(wait * (1 + self.dice()) / 2, retry_after_s or 0.0)

    def parse_retry_after(self, value: str | None) -> float | None:
        """Seconds that a Retry-After header asks for, as a number or a date; None if neither."""
        if value is None:
            return None
        if value.isascii() and value.isdecimal():
            return float(value)
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self.now())


class Retry(Exception):
    """This attempt failed in a way that another may not. The text ends a sentence to the user."""

    def __init__(self, why: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
