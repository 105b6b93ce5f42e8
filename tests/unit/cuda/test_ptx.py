"""The PTX interpreter: instructions against exact arithmetic, and counts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.ptx_text import compute, run

Array = NDArray[Any]
_RANDOM = np.random.default_rng(11)


def _words(count: int = 64, kind: str = "u4") -> Array:
    """Random words with the odd ones in front."""
    bits = np.dtype(kind).itemsize * 8
    words = _RANDOM.integers(0, 1 << bits, count, dtype=f"u{bits // 8}", endpoint=False)
    words[:5] = [0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    return words.view(kind)


def _floats(count: int = 64, kind: str = "f4") -> Array:
    return (_RANDOM.standard_normal(count) * np.exp2(_RANDOM.integers(-12, 12, count))).astype(kind)


def _bits(value: int, width: int, *, signed: bool) -> int:
    value %= 1 << width
    return value - (1 << width) if signed and value >> (width - 1) else value


INTEGERS: list[tuple[str, str, int, Any]] = [
    ("add.s32 {d}, {a}, {b}", "u4", 2, lambda a, b: a + b),
    ("sub.s32 {d}, {a}, {b}", "u4", 2, lambda a, b: a - b),
    ("mul.lo.s32 {d}, {a}, {b}", "u4", 2, lambda a, b: a * b),
    ("mul.hi.u32 {d}, {a}, {b}", "u4", 2, lambda a, b: a * b >> 32),
    ("mul.hi.s32 {d}, {a}, {b}", "i4", 2, lambda a, b: a * b >> 32),
    ("mul.hi.u64 {d}, {a}, {b}", "u8", 2, lambda a, b: a * b >> 64),
    ("mul.hi.s64 {d}, {a}, {b}", "i8", 2, lambda a, b: a * b >> 64),
    ("mad.lo.s32 {d}, {a}, {b}, {c}", "u4", 3, lambda a, b, c: a * b + c),
    (
        "div.s32 {d}, {a}, {b}",
        "i4",
        2,
        lambda a, b: (abs(a) // abs(b)) * (-1) ** ((a < 0) != (b < 0)),
    ),
    ("rem.s32 {d}, {a}, {b}", "i4", 2, lambda a, b: (abs(a) % abs(b)) * (-1) ** (a < 0)),
    ("div.u64 {d}, {a}, {b}", "u8", 2, lambda a, b: a // b),
    ("min.s32 {d}, {a}, {b}", "i4", 2, min),
    ("max.u32 {d}, {a}, {b}", "u4", 2, max),
    ("xor.b32 {d}, {a}, {b}", "u4", 2, lambda a, b: a ^ b),
    ("not.b32 {d}, {a}", "u4", 1, lambda a: ~a),
    ("popc.b32 {d}, {a}", "u4", 1, lambda a: a.bit_count()),
    ("clz.b32 {d}, {a}", "u4", 1, lambda a: 32 - a.bit_length()),
    ("brev.b32 {d}, {a}", "u4", 1, lambda a: int(f"{a:032b}"[::-1], 2)),
    ("shl.b32 {d}, {a}, 7", "u4", 1, lambda a: a << 7),
    ("shr.s32 {d}, {a}, 9", "i4", 1, lambda a: a >> 9),
    ("shr.u32 {d}, {a}, 40", "u4", 1, lambda _: 0),
    ("shf.l.wrap.b32 {d}, {a}, {b}, 13", "u4", 2, lambda a, b: (b << 32 | a) << 13 >> 32),
    ("shf.r.wrap.b32 {d}, {a}, {b}, 13", "u4", 2, lambda a, b: (b << 32 | a) >> 13),
    ("bfe.u32 {d}, {a}, 5, 11", "u4", 1, lambda a: a >> 5 & 0x7FF),
    ("bfe.s32 {d}, {a}, 5, 11", "i4", 1, lambda a: _bits(a >> 5, 11, signed=True)),
    ("bfi.b32 {d}, {a}, {b}, 8, 12", "u4", 2, lambda a, b: b & ~0xFFF00 | (a & 0xFFF) << 8),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xea", "u4", 3, lambda a, b, c: a & b | c),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0x96", "u4", 3, lambda a, b, c: a ^ b ^ c),
    ("prmt.b32 {d}, {a}, {b}, 0x7632", "u4", 2, lambda a, b: b & 0xFFFF0000 | a >> 16),
]


@pytest.mark.parametrize(
    ("instruction", "kind", "count", "exact"), INTEGERS, ids=lambda x: str(x)[:24]
)
def test_integers_are_exact(instruction: str, kind: str, count: int, exact: Any) -> None:
    inputs = [_words(kind=kind) for _ in range(count)]
    if "div" in instruction or "rem" in instruction:
        inputs[1][inputs[1] == 0] = 3
        inputs[0][inputs[1] == -1] = 5  # the one quotient that does not fit
    found = compute(instruction, *inputs, kind=kind)
    bits = np.dtype(kind).itemsize * 8
    wanted = [
        _bits(exact(*(int(x) for x in lane)), bits, signed=kind[0] == "i")
        for lane in zip(*inputs, strict=True)
    ]
    assert found.tolist() == wanted


def test_a_carry_links_two_sums() -> None:
    a, b = _words(kind="u8"), _words(kind="u8")
    b[3] = a[3] ^ np.uint64(2**64 - 1)
    text = "add.cc.u64 %rd20, {a}, {b}; addc.u64 {d}, {a}, {b}"
    found = compute(text, a, b, kind="u8")
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    assert found.tolist() == [(x + y + (x + y >> 64)) % 2**64 for x, y in pairs]


def _nearest(exact: Fraction, kind: str) -> float:
    """The float nearest to a fraction, ties to even."""
    guess = np.dtype(kind).type(float(exact))
    around = [np.nextafter(guess, -np.inf), guess, np.nextafter(guess, np.inf)]
    best = min(abs(Fraction(float(x)) - exact) for x in around)
    nearest = [x for x in around if abs(Fraction(float(x)) - exact) == best]
    even = [x for x in nearest if not int(x.view(f"u{x.dtype.itemsize}")) & 1]
    return float((even if len(nearest) > 1 else nearest)[0])


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_fma_rounds_once(kind: str) -> None:
    a, b = _floats(kind=kind), _floats(kind=kind)
    one = np.dtype(kind).type(1)
    tiny = np.finfo(kind).eps
    c = np.where(np.arange(64) % 2, -(a * b), _floats(kind=kind))  # the rounding error is left
    a[:3], b[:3] = one + tiny, one - tiny / 2
    c[:3] = [tiny / 2, -tiny / 2, one]
    # Half an ulp and a little more: rounding twice would go to even.
    a[3:5], b[3:5], c[3:5] = tiny / 2, [one + tiny, one - tiny / 2], one
    found = compute(f"fma.rn.f{a.itemsize * 8} {{d}}, {{a}}, {{b}}, {{c}}", a, b, c, kind=kind)
    wanted = [
        _nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), kind)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert found.tolist() == wanted


def test_conversions_saturate_and_round() -> None:
    x = np.array([0.5, 1.5, -2.5, 3e9, -3e9, np.nan, 2.0**31, -0.75] * 4, np.float32)
    to_nearest = compute("cvt.rni.s32.f32 {d}, {a}", x, kind="i4")
    towards_zero = compute("cvt.rzi.u32.f32 {d}, {a}", x, kind="u4")
    assert to_nearest[:8].tolist() == [0, 2, -2, 2**31 - 1, -(2**31), 0, 2**31 - 1, -1]
    assert towards_zero[:8].tolist() == [0, 1, 0, 3_000_000_000, 0, 0, 2**31, 0]


def test_bf16_rounds_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, 1.0078125, -3.14159, np.inf, 1e-40, 3.4e38] * 4)
    found = compute("cvt.rn.bf16.f32 {d}, {a}", x.astype("f4"), kind="u2")
    assert [hex(v) for v in found[:8]] == [
        *("0x3f80", "0x3f80", "0x3f82", "0x3f81", "0xc049", "0x7f80", "0x1", "0x7f80"),
    ]


def test_pairs_of_bf16_round_once() -> None:
    # 128 + q less 136, what the dequantisation of 4 bits does.
    words = np.array([0x4300_4300 | q << 16 | (15 - q) for q in range(16)] * 2, np.uint32)
    found = compute("sub.rn.bf16x2 {d}, {a}, {b}", words, np.full(32, 0x43084308, "u4"), kind="u4")
    upper = (found & np.uint32(0xFFFF0000)).view("f4")
    lower = (found << np.uint32(16)).view("f4")
    assert upper[:16].tolist() == [q - 8 for q in range(16)]
    assert lower[:16].tolist() == [7 - q for q in range(16)]


def test_lanes_part_in_a_loop_and_meet_again() -> None:
    body = """
    mov.u32 %r1, 0;
    mov.u32 %r2, 0;
$L_loop:
    setp.ge.u32 %p1, %r1, %r0;
    @%p1 bra $L_done;
    add.s32 %r2, %r2, %r1;
    add.s32 %r1, %r1, 1;
    bra.uni $L_loop;
$L_done:
    shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
    mad.wide.u32 %rd2, %r0, 4, %rd0;
    st.global.u32 [%rd2], %r3;
"""
    memory, result = run(body, {"out": np.zeros(32, np.uint32)})
    wanted = [(t ^ 1) * ((t ^ 1) - 1) // 2 for t in range(32)]
    assert memory.read("out").tolist() == wanted
    assert result.count("shfl") == 1


def test_atomics_take_turns_in_global_and_shared_memory() -> None:
    body = """
    .shared .align 4 .b8 bins[16];
    and.b32 %r1, %r0, 3;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, bins;
    add.s32 %r4, %r3, %r2;
    setp.lt.u32 %p1, %r0, 4;
    mov.u32 %r9, 0;
    shl.b32 %r10, %r0, 2;
    add.s32 %r11, %r3, %r10;
    @%p1 st.shared.u32 [%r11], %r9;
    bar.sync 0;
    atom.shared.add.u32 %r5, [%r4], 1;
    atom.global.max.u32 %r6, [%rd0], %r0;
    bar.sync 0;
    ld.shared.u32 %r7, [%r4];
    mad.wide.u32 %rd3, %r0, 8, %rd1;
    st.global.v2.u32 [%rd3], {%r5, %r7};
"""
    arrays = {"most": np.zeros(1, np.uint32), "out": np.zeros((64, 2), np.uint32)}
    memory, result = run(body, arrays, threads=64)
    assert memory.read("out").tolist() == [[t // 4, 16] for t in range(64)]
    assert memory.read("most")[0] == 63
    assert result.races == []


# ---- Counts ----


@pytest.mark.parametrize(
    ("stride", "size", "sectors", "ideal"),
    [(4, 4, 4, 4), (16, 16, 16, 16), (32, 4, 32, 4), (0, 4, 1, 1), (8, 4, 8, 4)],
)
def test_sectors_are_counted(stride: int, size: int, sectors: int, ideal: int) -> None:
    load = "ld.global.u32 %r1" if size == 4 else "ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}"
    body = f"mad.wide.u32 %rd2, %r0, {stride}, %rd0; {load}, [%rd2];"
    memory, result = run(body, {"x": np.zeros(1024, np.uint32)}, blocks=3)
    loads = memory.arrays["x"].loads
    assert (loads.requests, loads.units, loads.ideal) == (3, 3 * sectors, 3 * ideal)
    assert loads.bytes == 3 * (size if stride == 0 else 32 * size)
    assert loads.scalar == (3 if size == 4 else 0)
    assert result.count("ld", "global") == 3
    assert memory.arrays["x"].fetched == 32 * sectors


@pytest.mark.parametrize(
    ("stride", "members", "wavefronts", "ideal"),
    [
        (4, 1, 1, 1),
        (8, 1, 2, 1),
        (128, 1, 32, 1),
        (0, 1, 1, 1),
        (16, 4, 4, 4),
        (32, 4, 8, 4),
        (8, 2, 2, 2),
    ],
)
def test_bank_conflicts_are_counted(stride: int, members: int, wavefronts: int, ideal: int) -> None:
    registers = ", ".join(f"%r{20 + i}" for i in range(members))
    target = f"v{members}.u32 {{{registers}}}" if members > 1 else "u32 %r20"
    body = f"""
    .shared .align 16 .b8 buffer[4096];
    mul.lo.s32 %r1, %r0, {stride};
    mov.u32 %r2, buffer;
    add.s32 %r3, %r2, %r1;
    ld.shared.{target}, [%r3];
"""
    _, result = run(body, {"x": np.zeros(1, np.uint32)}, races=False)
    assert (result.shared_loads.units, result.shared_loads.ideal) == (wavefronts, ideal)
