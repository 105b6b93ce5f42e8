"""Dense networks from nvcc's PTX: numbers, races, and what a launch loads and stores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hack import nvcc

from support.networks import CUDA_COSTS, exact, random_net
from support.ptx_mlp import mlp


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        nvcc.find()
    except nvcc.Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_network_reads_its_weights_once(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    net = random_net(rng, [784, 128, 128, 10], ["relu", "relu", "softmax"])
    x = rng.standard_normal((tokens, 784)).astype(np.float32)
    ran = mlp(net, x, 8)
    values, errors = exact(net, x, CUDA_COSTS)
    assert (abs(ran.read("y") - values) <= errors).all()
    assert ran.result.races == []
    assert not ran.read("counters").any()
    for index, weights in enumerate(net.weights):
        name = f"w{index}"
        assert ran.loaded(name) == weights.nbytes
        assert ran.excess(name) == 1
        assert ran.memory.arrays[name].loads.scalar == 0
    assert ran.memory.arrays["x"].loads.scalar == 0
    assert ran.excess() <= 1.02
    inside = sum(w.nbytes for w in net.weights) + x.nbytes + ran.read("y").nbytes
    inside += sum(b.nbytes for b in net.biases if b is not None)
    hidden = 2 * tokens * 4 * 256  # written, and read again from L2
    assert ran.fetched() + ran.written() <= 1.02 * (inside + hidden)


@pytest.mark.parametrize(("widths", "tokens"), [([33, 18, 7], 1), ([131, 66, 9], 5)], ids=str)
def test_awkward_widths_are_within_their_roundings(widths: list[int], tokens: int) -> None:
    rng = np.random.default_rng(7)
    for activations in itertools.product(("gelu", "tanh"), ("softmax", "sigmoid")):
        net = random_net(rng, widths, activations)
        x = rng.standard_normal((tokens, widths[0])).astype(np.float32)
        values, errors = exact(net, x, CUDA_COSTS)
        ran = mlp(net, x, 3)
        assert (abs(ran.read("y") - values) <= errors).all()
        assert ran.result.races == []
