"""Integer and bit instructions over arrays of lanes. Wrap-around is meant."""

from __future__ import annotations

from typing import Any

import numpy as np

Lanes = Any  # an array with an element a lane, or a scalar that all lanes share


def lop3(a: Lanes, b: Lanes, c: Lanes, table: int) -> Lanes:
    """Any function of three bits: bit 4a + 2b + c of the table."""
    result = a & np.uint32(0)
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | term
    return result


def prmt(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """Four bytes chosen from the eight of b:a; bit 3 of a choice spreads the byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result: Lanes = np.uint32(0)
    for byte in range(4):
        choice = (selector >> np.uint32(4 * byte)) & np.uint32(15)
        taken = (both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(
            np.uint32
        ) & np.uint32(0xFF)
        sign = np.where(taken & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        value = np.where(choice & np.uint32(8), sign, taken)
        result = result | (value << np.uint32(8 * byte))
    return result[()]


def bfe(x: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """A field of bits, sign-extended when x is signed."""
    bits = x.dtype.itemsize * 8
    start = np.minimum(position & np.uint32(255), bits).astype(np.int64)
    size = np.minimum(length & np.uint32(255), bits).astype(np.int64)
    if x.dtype.kind == "u":
        mask = np.where(
            size >= bits, ~x.dtype.type(0), (x.dtype.type(1) << size.astype(x.dtype)) - 1
        )
        return (np.where(start >= bits, 0, x >> start.astype(x.dtype)) & mask).astype(x.dtype)
    # Signed: bits beyond the word are copies of its sign.
    wide = x.astype(np.int64) >> np.minimum(start, bits - 1)
    gap = 64 - np.maximum(size, 1)
    return np.where(size == 0, 0, (wide << gap) >> gap).astype(x.dtype)


def bfi(field: Lanes, base: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """base with `length` bits of field put in at `position`."""
    kind = base.dtype.type
    bits = base.dtype.itemsize * 8
    start = np.minimum(position & np.uint32(255), bits).astype(base.dtype)
    size = np.minimum(length & np.uint32(255), bits).astype(base.dtype)
    mask = np.where(size >= bits, ~kind(0), (kind(1) << size) - kind(1)) << start
    return ((base & ~mask) | ((field << start) & mask)).astype(base.dtype)


def funnel(direction: str, low: Lanes, high: Lanes, amount: Lanes, wraps: bool) -> Lanes:
    """`shf`: 32 bits of high:low, shifted left (the upper word) or right (the lower word)."""
    shift = (amount & np.uint32(31)) if wraps else np.minimum(amount, np.uint32(32))
    both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    wide = shift.astype(np.uint64)
    if direction == "l":
        # Two steps, since shifting by 64 would leave a word's range.
        return ((both << wide) >> np.uint64(32)).astype(np.uint32)
    return (both >> wide).astype(np.uint32)


def leading_zeros(x: Lanes) -> Lanes:
    """`clz` of 32 or 64 bits."""
    bits = x.dtype.itemsize * 8
    count = np.zeros(np.shape(x), np.uint32)
    value = np.asarray(x)
    width = bits // 2
    while width:
        empty = (value >> value.dtype.type(bits - width)) == 0
        count = count + np.where(empty, np.uint32(width), np.uint32(0))
        value = np.where(empty, value << value.dtype.type(width), value)
        width //= 2
    return (count + (value == 0).astype(np.uint32))[()]


def find_leading(x: Lanes) -> Lanes:
    """`bfind`: where the highest 1 (or bit unlike the sign) is; 0xffffffff when there is none."""
    if x.dtype.kind == "i":
        x = np.where(x < 0, ~x, x)[()]
    unsigned = x.view(f"u{x.dtype.itemsize}")
    return np.uint32(x.dtype.itemsize * 8 - 1) - leading_zeros(unsigned)


def reverse_bits(x: Lanes) -> Lanes:
    """`brev` of 32 or 64 bits."""
    kind, result = x.dtype.type, x ^ x
    for bit in range(x.dtype.itemsize * 8):
        result = (result << kind(1)) | ((x >> kind(bit)) & kind(1))
    return result


def high_product(a: Lanes, b: Lanes) -> Lanes:
    """`mul.hi`: the upper half of the product, signed or not."""
    kind, bits = a.dtype, a.dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{kind.kind}{kind.itemsize * 2}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(kind)
    if kind.kind == "i":
        high = high_product(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
        return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    return a_high * b_high + (middle >> half) + ((a_low * b_high + (middle & low)) >> half)


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Integer division towards zero."""
    if a.dtype.kind == "u":
        return a // b
    result = a // b
    return result + ((result < 0) & (result * b != a)).astype(a.dtype)


def remainder(a: Lanes, b: Lanes) -> Lanes:
    """What integer division towards zero leaves."""
    return a - quotient(a, b) * b


def shift(direction: str, x: Lanes, amount: Lanes) -> Lanes:
    """shl and shr: amounts beyond the width leave nothing but the sign."""
    bits = x.dtype.itemsize * 8
    clamped = np.minimum(amount, np.uint32(bits)).astype(x.dtype)
    return np.left_shift(x, clamped) if direction == "l" else np.right_shift(x, clamped)
