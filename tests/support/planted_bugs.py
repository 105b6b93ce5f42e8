"""The kernels of planted.cu as data: what goes in, what must come out, the numbers of the bugs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.emulated import from_bfloat16, to_bfloat16

Array = NDArray[Any]
SOURCE = Path(__file__).with_name("planted.cu")


@dataclass(frozen=True)
class Case:
    """One op: what goes in, and the arrays that must come out."""

    arrays: dict[str, Array]
    wanted: dict[str, Array]


@cache
def cases() -> dict[str, Case]:
    """By op."""
    random = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return random.normal(size=shape).astype(np.float32)

    rows, columns, streamed = normal(2, 256), normal(3, 64), normal(5, 256)
    phases, warps = normal(96), normal(128)
    beside, weights = normal(128), normal(128)
    a, b = to_bfloat16(normal(16, 16)), to_bfloat16(normal(8, 16))
    none = np.zeros(1, np.uint32)
    two = np.array([2], np.uint32)
    rotated = np.roll(warps.reshape(-1, 32), -1, 1).reshape(-1)
    return {
        "sum_rows": Case({"x": rows, "count": none}, {"sums": rows.sum(1), "count": two}),
        "sum_columns": Case({"x": columns, "ticket": none}, {"out": columns.sum(0)}),
        "stream_rows": Case({"x": streamed}, {"out": streamed.sum(0)[::-1]}),
        "two_phases": Case({"x": phases, "counter": none}, {"out": phases[::-1] ** 2}),
        "square_beside": Case({"x": beside, "w": weights}, {"out": weights * beside**2}),
        "rotate_warp": Case({"x": warps}, {"out": rotated}),
        "multiply": Case({"a": a, "b": b}, {"d": from_bfloat16(a) @ from_bfloat16(b).T}),
    }


@cache
def numbers() -> dict[str, int]:
    """The enumerators of planted.h."""
    text = SOURCE.with_suffix(".h").read_text()
    body = text[text.index("enum class Bug") : text.index("};")]
    return {name: i for i, name in enumerate(re.findall(r"^  ([A-Z_]+),$", body, re.MULTILINE))}
