"""What the generated code of a kernel calls: memory, and the lanes of a warp together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from hack.ptx.atomics import atomic
from hack.ptx.copies import Copies
from hack.ptx.faults import Fault
from hack.ptx.floats import bf16_to_f32, halves
from hack.ptx.memory import Memory
from hack.ptx.program import Kernel
from hack.ptx.shared import Shared
from hack.ptx.traffic import WARP

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share
Dimensions = tuple[int, int, int]


class Machine:
    """Some blocks of a launch that run together. Each has its threads rounded up to warps."""

    shared_window = 1 << 48  # generic addresses of shared memory begin here

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        blocks: list[Dimensions],
        block: Dimensions,
        grid: Dimensions,
        parameters: bytes,
        dynamic_bytes: int,
        *,
        lazy: bool,
        races: bool,
    ) -> None:
        self.kernel = kernel
        self.threads = block[0] * block[1] * block[2]
        width = -(-self.threads // WARP) * WARP
        self.lanes = width * len(blocks)
        self.blocks = len(blocks)
        self._memory = memory
        self.shared = Shared(kernel, dynamic_bytes, self.blocks, self.lanes, races=races)
        self.copies = Copies(memory, self.shared, self.lanes, lazy=lazy)
        self._parameters = np.frombuffer(parameters, np.uint8)
        self._special = _special(blocks, block, grid, width)
        self._lane = np.arange(self.lanes) % WARP
        self._first = np.arange(self.lanes) - self._lane

    def special(self, name: str) -> Lanes:
        """A special register."""
        return self._special[name]

    def parameter(self, offset: Lanes, kind: Any) -> Lanes:
        """A scalar of the parameters, the same for all lanes of a warp."""
        size = np.dtype(kind).itemsize
        if np.ndim(offset):
            warps = np.asarray(offset).reshape(-1, WARP)
            if (warps == warps[:, :1]).all():
                chosen = {int(at): self.parameter(int(at), kind) for at in np.unique(offset)}
                return np.array([chosen[int(at)] for at in offset], kind)
        if np.ndim(offset) or not 0 <= offset <= self._parameters.size - size:
            raise Fault("a parameter chosen by the lane, or outside the parameters")
        return self._parameters[offset : offset + size].view(kind)[0]

    def load(self, at: int, space: str, where: Lanes, mask: Lanes, kind: Any, count: int) -> Lanes:
        """`count` members a lane, each an array of a kind."""
        size = np.dtype(kind).itemsize * count
        if mask is False:
            return [kind(0)] * count
        with self._telling(at):
            space, where = self._resolve(space, where, mask)
            if space == "shared":
                words = self.shared.load(where, mask, size, at)
            else:
                constant = space == "read-only"
                words = self._memory.load(where, mask, self.lanes, size, read_only=constant)
        members = np.ascontiguousarray(words).view(kind)
        return [members[..., i] for i in range(count)]

    def store(
        self, at: int, space: str, where: Lanes, mask: Lanes, values: tuple[Lanes, ...]
    ) -> None:
        """One to four unsigned members a lane."""
        if mask is False:
            return
        size = values[0].dtype.itemsize * len(values)
        block = np.empty((self.lanes, len(values)), values[0].dtype)
        for i, value in enumerate(values):
            block[:, i] = value
        words = block.view(np.uint64 if size >= 8 else f"u{size}")
        with self._telling(at):
            space, where = self._resolve(space, where, mask)
            if size < 16:
                words = words[:, 0]
            if space == "shared":
                self.shared.store(where, mask, words, at)
            else:
                self._memory.store(where, mask, self.lanes, words)

    def atomic(
        self,
        at: int,
        space: str,
        where: Lanes,
        mask: Lanes,
        operation: str,
        values: Lanes,
        swap: Lanes = None,
    ) -> Lanes:
        """What each lane found."""
        kind = values.dtype
        result = np.zeros(self.lanes, kind)
        if mask is False:
            return result
        active = np.ones(self.lanes, bool) if mask is None else mask
        taken = np.broadcast_to(values, (self.lanes,))[active]
        swapped = None if swap is None else np.broadcast_to(swap, (self.lanes,))[active]
        with self._telling(at):
            space, where = self._resolve(space, where, mask)
            if space == "shared":
                flat, lanes = self.shared.flat(where, mask, kind.itemsize)
                places, owners = self.shared.places(flat, lanes, kind.itemsize)
                self.shared.races.atomic(places, owners, at)
                target = self.shared.data.view(kind)
            else:
                self._memory.check(where, mask, self.lanes, kind.itemsize)
                flat = np.broadcast_to(where, (self.lanes,))[active]
                target = self._memory.words(kind)
        result[active] = atomic(target, flat // kind.itemsize, operation, taken, swapped)
        return result

    def copy(self, at: int, to: Lanes, origin: Lanes, mask: Lanes, valid: Lanes, size: int) -> None:
        """cp.async."""
        if mask is False:
            return
        with self._telling(at):
            if valid is not None:
                valid = np.broadcast_to(valid, (self.lanes,))
            self.copies.start(to, origin, mask, valid, size, at)

    def whole(self, at: int, sizes: Lanes, size: int) -> None:
        """A copy reads all its bytes or none; the part that PTX would allow is not known here."""
        if not np.isin(sizes, (0, size)).all():
            raise Fault(f"a copy of a part: {self.kernel.instructions[at]}")

    def wait(self, at: int, mask: Lanes, newest: int | None) -> None:
        """cp.async.wait_group and wait_all."""
        with self._telling(at):
            self.copies.wait(mask, newest)

    def warp_barrier(self, mask: Lanes) -> None:
        """The lanes of the warps that run here have met."""
        some = slice(None) if mask is None else mask.reshape(-1, WARP).any(axis=1)
        self.shared.races.warp_barrier(some)

    def shuffle(
        self, at: int, mode: str, values: Lanes, lane: Lanes, limits: Lanes, mask: Lanes
    ) -> tuple[Lanes, Lanes]:
        """Values of other lanes, and whether they lay in range. PTX ISA 9.7.9.6."""
        limits, lane = limits.astype(np.int64), np.asarray(lane.astype(np.int64))
        clamp, segment = limits & 31, (limits >> 8) & 31
        lowest = self._lane & segment
        highest = lowest | (clamp & ~segment)
        if mode == "idx":
            other = lowest | (lane & ~segment & 31)
        else:
            other = {
                "bfly": self._lane ^ lane,
                "up": self._lane - lane,
                "down": self._lane + lane,
            }[mode]
        inside = other >= highest if mode == "up" else other <= highest
        source = self._first + np.where(inside, other, self._lane)
        if mask is not None and not mask[source[mask]].all():
            raise Fault(f"a shuffle from a lane that is not there: {self.kernel.instructions[at]}")
        return np.broadcast_to(values, (self.lanes,))[source], inside

    def vote(self, mode: str, guard: Lanes, mask: Lanes) -> Lanes:
        """any, all, uni and ballot over the lanes that take part."""
        active = np.ones(self.lanes, bool) if mask is None else mask
        active = np.zeros(self.lanes, bool) if active is False else active
        true = (np.broadcast_to(guard, (self.lanes,)) & active).reshape(-1, WARP)
        active = active.reshape(-1, WARP)
        if mode == "ballot":
            bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
            answer = (true * bits).sum(axis=1, dtype=np.uint32)
        elif mode == "any":
            answer = true.any(axis=1)
        else:
            answer = (true == active).all(axis=1)
            if mode == "uni":
                answer |= ~true.any(axis=1)
        return np.repeat(answer, WARP)

    def reduce(self, operation: str, values: Lanes, mask: Lanes) -> Lanes:
        """redux.sync over the lanes that take part."""
        how, start = {
            "add": (np.add, 0),
            "min": (np.minimum, np.iinfo(values.dtype).max),
            "max": (np.maximum, np.iinfo(values.dtype).min),
            "and": (np.bitwise_and, -1),
            "or": (np.bitwise_or, 0),
            "xor": (np.bitwise_xor, 0),
        }[operation]
        rows = np.broadcast_to(values, (self.lanes,))
        if mask is not None:
            neutral = np.array(start).astype(values.dtype)
            rows = np.where(mask, rows, neutral)
        return np.repeat(how.reduce(rows.reshape(-1, WARP), axis=1).astype(values.dtype), WARP)

    def multiply(
        self,
        at: int,
        mask: Lanes,
        a: tuple[Lanes, ...],
        b: tuple[Lanes, ...],
        c: tuple[Lanes, ...],
    ) -> list[Lanes]:
        """D[16, 8] = A[16, 16] B[16, 8] + C, summed in double, by the PTX ISA's fragments."""
        if mask is False or (
            mask is not None and (mask.reshape(-1, WARP).sum(axis=1) % WARP).any()
        ):
            raise Fault(f"mma by a part of a warp: {self.kernel.instructions[at]}")
        count = self.lanes // WARP
        group, member = np.arange(WARP) // 4, np.arange(WARP) % 4
        left, right = np.empty((count, 16, 16)), np.empty((count, 16, 8))
        total = np.empty((count, 16, 8))
        for i, register in enumerate(a):
            for half, part in enumerate(self._bf16(register)):
                left[:, group + 8 * (i & 1), 2 * member + 8 * (i >> 1) + half] = part
        for i, register in enumerate(b):
            for half, part in enumerate(self._bf16(register)):
                right[:, 2 * member + 8 * i + half, group] = part
        for i, register in enumerate(c):
            total[:, group + 8 * (i >> 1), 2 * member + (i & 1)] = self._rows(register)
        total = (left @ right + total).astype(np.float32)
        places = [(group + 8 * (i >> 1), 2 * member + (i & 1)) for i in range(4)]
        return [total[:, rows, columns].reshape(-1) for rows, columns in places]

    def _bf16(self, register: Lanes) -> list[Lanes]:
        return [self._rows(bf16_to_f32(part)) for part in halves(register)]

    def _rows(self, values: Lanes) -> Lanes:
        return np.broadcast_to(values, (self.lanes,)).reshape(-1, WARP)

    def _resolve(self, space: str, where: Lanes, mask: Lanes) -> tuple[str, Lanes]:
        """The space of generic addresses, which all lanes must share."""
        if space:
            return space, where
        active = where if mask is None else np.broadcast_to(where, (self.lanes,))[mask]
        inside = active >= self.shared_window
        if not inside.any():
            return "global", where
        if not inside.all():
            raise Fault("generic addresses of two spaces in one instruction")
        return "shared", where - self.shared_window

    @contextmanager
    def _telling(self, at: int) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            raise Fault(f"{fault}: {self.kernel.instructions[at]}") from None


def _special(
    blocks: list[Dimensions], block: Dimensions, grid: Dimensions, width: int
) -> dict[str, Lanes]:
    """Special registers; a dimension of 1, or one block alone, gives scalars."""
    thread = np.tile(np.arange(width, dtype=np.uint32), len(blocks))
    lane = thread % np.uint32(WARP)
    one = np.uint32(1)
    special: dict[str, Lanes] = {
        "%laneid": lane,
        "%warpid": thread // np.uint32(WARP),
        "%lanemask_eq": one << lane,
        "%lanemask_lt": (one << lane) - one,
        "%lanemask_le": (one << lane) - one + (one << lane),
        "%lanemask_ge": ~((one << lane) - one),
        "%lanemask_gt": ~((one << lane) - one + (one << lane)),
    }
    ahead = 1
    for axis, size in zip("xyz", block, strict=True):
        position = thread // np.uint32(ahead) % np.uint32(size)
        special[f"%tid.{axis}"] = np.uint32(0) if size == 1 else position
        special[f"%ntid.{axis}"] = np.uint32(size)
        ahead *= size
    for number, axis in enumerate("xyz"):
        where = np.array([b[number] for b in blocks], np.uint32)
        same = (where == where[0]).all()
        special[f"%ctaid.{axis}"] = where[0] if same else np.repeat(where, width)
        special[f"%nctaid.{axis}"] = np.uint32(grid[number])
    return special
