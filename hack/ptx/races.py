"""Races in shared memory: two threads at one place, one of them writing, nothing between them.

A barrier of the block orders everything before it; a barrier of the warp orders the lanes of that
warp; shuffles and votes order nothing. A read of bytes that nobody wrote, or that an asynchronous
copy has not yet delivered, counts as a race too. Each pair of instructions is told once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hack.ptx.program import Instruction

Lanes = Any  # an array with an element a lane
_NOBODY = -1
_MANY = 1 << 28  # + warp: several lanes of one warp
_ALL = 1 << 30  # lanes of several warps; as a writer: atomics


class Races:
    """Who last wrote and read each granule of the shared memory of some blocks.

    Places are flat indices of granules; lanes are numbered through all blocks.
    """

    def __init__(
        self, granules: int, lanes: int, instructions: list[Instruction], *, watch: bool
    ) -> None:
        self.found: dict[tuple[str, int, int], str] = {}
        self._watch = watch
        self._instructions = instructions
        self._epoch = np.zeros(lanes // 32, np.int32)  # of each warp
        shape = granules if watch else 0
        self._writer = np.full(shape, _NOBODY, np.int32)
        self._writer_epoch = np.zeros(shape, np.int32)
        self._writer_at = np.zeros(shape, np.int32)
        self._reader = np.full(shape, _NOBODY, np.int32)
        self._reader_epoch = np.zeros(shape, np.int32)
        self._reader_at = np.zeros(shape, np.int32)
        self._filled = np.zeros(shape, bool)
        self._pending = np.zeros(shape, np.int16)

    def block_barrier(self, granules: slice | None) -> None:
        """All threads of the block whose granules these are (of every block: None) have met."""
        if self._watch:
            part = slice(None) if granules is None else granules
            self._writer[part] = _NOBODY
            self._reader[part] = _NOBODY

    def warp_barrier(self, warps: Lanes) -> None:
        """The lanes of these warps have met."""
        self._epoch[warps] += 1

    def read(self, places: Lanes, lanes: Lanes, at: int) -> None:
        """Lanes read places, by instruction `at`."""
        if not self._watch:
            return
        self._against_writers("read after write", places, lanes, at)
        if not self._filled[places].all():
            self._tell("read of bytes that nobody wrote", at, at)
        if self._pending[places].any():
            self._tell("read before the asynchronous copy was waited for", at, at)
        before, warp = self._reader[places], lanes >> 5
        alone = (before == _NOBODY) | (before == lanes)
        merged = np.where(_warp(before) == warp, _MANY + warp, _ALL)
        now = np.where(alone, lanes, merged)
        self._reader[places] = now
        after = self._reader[places]
        if (after != now).any():  # several lanes at one place in this very instruction
            clash = after != now
            here, mine = places[clash], np.where(_warp(after) == warp, _MANY + warp, _ALL)[clash]
            self._reader[here] = mine
            self._reader[here[mine == _ALL]] = _ALL
        self._reader_epoch[places] = self._epoch[warp]
        self._reader_at[places] = at

    def write(self, places: Lanes, lanes: Lanes, at: int) -> None:
        """Lanes write places, by instruction `at`."""
        if not self._watch:
            return
        self.overwrite(places, lanes, at)
        self._writer[places] = lanes
        self._wrote(places, lanes, at)

    def atomic(self, places: Lanes, lanes: Lanes, at: int) -> None:
        """Lanes read and write places in one; atomics do not race with each other."""
        if not self._watch:
            return
        self._against_writers("atomic after write", places, lanes, at, atomics=True)
        self._against_readers("atomic after read", places, lanes, at)
        if not self._filled[places].all():
            self._tell("read of bytes that nobody wrote", at, at)
        self._writer[places] = _ALL
        self._wrote(places, lanes, at)

    def overwrite(self, places: Lanes, lanes: Lanes, at: int) -> None:
        """Only the check of a write: an asynchronous copy may land from here on."""
        if not self._watch:
            return
        self._against_writers("write after write", places, lanes, at)
        self._against_readers("write after read", places, lanes, at)
        if self._pending[places].any():
            self._tell("write into what an asynchronous copy still fills", at, at)

    def pend(self, places: Lanes, change: int) -> None:
        """An asynchronous copy to these places was started (1), or has landed (-1)."""
        if self._watch:
            np.add.at(self._pending, places, np.int16(change))

    def instruction(self, at: int) -> Instruction:
        """The instruction at an index."""
        return self._instructions[at]

    def clash(self, at: int) -> None:
        """Lanes of one instruction wrote different values to one place."""
        self._tell("write after write", at, at)

    def _wrote(self, places: Lanes, lanes: Lanes, at: int) -> None:
        self._writer_epoch[places] = self._epoch[lanes >> 5]
        self._writer_at[places] = at
        self._filled[places] = True

    def _against_writers(
        self, kind: str, places: Lanes, lanes: Lanes, at: int, *, atomics: bool = False
    ) -> None:
        writer = self._writer[places]
        foreign = (writer != _NOBODY) & (writer != lanes)
        if atomics:
            foreign &= writer != _ALL
        if foreign.any():
            ordered = (_warp(writer) == lanes >> 5) & (
                self._writer_epoch[places] < self._epoch[lanes >> 5]
            )
            self._tell_all(kind, at, self._writer_at[places[foreign & ~ordered]])

    def _against_readers(self, kind: str, places: Lanes, lanes: Lanes, at: int) -> None:
        reader = self._reader[places]
        foreign = (reader != _NOBODY) & (reader != lanes)
        if foreign.any():
            ordered = (_warp(reader) == lanes >> 5) & (
                self._reader_epoch[places] < self._epoch[lanes >> 5]
            )
            self._tell_all(kind, at, self._reader_at[places[foreign & ~ordered]])

    def _tell_all(self, kind: str, at: int, others: Lanes) -> None:
        for other in np.unique(others):
            self._tell(kind, at, int(other))

    def _tell(self, kind: str, at: int, other: int) -> None:
        if (kind, at, other) not in self.found:
            pair = "" if at == other else f"; before it, {self._instructions[other]}"
            self.found[kind, at, other] = f"{kind}: {self._instructions[at]}{pair}"


def _warp(codes: Lanes) -> Lanes:
    """The one warp that a code stands for, or -1."""
    return np.where(codes < _MANY, codes >> 5, np.where(codes < _ALL, codes - _MANY, -1))
