"""Dense networks of csrc/cuda/mlp.cuh on the emulator, against float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from support.emulated import ORDERS, Emulated, Fault, Flavour, Order
from support.networks import ACTIVATIONS, CUDA_COSTS, Array, Net, exact, random_net


def run(
    net: Net,
    x: Array,
    *,
    flavour: Flavour = "plain",
    order: Order = "up",
    seed: int = 1,
    max_blocks: int = 6,
    launches: int = 1,
) -> Array:
    arrays: dict[str, Any] = {"x": x}
    arrays["activations"] = np.array([ACTIVATIONS.index(a) for a in net.activations], np.int32)
    for index, (weights, bias, _) in enumerate(net.layers):
        arrays[f"w{index}"] = weights
        if bias is not None:
            arrays[f"b{index}"] = bias
    scalars = {"layers": len(net.weights), "tokens": len(x)}
    scalars |= {"max_blocks": max_blocks, "launches": launches}
    return Emulated(flavour).run("mlp", arrays, scalars, order=order, seed=seed)["y"]


def inputs(rng: np.random.Generator, tokens: int, width: int) -> Array:
    return rng.standard_normal((tokens, width)).astype(np.float32)


# Widths of 1, odd, off a warp's load, and the digits' network; tokens off the tile.
SHAPES: list[tuple[list[int], int]] = [
    ([1, 1], 1),
    ([3, 5, 2], 3),
    ([784, 128, 128, 10], 1),
    ([131, 66, 257, 7], 5),
    ([128, 4, 130], 4),
    ([4096, 3], 2),
    ([2, 4096, 3], 1),
]


@pytest.mark.parametrize(("widths", "tokens"), SHAPES, ids=str)
def test_a_network_is_within_its_roundings_of_float64(widths: list[int], tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    kinds = itertools.cycle(ACTIVATIONS[1:])
    for _ in range(2 if len(widths) > 2 else len(ACTIVATIONS)):
        activations = [next(kinds) for _ in widths[1:]]
        net, x = random_net(rng, widths, activations, 2.0), inputs(rng, tokens, widths[0])
        values, errors = exact(net, x, CUDA_COSTS)
        got = run(net, x)
        assert (abs(got - values) <= errors).all(), (activations, abs(got - values).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_right_from_end_to_end(activation: str) -> None:
    z = np.concatenate([np.linspace(-110, 110, 61), np.linspace(-4, 4, 61), [0, 1e-8, -1e-30]])
    x = z.astype(np.float32)[None]
    net = Net([np.eye(x.shape[1], dtype=np.float32)], [None], [activation])
    values, errors = exact(net, x, CUDA_COSTS)
    assert (abs(run(net, x) - values) <= errors).all()


def test_no_order_of_threads_or_grid_or_batch_changes_a_bit() -> None:
    rng = np.random.default_rng(7)
    net = random_net(rng, [70, 45, 33, 9], ["gelu", "softmax", "softmax"])
    x = inputs(rng, 9, 70)
    whole = run(net, x)
    for index, order in enumerate(ORDERS):
        for max_blocks in (1, 2, 5, 64):
            again = run(net, x, order=order, seed=index, max_blocks=max_blocks)
            np.testing.assert_array_equal(again, whole)
    for first, last in ((0, 1), (8, 9), (2, 5), (3, 9)):
        np.testing.assert_array_equal(run(net, x[first:last]), whole[first:last])


def test_weights_that_are_not_aligned_give_the_same_bits() -> None:
    rng = np.random.default_rng(8)
    net, x = random_net(rng, [64, 40], ["tanh"]), inputs(rng, 3, 64)
    widened = Net([np.pad(net.weights[0], ((0, 0), (0, 1)))], net.biases, net.activations)
    np.testing.assert_array_equal(run(widened, np.pad(x, ((0, 0), (0, 1)))), run(net, x))


def test_a_workspace_serves_again_and_again() -> None:
    rng = np.random.default_rng(9)
    net, x = random_net(rng, [40, 30, 20, 5], ["relu", "tanh", "softmax"]), inputs(rng, 4, 40)
    np.testing.assert_array_equal(run(net, x, launches=3), run(net, x))


def test_a_network_of_more_layers_than_a_launch_takes_several() -> None:
    rng = np.random.default_rng(10)
    net = random_net(rng, [6] * 131, ["tanh"] * 130, 0.2)
    x = inputs(rng, 2, 6)
    values, errors = exact(net, x, CUDA_COSTS)
    got = run(net, x, max_blocks=2)
    assert (abs(got - values) <= errors).all()
    assert errors.max() < 1e-5


def test_a_token_of_nan_poisons_no_other() -> None:
    rng = np.random.default_rng(11)
    net, x = random_net(rng, [20, 12, 6], ["gelu", "softmax"]), inputs(rng, 6, 20)
    clean = run(net, x)
    x[3, 5] = np.nan
    got = run(net, x)
    assert np.isnan(got[3]).all()
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize(("flavour", "order"), [("asan", "random"), ("tsan", "random")])
def test_blocks_meet_between_layers(flavour: Flavour, order: Order) -> None:
    # At most 192 fibers: more would hide races from some sanitizers.
    rng = np.random.default_rng(12)
    net, x = random_net(rng, [33, 18, 17, 3], ["relu", "softmax", "sigmoid"]), inputs(rng, 2, 33)
    values, errors = exact(net, x, CUDA_COSTS)
    got = run(net, x, flavour=flavour, order=order, max_blocks=3, launches=2)
    assert (abs(got - values) <= errors).all()


@pytest.mark.parametrize("widths", [[5000, 2], [2, 4097]], ids=str)
def test_widths_that_no_kernel_takes_are_refused(widths: list[int]) -> None:
    net = Net([np.zeros((widths[1], widths[0]), np.float32)], [None], ["none"])
    with pytest.raises(Fault, match="error 1"):
        run(net, np.zeros((1, widths[0]), np.float32))
