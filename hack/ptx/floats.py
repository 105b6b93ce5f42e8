"""Floating-point instructions over arrays of lanes.

fma, add, mul, div, sqrt and conversions round correctly. The approximations (ex2, lg2, rsqrt, rcp,
tanh, sin, cos) are correctly rounded too, which a device is not: no test may lean on their bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share
_TIE = np.uint64(0x10000000)  # a double whose lower 29 bits are these lies between two floats
_LOW = np.uint64(0x1FFFFFFF)
_SPLIT = np.float64(134217729.0)  # 2^27 + 1
_TINY = np.float32(1.1754943508222875e-38)


def fma_f32(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """a * b + c, rounded once: the product is exact in double, ties are looked at again."""
    product = np.float64(a) * np.float64(b)
    total = np.asarray(product + np.float64(c))
    ties = (total.view(np.uint64) & _LOW) == _TIE
    if ties.any():
        _, error = _two_sum(product, np.float64(c))
        bent = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        total = np.where(ties & (error != 0) & np.isfinite(total), bent, total)
    return total.astype(np.float32)[()]


def fma_f64(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """a * b + c, rounded once. Source: Boldo and Melquiond 2008, emulation by rounding to odd."""
    high = a * b
    low = _product_error(a, b, high)
    sum_high, sum_low = _two_sum(c, low)
    total, rest = _two_sum(high, sum_high)
    result: Lanes = total + _odd_sum(sum_low, rest)
    # Splitting overflows near the ends of the range; there the plain form is all there is.
    usual: Lanes = np.isfinite(result) & np.isfinite(low)
    either: Any = np.where(usual, result, a * b + c)
    return either[()]


def _two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def _product_error(a: Lanes, b: Lanes, product: Lanes) -> Lanes:
    a_high = _SPLIT * a - (_SPLIT * a - a)
    b_high = _SPLIT * b - (_SPLIT * b - b)
    a_low, b_low = a - a_high, b - b_high
    return a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _odd_sum(a: Lanes, b: Lanes) -> Lanes:
    total, error = _two_sum(a, b)
    total = np.asarray(total)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    bent = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0), bent, total)


def flush(x: Lanes) -> Lanes:
    """`.ftz`: subnormal floats become zero, the sign stays."""
    flushed: Any = np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x)
    return flushed[()]


def bf16_to_f32(x: Lanes) -> Lanes:
    """The upper half of a float."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: Lanes) -> Lanes:
    """Nearest even; NaN becomes 0x7fff."""
    u = x.view(np.uint32)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))[()]


def pair(low: Lanes, high: Lanes) -> Lanes:
    """Two 16-bit values in a word."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def halves(x: Lanes) -> tuple[Lanes, Lanes]:
    """The lower and the upper 16 bits of a word."""
    return x.astype(np.uint16), (x >> np.uint32(16)).astype(np.uint16)


def bf16x2(operation: str, *operands: Lanes) -> Lanes:
    """add, sub, mul, fma, neg, min or max of two bf16 at once, each rounded once."""
    results = []
    for part in (0, 1):
        x = [np.float64(bf16_to_f32(halves(operand)[part])) for operand in operands]
        results.append(f32_to_bf16(np.float32(_PAIRED[operation](*x))))
    return pair(*results)


_PAIRED: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "neg": lambda a: -a,
    "min": np.fmin,
    "max": np.fmax,
}


def to_integer(x: Lanes, rounding: str, kind: Any) -> Lanes:
    """Float to integer: NaN is 0, what does not fit saturates."""
    rounded = ROUNDINGS[rounding](np.float64(x))
    info = np.iinfo(kind)
    # 2^63 and 2^64 are doubles, the largest integers below them are not: compare, then cast.
    above, below = rounded >= np.float64(info.max), rounded <= np.float64(info.min)
    inside = np.where(above | below | np.isnan(rounded), 0, rounded).astype(kind)
    return np.where(above, kind(info.max), np.where(below, kind(info.min), inside))[()]


ROUNDINGS: dict[str, Any] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def approximate(name: str, x: Lanes) -> Lanes:
    """One of the approximations, as near as float32 can hold it."""
    return _APPROXIMATIONS[name](np.float64(x)).astype(np.float32)


_APPROXIMATIONS: dict[str, Any] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}
