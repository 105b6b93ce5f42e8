"""Shared memory of the blocks that run together, filled with 0xff: NaN until written."""

from __future__ import annotations

from typing import Any

import numpy as np
from hack.ptx.faults import Fault
from hack.ptx.program import SIZES, Kernel
from hack.ptx.races import Races
from hack.ptx.traffic import Traffic, shared_request

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share
_UNITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}


class Shared:
    """Addresses are offsets within a block; `base` gives each lane its block's part."""

    def __init__(
        self, kernel: Kernel, dynamic_bytes: int, blocks: int, lanes: int, *, races: bool
    ) -> None:
        self.loads, self.stores = Traffic(), Traffic()
        self.granule = _granule(kernel)
        self.stride = -(-(kernel.shared_bytes + dynamic_bytes) // 128) * 128
        self._lanes = lanes
        self._base = np.repeat(np.arange(blocks, dtype=np.int64) * self.stride, lanes // blocks)
        self._everyone = np.arange(lanes, dtype=np.int64)
        self.data = np.full(blocks * self.stride, 0xFF, np.uint8)
        self._valid = np.zeros(self.stride, bool)
        for offset, size in kernel.shared.values():
            self._valid[offset : offset + size] = True
        self._valid[kernel.shared_bytes : kernel.shared_bytes + dynamic_bytes] = True
        self.races = Races(self.data.size // self.granule, lanes, kernel.instructions, watch=races)

    def load(self, addresses: Lanes, mask: Lanes, size: int, at: int) -> Lanes:
        """[lanes, words] of unsigned words of at most 8 bytes."""
        self.loads.add(shared_request(addresses, mask, self._lanes, size))
        flat, lanes = self.flat(addresses, mask, size)
        self.races.read(*self.places(flat, lanes, size), at)
        unit = min(size, 8)
        words = self.data.view(_UNITS[size]).reshape(-1, size // unit)[flat // size]
        if mask is None:
            return words
        result = np.zeros((self._lanes, size // unit), words.dtype)
        result[lanes] = words
        return result

    def store(self, addresses: Lanes, mask: Lanes, values: Lanes, at: int) -> None:
        """values: [lanes] of one to eight bytes, or [lanes, 2] of eight."""
        size = values.dtype.itemsize * (values.shape[1] if values.ndim == 2 else 1)
        self.stores.add(shared_request(addresses, mask, self._lanes, size))
        flat, lanes = self.flat(addresses, mask, size)
        values = values if mask is None else values[mask]
        words = self.data.view(_UNITS[size])
        if size == 16:
            words = words.reshape(-1, 2)
        words[flat // size] = values
        self.races.write(*self.places(flat, lanes, size), at)
        if (words[flat // size] != values).any():
            self.races.clash(at)

    def flat(self, addresses: Lanes, mask: Lanes, size: int) -> tuple[Lanes, Lanes]:
        """Checked places in `data` of the lanes that take part, and these lanes."""
        addresses = np.broadcast_to(addresses, (self._lanes,))
        base, lanes = self._base, self._everyone
        if mask is not None:
            addresses, base, lanes = addresses[mask], base[mask], lanes[mask]
        if not addresses.size:
            return addresses, lanes
        if np.bitwise_and(addresses, size - 1).any():
            raise Fault(f"shared address not aligned to {size} bytes")
        low, high = int(addresses.min()), int(addresses.max())
        if low < 0 or high + size > self.stride:
            raise Fault(f"shared address {low if low < 0 else high} outside {self.stride} bytes")
        if not (self._valid[addresses].all() and self._valid[addresses + size - 1].all()):
            raise Fault(f"shared address between {low} and {high + size} is in no variable")
        return addresses + base, lanes

    def places(self, flat: Lanes, lanes: Lanes, size: int) -> tuple[Lanes, Lanes]:
        """Granules of accesses, and the lane of each."""
        count = size // self.granule
        if count == 1:
            return flat // self.granule, lanes
        places = flat[:, None] // self.granule + np.arange(count)
        return places.reshape(-1), np.repeat(lanes, count)

    def part(self, block: int) -> slice:
        """The granules of a block."""
        width = self.stride // self.granule
        return slice(block * width, (block + 1) * width)


def _granule(kernel: Kernel) -> int:
    """Bytes of the smallest access to shared memory: what races are told apart by."""
    sizes = [4]
    for instruction in kernel.instructions:
        parts = instruction.modifiers
        if instruction.base in ("ld", "st", "atom", "red") and "shared" in "".join(parts):
            sizes.append(SIZES[parts[-1]])
    return min(sizes)
