"""The ops of prefill from nvcc's PTX: numbers, races, and what they load, store and collide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hack import nvcc
from numpy.typing import NDArray

from support.emulated import from_bfloat16, to_bfloat16
from support.prefill_chunks import BF16, FLOAT32, Sequence
from support.projections import EPS, NAMES, random_matrix
from support.ptx_ops import Ran, packed
from support.ptx_prefill import (
    dequantise,
    prefill_attention,
    residual_norm,
    rope_append,
    rows_a_block,
    silu_mul,
)

Array = NDArray[Any]
PRODUCTS = pytest.mark.parametrize("product", [FLOAT32, BF16], ids=["float32", "bf16"])
SIZES = pytest.mark.parametrize("head_dim", [64, 128])


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        nvcc.find()
    except nvcc.Missing as missing:
        pytest.skip(str(missing))


def check_once(ran: Ran, *names: str) -> None:
    """Every byte of these arrays is asked for once, in whole sectors."""
    for name in names:
        assert ran.loaded(name) == ran.memory.arrays[name].size, name
        assert ran.excess(name) == 1, name


def check_stored(ran: Ran, name: str, size: int) -> None:
    stores = ran.memory.arrays[name].stores
    assert stores.bytes == size
    assert stores.excess == 1


@pytest.mark.parametrize("type_", range(4), ids=NAMES)
def test_dense_weights_come_once_and_leave_once(type_: int) -> None:
    w = random_matrix(np.random.default_rng(type_), type_, 48, 576)
    ran = dequantise(w)
    wanted = to_bfloat16(w.weights.astype(np.float32)).reshape(w.rows, w.cols)
    np.testing.assert_array_equal(ran.read("out"), wanted)
    assert ran.result.races == []
    assert ran.loaded("weights") == len(packed(w))
    assert ran.excess("weights") == 1
    check_stored(ran, "out", 2 * w.rows * w.cols)


@SIZES
@PRODUCTS
@pytest.mark.parametrize("interleaved", [True, False], ids=["adjacent", "halves"])
def test_rope_reads_its_products_once(head_dim: int, product: int, interleaved: bool) -> None:
    sequence = Sequence(40, 6, 2, head_dim, interleaved, product)
    ran = rope_append(sequence, 19, 21)
    np.testing.assert_array_equal(ran.read("pool"), sequence.pool(40))
    np.testing.assert_array_equal(ran.read("queries"), sequence.queries()[19:])
    check_once(ran, "qkv")
    check_stored(ran, "queries", ran.read("queries").nbytes)
    check_stored(ran, "pool", 21 * 2 * 2 * head_dim * 2)
    assert ran.excess() <= 1.1


@SIZES
@pytest.mark.parametrize("row_tiles", [1, 2])
def test_attention_reads_keys_and_values_once_a_block(head_dim: int, row_tiles: int) -> None:
    sequence, first = Sequence(230, 4, 2, head_dim), 150
    tokens, group = sequence.length - first, 2
    ran = prefill_attention(sequence, first, tokens, row_tiles)
    exact, margin = sequence.attended(first, tokens)
    assert (abs(from_bfloat16(ran.read("out")) - exact) <= margin).all()
    ends = np.arange(rows_a_block(row_tiles) - 1, 10**4, rows_a_block(row_tiles)) // group
    blocks = -(-tokens * group // rows_a_block(row_tiles))
    positions = (first + np.minimum(ends[:blocks], tokens - 1) + 1).sum()
    assert ran.loaded("pool") == positions * 4 * head_dim * sequence.kv_heads
    assert ran.excess("pool") == 1
    assert ran.memory.arrays["pool"].fetched == 230 * 4 * head_dim * sequence.kv_heads
    assert ran.memory.arrays["pool"].loads.scalar == 0
    check_stored(ran, "out", ran.read("out").nbytes)
    # Rows behind the last query ask for it again.
    spare = blocks * rows_a_block(row_tiles) - tokens * group
    queries = ran.memory.arrays["queries"]
    assert queries.loads.bytes <= queries.size + spare * 2 * head_dim * sequence.kv_heads
    assert queries.fetched == queries.size
    assert ran.excess() <= 1.1
    assert ran.result.races == []
    assert ran.result.shared_loads.excess == 1
    assert ran.result.shared_stores.excess == 1
    early = prefill_attention(sequence, first, tokens, row_tiles, lazy=False)
    np.testing.assert_array_equal(early.read("out"), ran.read("out"))
    assert early.result.races == []


@PRODUCTS
def test_a_norm_reads_residual_and_product_once(product: int) -> None:
    random = np.random.default_rng(product)
    x, delta = random.normal(size=(2, 3, 1184)).astype(np.float32)
    weight = random.uniform(0.2, 2, 1184).astype(np.float32)
    if product == BF16:
        delta = from_bfloat16(to_bfloat16(delta))
    ran = residual_norm(x, to_bfloat16(delta) if product == BF16 else delta, weight)
    total = (x + delta).astype(np.float64)
    np.testing.assert_array_equal(ran.read("x"), x + delta)
    exact = total / np.sqrt((total**2).mean(1, keepdims=True) + EPS) * weight
    error = abs(from_bfloat16(ran.read("out")) - exact)
    assert (error <= (2.0**-8 + 2.0**-18) * abs(exact)).all()
    check_once(ran, "x", "delta")
    check_stored(ran, "x", x.nbytes)
    check_stored(ran, "out", x.nbytes // 2)
    assert ran.loaded("weight") == 3 * weight.nbytes  # a row from L2 a token
    assert ran.result.races == []
    assert ran.result.shared_stores.excess == 1
    assert ran.result.shared_loads.excess <= 2  # all lanes read the warps' sums; of x it is 1


@PRODUCTS
def test_swiglu_reads_its_products_once(product: int) -> None:
    pairs = np.random.default_rng(product).normal(size=(3, 2 * 544)).astype(np.float32)
    given = to_bfloat16(pairs) if product == BF16 else pairs
    gate, up = np.split(from_bfloat16(given) if product == BF16 else given, 2, axis=1)
    ran = silu_mul(given)
    exact = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
    error = abs(from_bfloat16(ran.read("out")) - exact)
    assert (error <= (2.0**-8 + 2.0**-19) * abs(exact)).all()
    check_once(ran, "in")
    check_stored(ran, "out", 2 * exact.size)
