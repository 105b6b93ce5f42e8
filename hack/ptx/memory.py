"""Global memory: the arrays given, each between gaps, with what was asked of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hack.ptx.faults import Fault
from hack.ptx.traffic import SECTOR, Traffic, global_request
from numpy.typing import NDArray

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share
PAGE = 256
_IDLE = PAGE  # where lanes that take no part point to
_CAPACITY = 1 << 28  # of address space; pages that nobody touches cost nothing
_UNITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}


@dataclass
class Array:
    """One array of global memory. `loaded` and `stored` mark its sectors of 32 bytes."""

    name: str
    start: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    loads: Traffic = field(default_factory=Traffic)
    stores: Traffic = field(default_factory=Traffic)
    loaded: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    stored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    # Of each byte: stored, and loaded through the read-only path. Both together are a fault.
    changed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    fixed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    constant: bool = False

    @property
    def fetched(self) -> int:
        """Bytes of the sectors read at least once: the least that memory must deliver."""
        return int(self.loaded.sum()) * SECTOR

    @property
    def written(self) -> int:
        """Bytes of the sectors written at least once."""
        return int(self.stored.sum()) * SECTOR


class Memory:
    """An address space. Reads and writes outside the arrays are faults."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._bytes = np.zeros(_CAPACITY, np.uint8)
        self._top = 2 * PAGE
        self._starts: list[int] = []
        self._sorted: list[Array] = []

    def place(self, name: str, values: NDArray[Any], *, constant: bool = False) -> int:
        """Copy an array in; its address. Stores into a constant one are faults."""
        start, size = self._top, values.nbytes
        self._top = (-(-(start + size) // PAGE) + 1) * PAGE
        if self._top > _CAPACITY:
            raise ValueError(f"{name}: the interpreter holds {_CAPACITY} bytes in all")
        self._bytes[start : start + size] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        array = Array(name, start, size, values.dtype, values.shape)
        array.loaded = np.zeros(-(-size // SECTOR), bool)
        array.stored = array.loaded.copy()
        array.changed, array.fixed = np.zeros(size, bool), np.zeros(size, bool)
        array.constant = constant
        self.arrays[name] = array
        self._starts.append(start)
        self._sorted.append(array)
        return start

    def place_poisoned(self, name: str, shape: tuple[int, ...], dtype: Any) -> int:
        """Room for an output, filled with 0xff: NaN in every floating type."""
        raw = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8)
        return self.place(name, raw.view(dtype).reshape(shape))

    def read(self, name: str) -> NDArray[Any]:
        """A copy of what the array holds now."""
        array = self.arrays[name]
        raw = self._bytes[array.start : array.start + array.size].copy()
        return raw.view(array.dtype).reshape(array.shape)

    def load(
        self, addresses: Lanes, mask: Lanes, lanes: int, size: int, *, read_only: bool = False
    ) -> Lanes:
        """[lanes, size / unit] of unsigned words (or [size / unit] when the address is shared).

        `read_only`: through the path that need not see what this launch writes.
        """
        self._account(addresses, mask, lanes, size, "read-only" if read_only else "load")
        return self.peek(addresses, mask, size)

    def peek(self, addresses: Lanes, mask: Lanes, size: int) -> Lanes:
        """Load without counting and checking."""
        if mask is not None:
            addresses = np.where(mask, addresses, _IDLE)
        unit = min(size, 8)
        words = self._bytes.view(_UNITS[size]).reshape(-1, size // unit)
        return words[addresses // size]

    def store(self, addresses: Lanes, mask: Lanes, lanes: int, values: Lanes) -> None:
        """values: [lanes] of one to eight bytes, or [lanes, 2] of eight."""
        size = values.dtype.itemsize * (values.shape[1] if values.ndim == 2 else 1)
        self._account(addresses, mask, lanes, size, "store")
        words = self._bytes.view(_UNITS[size])
        if size == 16:
            words = words.reshape(-1, 2)
        addresses = np.broadcast_to(addresses, (lanes,))
        if mask is not None:
            addresses, values = addresses[mask], values[mask]
        words[addresses // size] = values

    def words(self, kind: Any) -> NDArray[Any]:
        """All of memory as words of a kind: for atomics, which check by `check`."""
        return self._bytes.view(kind)

    def check(self, addresses: Lanes, mask: Lanes, lanes: int, size: int) -> None:
        """Count an atomic's request as a store."""
        self._account(addresses, mask, lanes, size, "store")

    def _account(self, addresses: Lanes, mask: Lanes, lanes: int, size: int, kind: str) -> None:
        active = addresses
        if mask is not None:
            active = np.broadcast_to(addresses, (lanes,))[mask]
            if not active.size:
                return
        low, high = int(active.min()), int(active.max())
        if np.bitwise_and(active, size - 1).any():
            raise Fault(f"address {low:#x} (or a neighbour's) is not aligned to {size} bytes")
        first, last = self._owner(low, size), self._owner(high, size)
        if first is last:
            self._count(first, addresses, active, mask, lanes, size, kind)
            return
        # Several arrays in one instruction: one after the other.
        everyone = np.broadcast_to(addresses, (lanes,))
        taken = np.zeros(lanes, bool)
        part = np.ones(lanes, bool) if mask is None else mask
        while (part & ~taken).any():
            owner = self._owner(int(everyone[part & ~taken][0]), size)
            inside = (
                part & (everyone >= owner.start) & (everyone + size <= owner.start + owner.size)
            )
            taken |= inside
            self._count(owner, everyone, everyone[inside], inside, lanes, size, kind)

    def _owner(self, address: int, size: int) -> Array:
        at = bisect_right(self._starts, address) - 1
        array = self._sorted[max(at, 0)]
        if at < 0 or address + size > array.start + array.size:
            where = f"{address - array.start} of {array.name} ({array.size} bytes)"
            raise Fault(f"{size} bytes at offset {where} are outside it")
        return array

    def _count(
        self,
        array: Array,
        addresses: Lanes,
        active: Lanes,
        mask: Lanes,
        lanes: int,
        size: int,
        kind: str,
    ) -> None:
        stores = kind == "store"
        traffic = global_request(addresses, mask, lanes, size)
        (array.stores if stores else array.loads).add(traffic)
        offsets = np.asarray(active - array.start).reshape(-1)
        (array.stored if stores else array.loaded)[offsets // SECTOR] = True
        if stores and array.constant:
            raise Fault(f"a store into {array.name}")
        if kind == "load":
            return
        if stores and not array.fixed.any():
            pass  # the usual case: nothing of this array came through the read-only path
        elif (array.fixed if stores else array.changed)[_bytes(offsets, size)].any():
            raise Fault(f"{array.name} is stored into, and loaded through the read-only path")
        (array.changed if stores else array.fixed)[_bytes(offsets, size)] = True


def _bytes(offsets: Lanes, size: int) -> Lanes:
    return offsets[:, None] + np.arange(size)
