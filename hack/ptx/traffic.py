"""What a warp's request costs: sectors of 32 bytes in global memory, wavefronts in shared memory.

Counts are by the documented rules: a request touches each 32-byte sector once; shared memory has
32 banks of 4 bytes, serves each bank's word once a wavefront, and takes 8-byte accesses in two
halves and 16-byte accesses in four quarters of a warp. Hardware may merge halves or quarters that
read the same words; that is not counted in the kernel's favour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share
WARP = 32
SECTOR = 32
BANKS = 32
_FAR = 1 << 40  # keeps distances positive; a multiple of everything


@dataclass
class Traffic:
    """Sums over requests of warps. `bytes` counts a byte that many lanes ask for once."""

    requests: int = 0
    bytes: int = 0
    units: int = 0  # sectors, or wavefronts
    ideal: int = 0  # as few units as hold the bytes
    scalar: int = 0  # requests of fewer than 16 bytes a lane

    def add(self, other: Traffic) -> None:
        """Take the sums of another."""
        self.requests += other.requests
        self.bytes += other.bytes
        self.units += other.units
        self.ideal += other.ideal
        self.scalar += other.scalar

    @property
    def excess(self) -> float:
        """Units over the ideal; 1 is best."""
        return self.units / self.ideal if self.ideal else 1.0


def warps(addresses: Lanes, mask: Lanes, lanes: int) -> tuple[Lanes, int]:
    """[warps, 32] of addresses, -1 where a lane takes no part; and how often each row counts.

    Rows that have the same pattern, which is the usual case, come as one row with their number.
    """
    if mask is None and np.ndim(addresses) == 0:
        return np.full((1, WARP), addresses, np.int64), lanes // WARP
    rows = np.broadcast_to(addresses, (lanes,)).reshape(-1, WARP)
    if mask is not None:
        active = mask.reshape(-1, WARP)
        some = active.any(axis=1)
        if not some.all():
            rows, active = rows[some], active[some]
        if not active.all():
            return np.where(active, rows, -1), 1
    # The pattern of a row is its distance from its first lane's line of 128 bytes.
    pattern = rows - (rows[:, :1] & ~127)
    if len(rows) and (pattern == pattern[0]).all():
        return pattern[:1] + _FAR, len(rows)
    return rows, 1


def global_request(addresses: Lanes, mask: Lanes, lanes: int, size: int) -> Traffic:
    """Sectors of one instruction, all its warps; accesses are aligned to their size."""
    rows, times = warps(addresses, mask, lanes)
    if not len(rows):
        return Traffic()
    words = _distinct(rows)
    sectors = _distinct(np.where(rows < 0, -1, rows // SECTOR))
    return Traffic(
        requests=len(rows) * times,
        bytes=int(words.sum()) * size * times,
        units=int(sectors.sum()) * times,
        ideal=int((-(-words * size // SECTOR)).sum()) * times,
        scalar=len(rows) * times if size < 16 else 0,
    )


def shared_request(addresses: Lanes, mask: Lanes, lanes: int, size: int) -> Traffic:
    """Wavefronts of one instruction, all its warps."""
    rows, times = warps(addresses, mask, lanes)
    if not len(rows):
        return Traffic()
    used = _distinct(rows)
    bytes_a_warp = used * size
    words = max(1, size // 4)
    phases = np.where(rows < 0, -1, rows // 4).reshape(-1, WARP // words)
    spread = phases[:, :, None] + np.arange(words)
    spread = np.where(phases[:, :, None] < 0, -1, spread).reshape(len(phases), -1)
    spread = np.sort(spread, axis=1)
    fresh = np.ones(spread.shape, bool)
    fresh[:, 1:] = spread[:, 1:] != spread[:, :-1]
    fresh &= spread >= 0
    phase, _ = np.nonzero(fresh)
    slot = phase * BANKS + spread[fresh] % BANKS
    load = np.bincount(slot, minlength=len(phases) * BANKS).reshape(-1, BANKS).max(axis=1)
    return Traffic(
        requests=len(rows) * times,
        bytes=int(bytes_a_warp.sum()) * times,
        units=int(load.sum()) * times,
        ideal=int((-(-bytes_a_warp // (4 * BANKS))).sum()) * times,
        scalar=len(rows) * times if size < 16 else 0,
    )


def _distinct(rows: Lanes) -> Lanes:
    """How many different values, -1 left out, each row has."""
    if not (rows[:, 1:] >= rows[:, :-1]).all():
        rows = np.sort(rows, axis=1)
    return (rows[:, 1:] != rows[:, :-1]).sum(axis=1) + 1 - (rows[:, 0] < 0)
