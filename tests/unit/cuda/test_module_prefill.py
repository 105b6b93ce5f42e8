"""The ops of prefill through the bindings, on the emulator: the driver's bits, and what they
refuse of values (test_module_refusals.py has arrays)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.decode_steps import PLAIN, WEIGHTS
from support.emulated import Array, to_bfloat16
from support.emulated_module import emulated_module
from support.native_model import encode

HEADS, KV_HEADS, DIM, FIRST, TOKENS, PAGES = 2, 1, 64, 9, 11, 4
TYPES = ("float32", "bf16")  # prefill_ops.h, Element


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulated_module()


def product(values: Array, type_: str) -> Array:
    return values if type_ == "float32" else to_bfloat16(values)


@pytest.mark.parametrize("type_", TYPES)
def test_a_chunk_has_the_bits_of_the_driver(cuda: Any, type_: str) -> None:
    random = np.random.default_rng(4)
    width = (HEADS + 2 * KV_HEADS) * DIM
    qkv = product(random.normal(size=(TOKENS, width)).astype(np.float32), type_)
    angles = random.normal(size=(FIRST + TOKENS, DIM // 2))
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    before = to_bfloat16(random.normal(size=(PAGES, 2, KV_HEADS, 16, DIM)).astype(np.float32))
    pages = np.array([3, 1], np.int32)
    sizes = {
        "tokens": TOKENS, "first_position": FIRST, "heads": HEADS, "kv_heads": KV_HEADS,
        "head_dim": DIM, "interleaved_rope": 1, "element": TYPES.index(type_), "row_tiles": 0,
    }  # fmt: skip

    pool, queries = before.copy(), np.zeros((TOKENS, HEADS, DIM), np.uint16)
    cuda.rope_append(qkv, cosines, sines, pool, pages, FIRST, queries, True, 0)
    arrays = {"qkv": qkv, "cosines": cosines, "sines": sines, "pool": before, "pages": pages}
    wanted = PLAIN.run("rope_append", arrays, sizes)
    np.testing.assert_array_equal(pool, wanted["pool"])
    np.testing.assert_array_equal(queries, wanted["queries"])

    out = np.zeros((TOKENS, HEADS * DIM), np.uint16)
    cuda.prefill_attention(queries, pool, pages, FIRST, out, 0)
    arrays = {"queries": queries, "pool": pool, "pages": pages}
    wanted = PLAIN.run("prefill_attention", arrays, sizes)
    np.testing.assert_array_equal(out, wanted["out"].reshape(out.shape))


@pytest.mark.parametrize("type_", TYPES)
def test_rows_have_the_bits_of_the_driver(cuda: Any, type_: str) -> None:
    random = np.random.default_rng(6)
    x = random.normal(size=(3, 96)).astype(np.float32)
    delta = product(random.normal(size=(3, 96)).astype(np.float32), type_)
    weight = np.linspace(0.5, 2, 96, dtype=np.float32)
    is_bf16 = TYPES.index(type_)
    sizes: dict[str, int | float] = {"tokens": 3, "hidden": 96, "eps": 1e-5, "norm": 1}
    wanted = PLAIN.run(
        "residual_norm", {"x": x, "delta": delta, "weight": weight}, sizes | {"element": is_bf16}
    )
    summed, out = x.copy(), np.zeros((3, 96), np.uint16)
    cuda.residual_norm(summed, delta, weight, 1e-5, out, 0)
    np.testing.assert_array_equal(summed, wanted["x"])
    np.testing.assert_array_equal(out, wanted["out"])

    only_normed = np.zeros((3, 96), np.uint16)
    cuda.residual_norm(summed, None, weight, 1e-5, only_normed, 0)
    np.testing.assert_array_equal(only_normed, out)

    inner = np.zeros((3, 48), np.uint16)
    cuda.silu_mul(delta, inner, 0)
    sizes = {"tokens": 3, "ffn": 48, "element": is_bf16}
    np.testing.assert_array_equal(inner, PLAIN.run("silu_mul", {"in": delta}, sizes)["out"])


@pytest.mark.parametrize("type_", WEIGHTS)
def test_dense_weights_have_the_bits_of_the_driver(cuda: Any, type_: str) -> None:
    rows, cols = 40, 96
    gguf = encode(np.random.default_rng(8).normal(size=(rows, cols)).astype(np.float32), type_)
    data = np.zeros(cuda.packed_bytes(type_, rows, cols), np.uint8)
    cuda.pack(type_, cols, gguf, data)
    out = np.zeros((rows, cols), np.uint16)
    cuda.dequantise(cuda.Matrix(type_, rows, cols, data), out, 0)
    sizes = {"type": WEIGHTS.index(type_), "rows": rows, "cols": cols}
    np.testing.assert_array_equal(out, PLAIN.run("dequantise", {"w": gguf}, sizes)["out"])


def halves(*shape: int) -> Array:
    return np.zeros(shape, np.uint16)


def test_a_chunk_that_its_pages_or_tables_do_not_hold_is_refused(cuda: Any) -> None:
    queries, pool, out = halves(TOKENS, 2, 64), halves(4, 2, 1, 16, 64), halves(TOKENS, 128)
    qkv, tables = np.zeros((TOKENS, 256), np.float32), np.zeros((33, 32), np.float32)
    pages = np.zeros(2, np.int32)
    cuda.prefill_attention(queries, pool, pages, 21, out, 0)  # the last of two pages' positions
    for first, why in (
        (22, r"pages must be int32 \[3 or more\], got int32 \[2\]"),
        (-1, "first_position must be at least 0, got -1"),
        (2**31 - 1, r"pages must be int32 \[134217729 or more\]"),
    ):
        with pytest.raises(ValueError, match=f"^prefill_attention: {why}"):
            cuda.prefill_attention(queries, pool, pages, first, out, 0)
        with pytest.raises(ValueError, match=f"^rope_append: {why}"):
            cuda.rope_append(qkv, tables, tables, pool, pages, first, queries, True, 0)
    short = tables[:31]
    for cosines, sines, name in ((short, tables, "cosines"), (tables, short, "sines")):
        with pytest.raises(ValueError, match=rf"^rope_append: {name} must be float32 \[32 or more"):
            cuda.rope_append(qkv, cosines, sines, pool, pages, 21, queries, True, 0)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "why"),
    [
        (3, 2, 64, "q_rotated must have a multiple of pool's 2 heads, got 3"),
        (2, 0, 64, r"pool must be bfloat16 or uint16 \[1 or more, 2, 1 or more, 16, 64\]"),
        (2, 1, 96, "q_rotated must have heads of 64 or 128 dimensions, got 96"),
    ],
)
def test_heads_that_the_kernels_have_no_code_for_are_refused(
    cuda: Any, heads: int, kv_heads: int, dim: int, why: str
) -> None:
    with pytest.raises(ValueError, match=f"^prefill_attention: {why}"):
        cuda.prefill_attention(
            halves(1, heads, dim), halves(1, 2, kv_heads, 16, dim), np.zeros(1, np.int32), 0,
            halves(1, heads * dim), 0,
        )  # fmt: skip


def test_widths_that_are_no_multiple_of_8_are_refused(cuda: Any) -> None:
    odd = np.zeros((1, 12), np.float32)
    with pytest.raises(ValueError, match=r"^residual_norm: x must have rows of a multiple of 8"):
        cuda.residual_norm(odd, None, odd[0], 1e-5, halves(1, 12), 0)
    with pytest.raises(ValueError, match=r"^silu_mul: out must have rows of a multiple of 8"):
        cuda.silu_mul(np.zeros((1, 24), np.float32), halves(1, 12), 0)
