"""Work that would keep the event loop too long goes to a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T], *, is_long: bool) -> T:
    """The result of `work`: done at once if it is short, else on a thread.

    The hand-over costs about 0.1 ms, so what takes less than a few milliseconds is short.
    """
    return await asyncio.to_thread(work) if is_long else work()
