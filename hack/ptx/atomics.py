"""Atomics: lanes at one place take their turn, the lowest lane first."""

from __future__ import annotations

from typing import Any

import numpy as np

Lanes = Any  # an array with an element a lane that takes part


def atomic(words: Lanes, index: Lanes, operation: str, values: Lanes, swap: Lanes = None) -> Lanes:
    """Change words[index] in place; what each lane found there. `swap` is for cas alone."""
    old = np.empty(index.shape, words.dtype)
    order = np.argsort(index, kind="stable")
    ranked = index[order]
    fresh = np.ones(len(ranked), bool)
    fresh[1:] = ranked[1:] != ranked[:-1]
    first = np.flatnonzero(fresh)
    if operation == "add" and words.dtype.kind in "ui":
        # Sums before each lane, in one go: histograms have many lanes at few places.
        sums = np.cumsum(values[order], dtype=words.dtype)
        ahead = sums - values[order]
        ahead = ahead - np.repeat(ahead[first], np.diff(np.append(first, len(ranked))))
        old[order] = words[ranked] + ahead
        np.add.at(words, index, values)
        return old
    turn = np.arange(len(ranked)) - np.repeat(first, np.diff(np.append(first, len(ranked))))
    for now in range(int(turn.max(initial=-1)) + 1):
        lanes = order[turn == now]
        found = words[index[lanes]]
        old[lanes] = found
        if operation == "cas":
            words[index[lanes]] = np.where(found == values[lanes], swap[lanes], found)
        else:
            words[index[lanes]] = _OPERATIONS[operation](found, values[lanes])
    return old


_OPERATIONS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "min": np.fmin,
    "max": np.fmax,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "exch": lambda _a, b: b,
}
