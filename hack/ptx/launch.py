"""One launch: every block of a grid, some of them at a time, all their lanes in one array.

Lanes at the lowest place of the program run first, as one group; so lanes that parted meet again
where their ways join. A barrier lets a block go when all its threads that have not ended are at
it, at the same one; what meets a warp waits for every lane that the instruction names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from hack.ptx.faults import Fault, Refused
from hack.ptx.machine import Dimensions, Machine
from hack.ptx.memory import Memory
from hack.ptx.operands import literal
from hack.ptx.program import Kernel
from hack.ptx.traffic import WARP, Traffic
from hack.ptx.translation import Segment, Translator

Lanes = Any  # an array with an element a lane
_LANES_AT_ONCE = 1 << 14
_SHARED_AT_ONCE = 1 << 24  # bytes
_PATIENCE = 5_000_000  # segments, before a run counts as endless
_WAKES = 1000  # of lanes that spin while nobody else can run


@dataclass
class Result:
    """What a launch did. Global traffic is with the arrays of the memory."""

    issued: Counter[str] = field(default_factory=Counter)  # opcode -> instructions of warps
    shared_loads: Traffic = field(default_factory=Traffic)
    shared_stores: Traffic = field(default_factory=Traffic)
    races: list[str] = field(default_factory=list)
    barriers: int = 0  # arrivals of blocks
    in_flight: int = 0  # most bytes of asynchronous copies at once, a block

    @property
    def instructions(self) -> int:
        """Instructions of warps."""
        return self.issued.total()

    def count(self, *parts: str) -> int:
        """Instructions whose opcode has all the parts, e.g. ("ld", "global")."""
        return sum(n for code, n in self.issued.items() if set(parts) <= set(code.split(".")))


def launch(
    kernel: Kernel,
    memory: Memory,
    grid: Dimensions,
    block: Dimensions,
    parameters: bytes,
    *,
    dynamic_bytes: int = 0,
    lazy: bool = True,
    races: bool = True,
    resident: bool = False,
) -> Result:
    """Run a kernel. `resident`: all blocks run together, for those that wait for each other."""
    if len(parameters) != kernel.parameter_bytes:
        wanted = kernel.parameter_bytes
        raise ValueError(f"{kernel.name} takes {wanted} bytes of parameters, not {len(parameters)}")
    segments = _translated(kernel)
    places = {segment.first: number for number, segment in enumerate(segments)}
    places[len(kernel.instructions)] = len(segments)
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    width = -(-block[0] * block[1] * block[2] // WARP) * WARP
    room = _SHARED_AT_ONCE // max(1, kernel.shared_bytes + dynamic_bytes)
    at_once = len(blocks) if resident else max(1, min(_LANES_AT_ONCE // width, room))
    result = Result()
    runs = np.zeros(len(segments), np.int64)
    for first in range(0, len(blocks), at_once):
        machine = Machine(
            kernel,
            memory,
            blocks[first : first + at_once],
            block,
            grid,
            parameters,
            dynamic_bytes,
            lazy=lazy,
            races=races,
        )
        _Run(machine, segments, places, runs, result).run()
        result.shared_loads.add(machine.shared.loads)
        result.shared_stores.add(machine.shared.stores)
        result.races += machine.shared.races.found.values()
        flying = machine.copies.most_in_flight // machine.blocks
        result.in_flight = max(result.in_flight, flying)
    for segment, times in zip(segments, runs, strict=True):
        for opcode, count in segment.issued.items():
            result.issued[opcode] += count * int(times)
    result.races = sorted(set(result.races))
    return result


@cache
def _translated(kernel: Kernel) -> list[Segment]:
    return Translator(kernel).segments()


class _Run:
    """The lanes of a machine on their way through the segments."""

    def __init__(
        self,
        machine: Machine,
        segments: list[Segment],
        places: dict[int, int],
        runs: Lanes,
        result: Result,
    ) -> None:
        self._machine = machine
        self._segments = segments
        self._places = places
        self._runs = runs
        self._result = result
        self._registers: dict[str, Any] = {}
        lanes = machine.lanes
        thread = np.arange(lanes) % (lanes // machine.blocks)
        self._live = thread < machine.threads
        self._place = np.zeros(lanes, np.int32)
        self._waiting = np.zeros(lanes, bool)  # at a barrier
        self._parked = np.zeros(lanes, bool)  # at a meeting of the warp
        self._asleep = np.zeros(lanes, bool)  # in a spin loop, until others have moved
        self._wakes = 0
        self._others = len(segments) + 1  # the lowest place of lanes that could run but do not

    def run(self) -> None:
        """To the end of all threads."""
        steps = 0
        with np.errstate(all="ignore"):
            while self._live.any():
                place, mask = self._pick()
                while mask is not False:
                    steps += 1
                    if steps > _PATIENCE:
                        raise Fault(f"{self._machine.kernel.name} does not end")
                    place, mask = self._step(place, mask)

    def _pick(self) -> tuple[int, Lanes]:
        """The lanes to run next."""
        ready = self._live & ~self._waiting & ~self._parked & ~self._asleep
        if not ready.any():
            if not self._asleep.any():
                raise Fault(self._deadlock())
            self._wakes += 1
            if self._wakes > _WAKES:
                raise Fault(f"{self._machine.kernel.name}: livelock: threads spin, none can run")
            self._asleep[:] = False
            return self._pick()
        place = int(self._place[ready].min())
        mask = ready & (self._place == place)
        rest = ready & ~mask
        self._others = int(self._place[rest].min()) if rest.any() else len(self._segments) + 1
        return place, None if mask.all() else mask

    def _step(self, place: int, mask: Lanes) -> tuple[int, Lanes]:
        """One segment; where the group goes on, or False when it does not as one."""
        if place == len(self._segments):
            return self._leave(mask)
        segment = self._segments[place]
        if segment.meets and mask is not None:
            mask = self._meet(segment, place, mask)
            if mask is False:
                return place, False
        machine = self._machine
        if mask is None:
            self._runs[place] += machine.lanes // WARP
        else:
            self._runs[place] += int(mask.reshape(-1, WARP).any(axis=1).sum())
        try:
            segment.run(self._registers, machine, mask)
        except (Fault, Refused):
            raise
        except Exception as error:
            first = machine.kernel.instructions[segment.first]
            raise Refused(f"{machine.kernel.name}, from {first}: {error}") from error
        return self._end(segment, place, mask)

    def _end(self, segment: Segment, place: int, mask: Lanes) -> tuple[int, Lanes]:
        end = segment.end
        if end is None:
            return self._go(place + 1, mask)
        if end.base == "trap":
            raise Fault(f"trap: {end}")
        taken = self._guard(end.predicate, end.negated)
        if end.base == "bra":
            return self._branch(self._target(end.operands[0]), taken, place, mask)
        if np.ndim(taken) or not taken:
            # A part leaves, waits or sleeps; the others go on.
            everyone = self._live if mask is None else mask
            part, rest = everyone & taken, everyone & ~np.asarray(taken)
            self._place[rest] = place + 1
            if not part.any():
                return self._go(place + 1, mask)
            mask = part
            if end.base in ("bar", "barrier"):
                raise Fault(f"a barrier under a condition: {end}")
        if end.base in ("ret", "exit"):
            return self._leave(mask)
        if end.base == "nanosleep":
            self._place[slice(None) if mask is None else mask] = place + 1
            self._asleep |= self._live if mask is None else mask
            return place, False
        return self._barrier(segment, place, mask)

    def _guard(self, predicate: str | None, negated: bool) -> Lanes:
        if predicate is None:
            return np.True_
        value = self._registers[predicate]
        return ~value if negated else value

    def _target(self, label: str) -> int:
        return self._places[self._machine.kernel.labels[label]]

    def _branch(self, target: int, taken: Lanes, place: int, mask: Lanes) -> tuple[int, Lanes]:
        if np.ndim(taken) == 0:
            return self._go(target if taken else place + 1, mask)
        jumping = taken if mask is None else taken & mask
        staying = ~taken if mask is None else mask & ~taken
        if not jumping.any():
            return self._go(place + 1, mask)
        if not staying.any():
            return self._go(target, mask)
        self._place[jumping] = target
        self._place[staying] = place + 1
        return place, False

    def _go(self, place: int, mask: Lanes) -> tuple[int, Lanes]:
        """The whole group goes on to a place, unless others are to run first or to join."""
        if place < self._others:
            return place, mask
        self._place[slice(None) if mask is None else mask] = place
        return place, False

    def _leave(self, mask: Lanes) -> tuple[int, Lanes]:
        self._machine.copies.leave(mask)
        if mask is None:
            self._live[:] = False
        else:
            self._live &= ~mask
            self._release()
        return 0, False

    def _barrier(self, segment: Segment, place: int, mask: Lanes) -> tuple[int, Lanes]:
        end = segment.end
        if end is None or len(end.operands) != 1:
            raise Refused(f"a barrier for some threads: {end}")
        if mask is None:
            self._result.barriers += self._machine.blocks
            self._machine.shared.races.block_barrier(None)
            return self._go(place + 1, mask)
        self._place[mask] = place + 1
        self._waiting |= mask
        self._release()
        return place, False

    def _release(self) -> None:
        """Let blocks go of which every thread waits or has ended."""
        if not self._waiting.any():
            return
        blocks = self._machine.blocks
        waiting = self._waiting.reshape(blocks, -1)
        here = (waiting | ~self._live.reshape(blocks, -1)).all(axis=1) & waiting.any(axis=1)
        places = self._place.reshape(blocks, -1)
        for block in np.flatnonzero(here):
            at = np.unique(places[block][waiting[block]])
            if len(at) > 1:
                raise Fault("threads wait at different barriers: " + self._ends(at))
            self._result.barriers += 1
            self._machine.shared.races.block_barrier(self._machine.shared.part(int(block)))
        waiting[here] = False

    def _meet(self, segment: Segment, place: int, mask: Lanes) -> Lanes:
        """The lanes whose whole warp is at this meeting; the others park."""
        arrived = mask | (self._parked & (self._place == place))
        meets = segment.meets
        assert meets is not None
        named = meets.operands[-1] if meets.base != "mma" else "-1"
        members = literal(named, "u4") if not named.startswith("%") else self._registers[named]
        bits = np.broadcast_to(members, mask.shape) >> (
            np.arange(mask.size, dtype=np.uint32) % np.uint32(WARP)
        )
        wanted = self._live & ((bits & np.uint32(1)) == 1)
        missing = (wanted & ~arrived).reshape(-1, WARP).any(axis=1)
        whole = arrived & ~np.repeat(missing, WARP)
        self._parked |= arrived & ~whole
        self._place[arrived] = place
        self._parked &= ~whole
        return whole if whole.any() else False

    def _deadlock(self) -> str:
        lines = [f"{self._machine.kernel.name}: deadlock"]
        for what, lanes in (("barrier", self._waiting), ("meeting", self._parked)):
            if lanes.any():
                shift = 0 if what == "meeting" else 1
                at = np.unique(self._place[lanes]) + 1 - shift
                lines.append(f"{int(lanes.sum())} threads wait at a {what}: {self._ends(at)}")
        return "; ".join(lines)

    def _ends(self, places: Lanes) -> str:
        code = self._machine.kernel.instructions
        return ", ".join(str(code[self._segments[int(p) - 1].last - 1]) for p in places)
