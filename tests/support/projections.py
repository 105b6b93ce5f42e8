"""Matrices in GGUF's block formats, made at random, and what a projection of them must give.

Each comes with the exact values of its weights in float64 and with the magnitude that bounds the
rounding error of a product: the sum over |terms| as the kernel adds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from support.emulated import from_bfloat16, to_bfloat16

Array = npt.NDArray[Any]

BF16, Q8_0, Q4_0, Q4_1 = range(4)  # common/step_ops.h, Weight
NAMES = ("BF16", "Q8_0", "Q4_0", "Q4_1")
UNIT = 2.0**-24  # a float32 rounding, relative
EPS = 1e-5


@dataclass(frozen=True)
class Matrix:
    type: int
    rows: int
    cols: int
    gguf: Array  # [bytes] rows as the file has them
    quants: Array  # [rows, cols] integers, or the weights where they are BF16
    d: Array  # [rows, cols], of each weight
    m: Array  # [rows, cols]

    @property
    def weights(self) -> Array:
        return self.d * self.quants + self.m


def random_matrix(rng: np.random.Generator, type_: int, rows: int, cols: int) -> Matrix:
    if type_ == BF16:
        bits = to_bfloat16(rng.standard_normal((rows, cols)))
        one, zero = np.ones((rows, cols)), np.zeros((rows, cols))
        values = from_bfloat16(bits).astype(np.float64)
        return Matrix(type_, rows, cols, bits.view(np.uint8).ravel(), values, one, zero)
    blocks = cols // 32
    d = rng.uniform(-0.02, 0.02, (rows, blocks)).astype(np.float16)
    m = rng.uniform(-0.2, 0.2, (rows, blocks)).astype(np.float16)
    parts = [d[..., None].view(np.uint8)]
    if type_ == Q8_0:
        quants = rng.integers(-128, 128, (rows, blocks, 32))
        parts.append(quants.astype(np.int8).view(np.uint8))
    else:
        nibbles = rng.integers(0, 16, (rows, blocks, 32))
        quants = nibbles - 8 if type_ == Q4_0 else nibbles
        if type_ == Q4_1:
            parts.append(m[..., None].view(np.uint8))
        parts.append((nibbles[..., :16] | nibbles[..., 16:] << 4).astype(np.uint8))
    if type_ != Q4_1:
        m = np.zeros_like(m)
    return Matrix(
        type_,
        rows,
        cols,
        np.concatenate(parts, axis=-1).ravel(),
        quants.reshape(rows, cols).astype(np.float64),
        np.repeat(d, 32, axis=1).astype(np.float64),
        np.repeat(m, 32, axis=1).astype(np.float64),
    )


@dataclass(frozen=True)
class Products:
    """[tokens, rows]: exact products, and how far the kernel may be from them."""

    values: Array
    errors: Array

    def scaled(self, scale: Array) -> Products:
        return Products(self.values * scale, self.errors * abs(scale))


def products(w: Matrix, activations: Array) -> Products:
    """`activations` are exact: [tokens, cols], bf16 values.

    Roundings on the longest way of a term into its sum. A step of an mma adds 16 products to its
    accumulator: 16 roundings. BF16: the steps of a range, an eighth of the columns. Quantised: two
    steps, then one fma a 32-block of the range, two with a minimum. Then 7 sums of the ranges.
    """
    x = activations.astype(np.float64)
    tiles = -(-w.cols // 64) * 2  # 32-blocks, padded
    in_range = -(-tiles // 8) + 2
    roundings = 7 + (32 * in_range if w.type == BF16 else 32 + 2 * in_range)
    magnitude = abs(x) @ (abs(w.d * w.quants) + abs(w.m)).T
    return Products(x @ w.weights.T, roundings * UNIT * magnitude)


def normed_input(x: Array, norm: Array) -> tuple[Array, Array, float]:
    """x * norm as the kernel rounds it, [tokens, cols]; 1 / rms, [tokens, 1]; its error, relative.

    A lane sums squares of 1/32 of a range of an eighth, then come 2 + 7 sums, the mean, and rsqrt,
    which is right to 2^-21 = 8 units.
    """
    rounded = from_bfloat16(to_bfloat16(x * norm))
    rms = np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + EPS)
    return rounded, 1 / rms, (x.shape[1] / 32 + 32 + 9 + 2 + 8) * UNIT


def left_for_norm(x: Array, norm: Array) -> tuple[Array, Array]:
    """What is left for the next norm: bf16 rows, float32 sums of the squares of 16 columns each.

    The sums are rounded once; NaN pads them.
    """
    tokens, cols = x.shape
    wide = np.zeros((tokens, -(-cols // 16) * 16))
    wide[:, :cols] = x.astype(np.float64) ** 2
    sums = wide.reshape(tokens, -1, 16).sum(axis=2)
    squares = np.full((tokens, -(-cols // 64) * 4), np.nan, np.float32)
    squares[:, : sums.shape[1]] = sums
    return to_bfloat16(x * norm), squares


def normed_products(w: Matrix, x: Array, norm: Array) -> Products:
    rounded, scale, error = normed_input(x, norm)
    exact = products(w, rounded).scaled(scale)
    return Products(exact.values, exact.errors + (error + UNIT) * abs(exact.values))


def swiglu(gate: Products, up: Products) -> Products:
    """silu has a slope of at most 1.1; exp2 is right to 2^-21; the result is rounded to bf16."""
    silu = gate.values / (1 + np.exp(-gate.values))
    values = silu * up.values
    carried = 1.1 * gate.errors * (abs(up.values) + up.errors) + abs(silu) * up.errors
    return Products(values, carried + abs(values) * (2.0**-8 + 2.0**-19) + 2.0**-126)
