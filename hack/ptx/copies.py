"""Asynchronous copies from global to shared memory (cp.async), lazy or eager.

Lazy: bytes move when the thread waits for them, as late as allowed. Eager: they move at once, as
early as allowed. A kernel is right only if both give the same; races are told in either mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hack.ptx.faults import Fault
from hack.ptx.memory import Memory
from hack.ptx.shared import Shared

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share


@dataclass
class _Copy:
    target: Lanes  # [lanes] offsets within the block
    source: Lanes  # [lanes] addresses
    reads: Lanes  # [lanes] bool; the others get zeros
    open: Lanes  # [lanes] bool: not yet landed
    group: Lanes  # [lanes]
    size: int
    at: int


class Copies:
    """What the lanes have in flight."""

    def __init__(self, memory: Memory, shared: Shared, lanes: int, *, lazy: bool) -> None:
        self.most_in_flight = 0  # bytes of the blocks that run together
        self._memory = memory
        self._shared = shared
        self._lanes = lanes
        self._lazy = lazy
        self._committed = np.zeros(lanes, np.int64)
        self._copies: list[_Copy] = []

    def start(
        self, target: Lanes, source: Lanes, mask: Lanes, valid: Lanes, size: int, at: int
    ) -> None:
        """valid: lanes that read (None: all); the others fill with zeros."""
        everyone = np.ones(self._lanes, bool) if mask is None else mask
        reads = everyone if valid is None else everyone & valid
        if reads.any():
            whole = mask is None and valid is None
            source = np.broadcast_to(source, (self._lanes,))
            # Counts and checks; the bytes move by peek.
            self._memory.load(source, None if whole else reads, self._lanes, size)
        target = np.broadcast_to(target, (self._lanes,))
        flat, lanes = self._shared.flat(target, mask, size)
        places, owners = self._shared.places(flat, lanes, size)
        self._shared.races.overwrite(places, owners, at)
        self._shared.races.pend(places, 1)
        copy = _Copy(target, source, reads, everyone.copy(), self._committed.copy(), size, at)
        self._copies.append(copy)
        if not self._lazy:
            self._move(copy, everyone)
        flying = sum(int(c.open.sum()) * c.size for c in self._copies)
        self.most_in_flight = max(self.most_in_flight, flying)

    def commit(self, mask: Lanes) -> None:
        """The open copies of each lane become its next group."""
        self._committed[slice(None) if mask is None else mask] += 1

    def wait(self, mask: Lanes, newest: int | None) -> None:
        """All but the lanes' newest groups land; None: open copies too."""
        left = []
        for copy in self._copies:
            done = copy.open if mask is None else copy.open & mask
            if newest is not None:
                done = done & (copy.group < self._committed - newest)
            if done.any():
                flat, lanes = self._shared.flat(copy.target, done, copy.size)
                places, owners = self._shared.places(flat, lanes, copy.size)
                self._shared.races.pend(places, -1)
                self._shared.races.write(places, owners, copy.at)
                if self._lazy:
                    self._move(copy, done)
                copy.open = copy.open & ~done
            if copy.open.any():
                left.append(copy)
        self._copies = left

    def leave(self, mask: Lanes) -> None:
        """Threads end: nothing of theirs may be in flight."""
        for copy in self._copies:
            if (copy.open if mask is None else copy.open & mask).any():
                instruction = self._shared.races.instruction(copy.at)
                raise Fault(f"a thread ends before its copy was waited for: {instruction}")

    def _move(self, copy: _Copy, mask: Lanes) -> None:
        flat, _ = self._shared.flat(copy.target, mask, copy.size)
        words = self._memory.peek(copy.source, copy.reads, copy.size)
        words = np.broadcast_to(words, (self._lanes, words.shape[-1]))
        words = np.where(copy.reads[:, None], words, words.dtype.type(0))[mask]
        target = self._shared.data.view(words.dtype).reshape(-1, words.shape[1])
        target[flat // copy.size] = words
