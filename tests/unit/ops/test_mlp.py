"""`ops.Mlp` against float64 and against torch, for every variant that this CPU runs."""

from __future__ import annotations

import itertools
import math
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime import native
from servewright_runtime.ops import ACTIVATIONS, MAX_WIDTH, WEIGHT_TYPES, Mlp, mlp_reference
from servewright_runtime.ops.mlp import kept
from support.networks import Array, Costs, Net, exact, random_net

VARIANTS = native.variants()
LANES = {"amx": 16, "avx512": 16, "avx2x16": 16, "avx2": 8, "base": 8}


def costs(variant: str) -> Costs:
    """What csrc/cpu/dense.h claims."""
    lanes = LANES[variant]
    rounds = 2 if variant == "base" else 1  # of an fma
    return Costs(
        # Columns of a lane, in pairs where weights are bfloat16.
        product=lambda cols: rounds * 2 * math.ceil(cols / lanes / 2) + math.log2(lanes) + 2,
        activation={"gelu": 10, "gelu_tanh": 10, "tanh": 5, "sigmoid": 7, "softmax": 20},
        sum_rows=lambda rows: rows / lanes,
    )


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def mlp(net: Net, variant: str, threads: int = 1) -> Mlp:
    return Mlp(net.weights, net.biases, net.activations, threads=threads, variant=variant)


def inputs(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[str], int, int]:
    """Widths, activations, rows of a batch, a seed."""
    sizes = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 300]))
    widths = draw(st.lists(sizes, min_size=2, max_size=6))
    kinds = st.sampled_from(ACTIVATIONS)
    activations = draw(st.lists(kinds, min_size=len(widths) - 1, max_size=len(widths) - 1))
    return widths, activations, draw(st.integers(0, 9)), draw(st.integers(0, 2**31))


def kept_as(net: Net, weight_type: str) -> Net:
    """The network with weights of another type."""
    dtype = ml_dtypes.bfloat16 if weight_type == "bfloat16" else weight_type
    return Net([w.astype(dtype) for w in net.weights], net.biases, net.activations)


@given(cases(), st.sampled_from(VARIANTS), st.sampled_from(WEIGHT_TYPES))
def test_any_network_is_within_its_roundings_of_float64(
    case: tuple[list[int], list[str], int, int], variant: str, weight_type: str
) -> None:
    widths, activations, rows, seed = case
    rng = np.random.default_rng(seed)
    net = kept_as(random_net(rng, widths, activations, 2.0), weight_type)
    x = inputs(rng, rows, widths[0])
    values, errors = exact(net, x, costs(variant))
    assert (abs(mlp(net, variant)(x) - values) <= errors).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_right_from_end_to_end(activation: str, variant: str) -> None:
    z = np.concatenate([np.linspace(-120, 120, 2001), np.linspace(-4, 4, 2000), [1e-8, -1e-30, 0]])
    x = z.astype(np.float32)[:, None]
    net = Net([np.ones((1, 1), np.float32)], [None], [activation])
    values, errors = exact(net, x, costs(variant))
    assert (abs(mlp(net, variant)(x) - values) <= errors).all()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_the_widest_layers_are_within_their_roundings(weight_type: str, variant: str) -> None:
    rng = np.random.default_rng(1)
    net = random_net(rng, [MAX_WIDTH, 3, MAX_WIDTH, 2], ["gelu", "tanh", "softmax"])
    net = kept_as(net, weight_type)
    x = inputs(rng, 3, MAX_WIDTH)
    values, errors = exact(net, x, costs(variant))
    assert (abs(mlp(net, variant)(x) - values) <= errors).all()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads(
    weight_type: str, variant: str
) -> None:
    rng = np.random.default_rng(2)
    net = kept_as(random_net(rng, [130, 277, 300, 9], ["gelu", "softmax", "none"]), weight_type)
    x = inputs(rng, 150, 130)  # more than two chunks
    whole = mlp(net, variant)(x)
    for first, last in ((0, 1), (149, 150), (3, 7), (60, 70), (1, 66)):
        np.testing.assert_array_equal(mlp(net, variant)(x[first:last]), whole[first:last])
    large = kept_as(random_net(rng, [1024, 1100, 1030], ["softmax", "relu"]), weight_type)
    wide = inputs(rng, 65, 1024)
    alone = mlp(large, variant)(wide)
    for threads in (2, 3):
        np.testing.assert_array_equal(mlp(net, variant, threads)(x), whole)
        # Tokens of their own for two threads, shared rows for three; then for two as well.
        np.testing.assert_array_equal(mlp(large, variant, threads)(wide), alone)
        np.testing.assert_array_equal(mlp(large, variant, threads)(wide[:2]), alone[:2])


def test_float16_weights_are_what_their_float32_copies_are(variant: str) -> None:
    rng = np.random.default_rng(3)
    halves = kept_as(random_net(rng, [50, 33, 7], ["tanh", "none"]), "float16")
    x = inputs(rng, 5, 50)
    got = mlp(halves, variant)(x)
    np.testing.assert_array_equal(got, mlp(kept_as(halves, "float32"), variant)(x))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_weights_of_each_type_may_be_mixed(weight_type: str, variant: str) -> None:
    rng = np.random.default_rng(9)
    net = random_net(rng, [33, 47, 65, 5], ["softmax", "gelu", "none"])
    types = ["bfloat16", weight_type, "bfloat16"]
    parts = [kept_as(net, t).weights[i] for i, t in enumerate(types)]
    mixed, x = Net(parts, net.biases, net.activations), inputs(rng, 3, 33)
    values, errors = exact(mixed, x, costs(variant))
    assert (abs(mlp(mixed, variant)(x) - values) <= errors).all()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_float32_weights_are_rounded_as_numpy_and_torch_do(weight_type: str, variant: str) -> None:
    rng = np.random.default_rng(10)
    net, x = random_net(rng, [70, 35, 4], ["tanh", "none"]), inputs(rng, 3, 70)
    asked = Mlp(net.weights, net.biases, net.activations, weight_type=weight_type, variant=variant)
    given = kept_as(net, weight_type)
    np.testing.assert_array_equal(asked(x), mlp(given, variant)(x))
    again = Mlp(
        given.weights, given.biases, given.activations, weight_type=weight_type, variant=variant
    )
    np.testing.assert_array_equal(again(x), asked(x))


def test_every_float32_becomes_the_nearest_bfloat16() -> None:
    rng = np.random.default_rng(11)
    w = rng.integers(0, 1 << 32, 100_000, np.uint64).astype(np.uint32).view(np.float32)
    w[:6] = [np.inf, -np.inf, 0, -0.0, 1e-42, 1 + 2**-8]  # the last is a tie, to even
    w = w[abs(w) < 3.3895e38]  # and no NaN
    w = np.concatenate([w, np.array([np.inf, -np.inf], np.float32)])[None]
    wanted = w.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(kept(w, "w", "bfloat16"), wanted)
    nan = kept(np.array([[np.nan, -np.nan]], np.float32), "w", "bfloat16")
    assert np.isnan(nan.view(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_weights_are_copied(variant: str) -> None:
    rng = np.random.default_rng(4)
    net, x = random_net(rng, [20, 5], ["none"]), inputs(rng, 20)
    network = mlp(net, variant)
    before = network(x)
    net.weights[0][:] = np.nan
    np.testing.assert_array_equal(network(x), before)


def test_shapes_and_batches_are_kept() -> None:
    rng = np.random.default_rng(5)
    network = mlp(random_net(rng, [6, 4], ["relu"]), "base")
    assert (network.inputs, network.outputs) == (6, 4)
    for shape in ((6,), (3, 6), (2, 3, 6), (0, 6), (2, 0, 6)):
        assert network(inputs(rng, *shape)).shape == (*shape[:-1], 4)


def test_nan_and_infinity_stay_in_their_row(variant: str) -> None:
    rng = np.random.default_rng(6)
    for activation in ACTIVATIONS:
        net, x = random_net(rng, [20, 40, 3], [activation, "softmax"]), inputs(rng, 5, 20)
        clean = mlp(net, variant)(x)
        x[1, 3] = np.nan
        got = mlp(net, variant)(x)
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(clean, 1, 0))
    network = mlp(Net([np.ones((1, 1), np.float32)], [None], ["gelu"]), variant)
    assert network(np.array([np.inf], np.float32))[0] == np.inf
    assert network(np.array([-np.inf], np.float32))[0] == 0


def test_calls_from_several_threads_do_not_meet() -> None:
    rng = np.random.default_rng(7)
    network = mlp(random_net(rng, [64, 50, 8], ["tanh", "softmax"]), VARIANTS[0], 2)
    x = inputs(rng, 8, 9, 64)
    wanted = [network(part) for part in x]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(network(x[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_torch_reference_is_what_the_kernels_are_held_to() -> None:
    import torch

    rng = np.random.default_rng(8)
    for kinds in itertools.permutations(ACTIVATIONS, 2):
        net, x = random_net(rng, [9, 8, 7], kinds), inputs(rng, 3, 9)
        values, _ = exact(net, x, costs("base"))
        tensors = [torch.from_numpy(w) for w in net.weights]
        biases = [None if b is None else torch.from_numpy(b) for b in net.biases]
        got = mlp_reference.mlp(torch.from_numpy(x).double(), tensors, biases, net.activations)
        np.testing.assert_allclose(got.numpy(), values, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="activation is swish"):
        mlp_reference.activated(torch.zeros(1), "swish")


W = np.zeros((4, 6), np.float32)
B = np.zeros(4, np.float32)
HALVES = W.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("weights", "biases", "activations", "told"),
    [
        ([], [], [], "weights holds no layer"),
        ([W], [B, B], ["relu"], "got 1 weights, 2 biases, 1 activations"),
        ([W], [B], [], "got 1 weights, 1 biases, 0 activations"),
        ([W], [B], ["swish"], r"activations\[0\] is swish; choose none, relu, gelu,"),
        ([W.astype(np.float64)], [B], ["relu"], r"weights\[0\] must be .* float32 .* got float64"),
        ([W.astype(np.float16).T], [B], ["relu"], r"weights\[0\] must be C-contiguous"),
        ([HALVES.T], [B], ["relu"], r"C-contiguous with 2 dimensions, got bfloat16 \[6, 4\]"),
        ([W, W.astype(np.uint16)], [B, B], ["relu"] * 2, r"weights\[1\] must be .* got uint16"),
        ([W[0]], [B], ["relu"], r"weights\[0\] must be .* 2 dimensions, got float32 \[6\]"),
        ([W.tolist()], [B], ["relu"], r"weights\[0\] must be .* got <class 'list'>"),
        ([W, W], [B, B], ["relu"] * 2, r"weights\[1\] must have 4 columns, .* got \[4, 6\]"),
        ([W], [B[:3]], ["relu"], r"biases\[0\] must be \[4\], got \[3\]"),
        ([W], [B.astype(np.float16)], ["relu"], r"biases\[0\] must be .* float32 .* got float16"),
        ([np.zeros((2, 4097), np.float32)], [None], ["relu"], r"each 1 to 4096, got \[2, 4097\]"),
        ([np.zeros((0, 4), np.float32)], [None], ["relu"], r"each 1 to 4096, got \[0, 4\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    weights: Any, biases: Any, activations: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Mlp(weights, biases, activations)


@pytest.mark.parametrize(
    ("weights", "weight_type", "told"),
    [
        (W, "int8", "weight_type is int8; choose float32, float16, bfloat16, or None"),
        (HALVES, "float32", r"weights\[0\] is bfloat16, and only float32 is"),
        (W.astype(np.float16), "bfloat16", r"weights\[0\] is float16, and only float32 is"),
        (W.astype(np.float64), "bfloat16", r"weights\[0\] must be .* float32 .* got float64"),
        (W.T, "bfloat16", r"weights\[0\] must be .* got float32 \[6, 4\], not contiguous"),
        (W + 65520, "float16", r"weights\[0\] holds 65520, which is too large for float16"),
        (W - 3.4e38, "bfloat16", r"weights\[0\] holds -3.4e\+38, .* large for bfloat16; keep it"),
    ],
)
def test_weights_that_another_type_does_not_hold_are_refused(
    weights: Any, weight_type: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Mlp([weights], [None], ["relu"], weight_type=weight_type)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (np.zeros((2, 5), np.float32), r"x must be \[..., 6\], got \[2, 5\]"),
        (np.zeros((2, 6)), "x must be .* float32 .* got float64"),
        (np.zeros((6, 2), np.float32).T, "not contiguous"),
        (np.float32(1), "x must be .* got"),
        ([0.0] * 6, "x must be .* got <class 'list'>"),
        (np.zeros((), np.float32), "x must be .* got float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Mlp([W], [B], ["relu"])(x)


def test_threads_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"threads must be in 1\.\.1024, got 0"):
        Mlp([W], [B], ["relu"], threads=0)
