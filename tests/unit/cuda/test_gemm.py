"""Projections of csrc/cuda/gemm.cuh on the emulator, against float64 on the same weights."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.emulated import (
    COPIES,
    ORDERS,
    Copies,
    Emulated,
    Fault,
    Order,
    from_bfloat16,
    to_bfloat16,
)
from support.projections import (
    BF16,
    EPS,
    NAMES,
    Q4_0,
    Q4_1,
    Q8_0,
    Matrix,
    left_for_norm,
    normed_products,
    products,
    random_matrix,
    swiglu,
)
from support.ptx_ops import packed

Array = npt.NDArray[Any]

TYPES = (BF16, Q8_0, Q4_0, Q4_1)
# Row tiles and token tiles that are compiled; gate_up has no (1, 1).
TILINGS = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4))
X_TILINGS = ((2, 1), (2, 2), (2, 4))  # where a projection reads x itself


class Projections:
    """One way of running the launchers. takes_x: the norm is the projection's own work."""

    def __init__(
        self,
        flavour: Any = "plain",
        order: Order = "up",
        copies: Copies = "lazy",
        seed: int = 1,
        *,
        takes_x: bool = False,
    ) -> None:
        self.emulated = Emulated(flavour)
        self.takes_x = takes_x
        self.how: dict[str, Any] = {"order": order, "copies": copies, "seed": seed}

    def run(
        self, op: str, w: Matrix, arrays: dict[str, Array], tiling: tuple[int, int], **scalars: Any
    ) -> dict[str, Array]:
        numbers = {"type": w.type, "rows": w.rows, "cols": w.cols} | scalars
        numbers |= {"row_tiles": tiling[0], "token_tiles": tiling[1]}
        return self.emulated.run(op, {"w": w.gguf} | arrays, numbers, **self.how)

    def normed(
        self, w: Matrix, x: Array, norm: Array, tiling: tuple[int, int] = (0, 0), pad: int = 0
    ) -> Array:
        arrays = self.input_arrays(x, norm)
        stride = w.rows + pad
        out = self.run(
            "project_normed", w, arrays, tiling, tokens=len(x), eps=EPS, out_stride=stride
        )["out"]
        assert np.isnan(out[:, w.rows :]).all()
        return out[:, : w.rows]

    def input_arrays(self, x: Array, norm: Array) -> dict[str, Array]:
        if self.takes_x:
            return {"x": x, "norm": norm}
        return dict(zip(("scaled", "squares"), left_for_norm(x, norm), strict=True))

    def residual(
        self, w: Matrix, x: Array, residual: Array, tiling: tuple[int, int] = (0, 0)
    ) -> Array:
        arrays = {"in": x, "x": residual}
        return self.run("project_residual", w, arrays, tiling, tokens=len(x))["x"]

    def residual_and_next(
        self, w: Matrix, x: Array, residual: Array, next_: Array, tiling: tuple[int, int] = (0, 0)
    ) -> dict[str, Array]:
        arrays = {"in": x, "x": residual, "next": next_}
        return self.run("project_residual", w, arrays, tiling, tokens=len(x))

    def gate_up(
        self, gate: Matrix, up: Matrix, x: Array, norm: Array, tiling: tuple[int, int] = (0, 0)
    ) -> Array:
        arrays = {"up": up.gguf} | self.input_arrays(x, norm)
        return self.run("gate_up", gate, arrays, tiling, tokens=len(x), eps=EPS)["out"]


def activations(rng: np.random.Generator, tokens: int, cols: int) -> tuple[Array, Array]:
    """A residual stream with outliers, as models have them, and a norm's weights."""
    x = rng.standard_normal((tokens, cols)) * rng.choice([0.1, 1.0, 30.0], cols, p=[0.3, 0.6, 0.1])
    return x.astype(np.float32), rng.uniform(0.2, 2.0, cols).astype(np.float32)


@pytest.mark.parametrize("type_", TYPES, ids=NAMES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (16, 64), (37, 224)])
def test_packing_is_the_documented_layout(type_: int, rows: int, cols: int) -> None:
    w = random_matrix(np.random.default_rng(rows), type_, rows, cols)
    scalars = {"type": type_, "rows": rows, "cols": cols}
    made = Emulated().run("pack", {"w": w.gguf}, scalars)["packed"]
    np.testing.assert_array_equal(made, packed(w))


# 1, primes, one off each tile, SmolLM2's widths and heads of its matrices.
SHAPES = [
    (1, 32, 1),
    (15, 64, 2),
    (17, 96, 7),
    (31, 480, 8),
    (33, 512, 9),
    (61, 544, 1),
    (64, 576, 3),
    (192, 576, 1),
    (16, 1536, 2),
    (37, 224, 31),
    (65, 96, 32),
    (16, 64, 33),
    (48, 160, 64),
    (2053, 32, 1),
]


@pytest.mark.parametrize("takes_x", [False, True], ids=["scaled", "x"])
@pytest.mark.parametrize("type_", TYPES, ids=NAMES)
def test_products_are_within_their_roundings_of_float64(type_: int, takes_x: bool) -> None:
    run = Projections(takes_x=takes_x)
    for rows, cols, tokens in SHAPES:
        rng = np.random.default_rng([type_, rows, cols, tokens])
        w, up = (random_matrix(rng, type_, rows, cols) for _ in range(2))
        x, norm = activations(rng, tokens, cols)
        exact = normed_products(w, x, norm)
        what = f"{rows} rows, {cols} columns, {tokens} tokens"
        out = run.normed(w, x, norm, pad=rows % 3)
        assert (abs(out - exact.values) <= exact.errors).all(), what

        inputs = to_bfloat16(x)
        residual = rng.standard_normal((tokens, rows)).astype(np.float32)
        change = products(w, from_bfloat16(inputs))
        total = residual + change.values
        out = run.residual(w, inputs, residual)
        assert (abs(out - total) <= change.errors + 2.0**-24 * abs(total)).all(), what

        next_ = rng.uniform(0.2, 2.0, rows).astype(np.float32)
        left = run.residual_and_next(w, inputs, residual, next_)
        np.testing.assert_array_equal(left["x"], out)
        scaled, squares = left_for_norm(out, next_)
        np.testing.assert_array_equal(left["next scaled"], scaled)
        # Two squares a lane and three sums of lanes; what pads the sums is not written.
        np.testing.assert_allclose(left["next squares"], squares, rtol=6 * 2.0**-24)

        gated = swiglu(exact, normed_products(up, x, norm))
        out = from_bfloat16(run.gate_up(w, up, x, norm))
        assert (abs(out - gated.values) <= gated.errors).all(), what


def test_bf16_weights_need_only_columns_in_eights() -> None:
    rng = np.random.default_rng(5)
    run = Projections()
    for cols in (8, 24, 40, 264):
        w = random_matrix(rng, BF16, 18, cols)
        x, norm = activations(rng, 3, cols)
        exact = normed_products(w, x, norm)
        assert (abs(run.normed(w, x, norm) - exact.values) <= exact.errors).all()
        inputs, zeros = to_bfloat16(x), np.zeros((3, 18), np.float32)
        change = products(w, from_bfloat16(inputs))
        assert (abs(run.residual(w, inputs, zeros) - change.values) <= change.errors).all()


@pytest.mark.parametrize("takes_x", [False, True], ids=["scaled", "x"])
@pytest.mark.parametrize("type_", TYPES, ids=NAMES)
def test_a_token_has_the_same_bits_in_any_batch_and_tiling(type_: int, takes_x: bool) -> None:
    rng = np.random.default_rng(type_)
    rows, cols, tokens = 70, 608, 64
    w, up = (random_matrix(rng, type_, rows, cols) for _ in range(2))
    x, norm = activations(rng, tokens, cols)
    inputs, residual = to_bfloat16(x), rng.standard_normal((tokens, rows)).astype(np.float32)
    next_ = rng.uniform(0.2, 2.0, rows).astype(np.float32)
    run = Projections(takes_x=takes_x)
    tilings = X_TILINGS if takes_x else TILINGS

    def bits(first: int, last: int, tiling: tuple[int, int]) -> list[Array]:
        part = slice(first, last)
        out = [
            run.normed(w, x[part], norm, tiling),
            *run.residual_and_next(w, inputs[part], residual[part], next_, tiling).values(),
        ]
        if tiling != (1, 1):
            out.append(run.gate_up(w, up, x[part], norm, tiling))
        return out

    whole = bits(0, tokens, tilings[-1])
    batches = [(0, 1), (5, 7), (9, 16), (1, 9), (3, 12), (0, 31), (20, 52), (13, 46)]
    for (first, last), tiling in itertools.chain(
        zip(batches, itertools.cycle(tilings), strict=False), [((0, 64), (2, 1)), ((0, 17), (0, 0))]
    ):
        for alone, together in zip(bits(first, last, tiling), whole, strict=False):
            np.testing.assert_array_equal(alone, together[first:last], f"{first}:{last} {tiling}")


@pytest.mark.parametrize("flavour", ["plain", "asan"])
def test_no_order_of_threads_or_copies_changes_a_bit(flavour: str) -> None:
    expected: dict[int, Array] = {}
    for index, (order, copies) in enumerate(itertools.product(ORDERS, COPIES)):
        run = Projections(flavour, order, copies, seed=index)
        for type_ in TYPES:
            rng = np.random.default_rng(type_)
            w, up = (random_matrix(rng, type_, 23, 2080) for _ in range(2))
            x, norm = activations(rng, 10, 2080)
            tiling = TILINGS[1 + (index + type_) % (len(TILINGS) - 1)]
            out = run.gate_up(w, up, x, norm, tiling)
            np.testing.assert_array_equal(out, expected.setdefault(type_, out))


@pytest.mark.parametrize(
    ("type_", "tiling"), [(Q4_1, (4, 1)), (BF16, (4, 2)), (Q8_0, (4, 4))], ids=str
)
def test_lanes_share_no_memory_without_a_barrier(type_: int, tiling: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    run = Projections("tsan", "random", "eager")
    cols = 2112 if type_ == Q4_1 else 1088  # a range has more column tiles than there are stages
    w, up = (random_matrix(rng, type_, 17, cols) for _ in range(2))
    x, norm = activations(rng, 2, cols)
    exact = swiglu(normed_products(w, x, norm), normed_products(up, x, norm))
    out = from_bfloat16(run.gate_up(w, up, x, norm, tiling))
    assert (abs(out - exact.values) <= exact.errors).all()


@pytest.mark.parametrize(
    ("type_", "tiling"), [(Q4_0, (2, 1)), (BF16, (4, 2)), (Q8_0, (4, 4)), (Q4_1, (4, 1))], ids=str
)
def test_lanes_that_leave_a_norm_share_no_memory_without_a_barrier(
    type_: int, tiling: tuple[int, int]
) -> None:
    """The kinds SCALED and RESIDUAL with `next`, and NORMED, which reads x itself."""
    rng = np.random.default_rng(9)
    cols = 2112 if type_ in (Q4_0, Q4_1) else 1088
    w = random_matrix(rng, type_, 17, cols)
    x, norm = activations(rng, 2, cols)
    exact = normed_products(w, x, norm)
    runs: list[tuple[Order, bool]] = [("random", False), ("down", True)]
    for order, takes_x in runs:
        run = Projections("tsan", order, "eager", takes_x=takes_x)
        out = run.normed(w, x, norm, X_TILINGS[0] if takes_x else tiling)
        assert (abs(out - exact.values) <= exact.errors).all()
    inputs = to_bfloat16(x)
    residual = rng.standard_normal((2, w.rows)).astype(np.float32)
    next_ = rng.uniform(0.2, 2.0, w.rows).astype(np.float32)
    run = Projections("tsan", "random", "lazy")
    left = run.residual_and_next(w, inputs, residual, next_, tiling)
    change = products(w, from_bfloat16(inputs))
    total = residual + change.values
    assert (abs(left["x"] - total) <= change.errors + 2.0**-24 * abs(total)).all()
    np.testing.assert_array_equal(left["next scaled"], left_for_norm(left["x"], next_)[0])


def test_a_token_of_nan_poisons_no_other() -> None:
    rng = np.random.default_rng(4)
    w = random_matrix(rng, Q8_0, 20, 96)
    x, norm = activations(rng, 9, 96)
    run = Projections()
    clean = run.normed(w, x, norm)
    x[4, 7] = np.nan
    out = run.normed(w, x, norm)
    assert np.isnan(out[4]).all()
    np.testing.assert_array_equal(np.delete(out, 4, 0), np.delete(clean, 4, 0))


def test_shapes_that_no_tile_fits_are_refused() -> None:
    rng = np.random.default_rng(6)
    w = random_matrix(rng, Q4_0, 4, 64)
    x, norm = activations(rng, 1, 64)
    with pytest.raises(Fault, match="error 1"):
        Projections().normed(w, x, norm, (3, 1))
    with pytest.raises(Fault, match="error 1"):
        Projections().gate_up(w, w, x, norm, (1, 1))
    with pytest.raises(Fault, match="error 1"):
        Projections(takes_x=True).normed(w, x, norm, (4, 1))
