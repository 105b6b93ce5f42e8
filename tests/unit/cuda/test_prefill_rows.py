"""Dense weights, norms and SwiGLU of prefill, emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.emulated import (
    ORDERS,
    Array,
    Emulated,
    Fault,
    Flavour,
    Order,
    from_bfloat16,
    to_bfloat16,
)
from support.prefill_chunks import BF16, FLOAT32
from support.projections import EPS, NAMES, Q4_1, Matrix, random_matrix

PLAIN = Emulated()
TYPES = pytest.mark.parametrize("type_", range(4), ids=NAMES)
PRODUCTS = pytest.mark.parametrize("product", [FLOAT32, BF16], ids=["float32", "bf16"])


# ---- Dense weights ----


def dense(w: Matrix, emulated: Emulated = PLAIN, **how: Any) -> Array:
    scalars = {"type": w.type, "rows": w.rows, "cols": w.cols}
    return emulated.run("dequantise", {"w": w.gguf}, scalars, **how)["out"]


def wanted(w: Matrix) -> Array:
    """Rounded to float32 (exact, but where there is a minimum), then to bf16."""
    return to_bfloat16(w.weights.astype(np.float32)).reshape(w.rows, w.cols)


@TYPES
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (16, 64), (17, 96), (37, 160), (64, 576)])
def test_dense_weights_are_the_nearest_bf16(type_: int, rows: int, cols: int) -> None:
    w = random_matrix(np.random.default_rng(rows), type_, rows, cols)
    out = dense(w)
    np.testing.assert_array_equal(out, wanted(w))
    slack = 2.0**-23 if type_ == Q4_1 else 0
    bound = (2.0**-8 + slack) * abs(w.weights)
    assert (abs(from_bfloat16(out) - w.weights) <= bound).all()


def test_columns_of_bf16_that_fill_no_tile() -> None:
    w = random_matrix(np.random.default_rng(0), 0, 33, 40)
    np.testing.assert_array_equal(dense(w), wanted(w))


@TYPES
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_threads_gives_the_same_weights(type_: int, order: Order) -> None:
    w = random_matrix(np.random.default_rng(1), type_, 24, 320)
    np.testing.assert_array_equal(dense(w, order=order, seed=3), wanted(w))


@pytest.mark.parametrize(("type_", "cols"), [(0, 12), (1, 40), (2, 0)])
def test_columns_that_no_layout_has_are_refused(type_: int, cols: int) -> None:
    scalars = {"type": type_, "rows": 0, "cols": cols}
    with pytest.raises(Fault, match="launcher returned error 1"):
        PLAIN.run("dequantise", {"w": np.zeros(0, np.uint8)}, scalars)


def test_a_matrix_without_rows_is_no_launch() -> None:
    scalars = {"type": 0, "rows": 0, "cols": 32}
    out = PLAIN.run("dequantise", {"w": np.zeros(0, np.uint8)}, scalars)["out"]
    assert out.shape == (0, 32)


# ---- Residual and norm ----


def rounded(values: Array, product: int) -> Array:
    """As the matrix product leaves it."""
    return to_bfloat16(values) if product == BF16 else values.astype(np.float32)


def numbers(array: Array) -> Array:
    return from_bfloat16(array) if array.dtype == np.uint16 else array


def norm(
    x: Array,
    weight: Array,
    delta: Array | None,
    emulated: Emulated = PLAIN,
    *,
    is_wanted: bool = True,
    **how: Any,
) -> dict[str, Array]:
    arrays = {"x": x, "weight": weight} | ({} if delta is None else {"delta": delta})
    is_bf16 = delta is not None and delta.dtype == np.uint16
    scalars = {"tokens": x.shape[0], "hidden": x.shape[1], "eps": EPS}
    scalars |= {"element": BF16 if is_bf16 else FLOAT32, "norm": int(is_wanted)}
    return emulated.run("residual_norm", arrays, scalars, **how)


def rows_of(tokens: int, hidden: int, product: int, seed: int = 0) -> tuple[Array, Array, Array]:
    random = np.random.default_rng((tokens, hidden, seed))
    x = random.normal(size=(tokens, hidden)).astype(np.float32)
    delta = rounded(random.normal(size=(tokens, hidden)), product)
    return x, random.uniform(0.2, 2, hidden).astype(np.float32), delta


def check_norm(got: dict[str, Array], x: Array, weight: Array) -> None:
    """`x` is the sum that must be left."""
    np.testing.assert_array_equal(got["x"], x)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS) * weight
    bound = (2.0**-8 + (x.shape[1] / 1024 + 24) * 2.0**-24) * abs(exact)
    assert (abs(from_bfloat16(got["out"]).reshape(x.shape) - exact) <= bound).all()


@PRODUCTS
@pytest.mark.parametrize(
    ("tokens", "hidden"), [(1, 8), (3, 64), (2, 576), (5, 1000), (1, 4096), (1, 13000)]
)
def test_the_sum_is_exact_and_the_norm_within_its_bound(
    product: int, tokens: int, hidden: int
) -> None:
    x, weight, delta = rows_of(tokens, hidden, product)
    check_norm(norm(x, weight, delta), x + numbers(delta), weight)


def test_no_residual_leaves_x_as_it_is() -> None:
    x, weight, _ = rows_of(3, 72, FLOAT32)
    check_norm(norm(x, weight, None), x, weight)


def test_the_sum_alone_needs_no_norm() -> None:
    x, weight, delta = rows_of(3, 72, BF16)
    got = norm(x, weight, delta, is_wanted=False)
    assert set(got) == {"x"}
    np.testing.assert_array_equal(got["x"], x + numbers(delta))


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_threads_gives_the_same_norm(order: Order) -> None:
    x, weight, delta = rows_of(4, 1104, FLOAT32)
    alone = norm(x[1:2], weight, delta[1:2])["out"]
    got = norm(x, weight, delta, order=order, seed=5)["out"]
    np.testing.assert_array_equal(got[1:2], alone)


def test_rows_that_are_no_multiple_of_8_are_refused() -> None:
    with pytest.raises(Fault, match="launcher returned error 1"):
        norm(*rows_of(1, 12, FLOAT32)[:2], None)


# ---- SwiGLU ----


def silu_mul(gate: Array, up: Array, product: int, emulated: Emulated = PLAIN, **how: Any) -> Array:
    tokens, ffn = gate.shape
    arrays = {"in": rounded(np.concatenate([gate, up], axis=1), product)}
    scalars = {"tokens": tokens, "ffn": ffn, "element": product}
    return emulated.run("silu_mul", arrays, scalars, **how)["out"]


@PRODUCTS
@pytest.mark.parametrize(("tokens", "ffn"), [(1, 8), (3, 40), (2, 1536), (7, 1000)])
def test_swiglu_is_within_its_bound(product: int, tokens: int, ffn: int) -> None:
    random = np.random.default_rng((tokens, ffn))
    gate, up = (3 * random.normal(size=(tokens, ffn)) for _ in range(2))
    gate[0, :4] = [0, -200, 200, -87.5]
    out = from_bfloat16(silu_mul(gate, up, product)).reshape(tokens, ffn)
    wide = [numbers(rounded(part, product)).astype(np.float64) for part in (gate, up)]
    exact = wide[0] / (1 + np.exp(-wide[0])) * wide[1]
    bound = (2.0**-8 + 2.0**-20) * abs(exact) + 2.0**-126 * (1 + abs(wide[1]))
    assert (abs(out - exact) <= bound).all()


def test_no_token_is_no_launch() -> None:
    assert silu_mul(np.zeros((0, 8)), np.zeros((0, 8)), BF16).shape == (0, 8)


def test_a_width_that_is_no_multiple_of_8_is_refused() -> None:
    with pytest.raises(Fault, match="launcher returned error 1"):
        silu_mul(np.zeros((1, 12)), np.zeros((1, 12)), BF16)


# ---- All of them ----


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
@PRODUCTS
def test_sanitizers_find_nothing(flavour: Flavour, product: int) -> None:
    emulated = Emulated(flavour)
    for type_ in range(4):
        w = random_matrix(np.random.default_rng(2), type_, 20, 224)
        np.testing.assert_array_equal(dense(w, emulated), wanted(w))
    x, weight, delta = rows_of(2, 1032, product)
    check_norm(norm(x, weight, delta, emulated), x + numbers(delta), weight)
    gate = np.random.default_rng(0).normal(size=(3, 104))
    np.testing.assert_array_equal(
        silu_mul(gate, gate, product, emulated), silu_mul(gate, gate, product)
    )
