"""Dense networks at random, their exact values, and how far a kernel may be from them.

A bound follows from the kernel's documented order: `product(cols)` roundings of a product and the
error of its activation; each layer carries on the error of the one before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softmax")
UNIT = 2.0**-24
# Of each activation: the largest slope.
_SLOPES = {
    "none": 1.0,
    "relu": 1.0,
    "gelu": 1.13,
    "gelu_tanh": 1.13,
    "tanh": 1.0,
    "sigmoid": 0.25,
}
_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Net:
    """[rows, cols] weights, [rows] biases or None, and names of activations."""

    weights: list[Array]
    biases: list[Array | None]
    activations: list[str]

    @property
    def layers(self) -> list[tuple[Array, Array | None, str]]:
        return list(zip(self.weights, self.biases, self.activations, strict=True))


@dataclass(frozen=True)
class Costs:
    """Roundings of a kernel, in units of 2^-24."""

    product: Callable[[int], float]  # of cols
    activation: dict[str, float]  # relative; of |z| for gelu
    by_argument: float = 0.0  # and so many times |z|, for sigmoid
    sum_rows: Callable[[int], float] = lambda rows: rows  # of a softmax


# csrc/cuda/mlp.cuh: what each claims.
CUDA_COSTS = Costs(
    product=lambda cols: math.ceil(cols / 128) + 8,
    activation={
        **{"gelu": 16, "gelu_tanh": 16, "tanh": 16, "sigmoid": 16},
        "softmax": 32,
    },
    by_argument=1.5,
    sum_rows=lambda rows: math.ceil(rows / 128) + 8,
)


def random_net(
    rng: np.random.Generator, widths: Sequence[int], activations: Sequence[str], scale: float = 1.0
) -> Net:
    """Layers from widths[i] to widths[i + 1]; every third has no bias."""
    weights, biases = [], []
    for index, (cols, rows) in enumerate(itertools.pairwise(widths)):
        spread = scale / math.sqrt(cols)
        weights.append((rng.standard_normal((rows, cols)) * spread).astype(np.float32))
        bias = rng.standard_normal(rows).astype(np.float32)
        biases.append(None if index % 3 == 2 else bias)
    return Net(weights, biases, list(activations))


def activated(z: Array, activation: str) -> Array:
    """In float64."""
    y: Array = _activated(z, activation)
    return y


def _activated(z: Array, activation: str) -> Any:
    match activation:
        case "relu":
            return np.where(z < 0, 0, z)
        case "gelu":
            return z * 0.5 * (1 + _erf(z / math.sqrt(2)))
        case "gelu_tanh":
            return z * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        case "tanh":
            return np.tanh(z)
        case "sigmoid":
            return 1 / (1 + np.exp(-z))
        case "softmax":
            powers = np.exp(z - z.max(axis=-1, keepdims=True))
            return powers / powers.sum(axis=-1, keepdims=True)
    return z


def activation_error(z: Array, y: Array, error: Array, activation: str, costs: Costs) -> Array:
    """How far activation(z') may be from y = activation(z) where |z' - z| <= error."""
    own = costs.activation.get(activation, 0.0)
    if activation == "softmax":
        away = z.max(axis=-1, keepdims=True) - z
        mean = (y * away).sum(axis=-1, keepdims=True)
        moved = error + (error * y).sum(axis=-1, keepdims=True)
        relative = own + 2 * (away + mean) + costs.sum_rows(z.shape[-1])
        # e^moved - 1, and what is below e^-87 of the largest is 0.
        whole: Array = y * (np.expm1(moved) + relative * UNIT) + 2.0**-125
        return whole
    carried = _SLOPES[activation] * error
    if activation in ("gelu", "gelu_tanh"):
        return carried + own * UNIT * (abs(z) + error)
    if activation == "sigmoid":
        return carried + (own + costs.by_argument * abs(z)) * UNIT * (y + carried) + 2.0**-125
    return carried + own * UNIT * (abs(y) + carried)


def exact(net: Net, x: Array, costs: Costs) -> tuple[Array, Array]:
    """Values in float64, and the kernel's greatest error."""
    values = x.astype(np.float64)
    errors = np.zeros_like(values)
    for weights, bias, activation in net.layers:
        w = weights.astype(np.float64)
        b = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
        z = values @ w.T + b
        magnitude = (abs(values) + errors) @ abs(w).T + abs(b)
        error = errors @ abs(w).T + costs.product(w.shape[1]) * UNIT * magnitude
        values = activated(z, activation)
        errors = activation_error(z, values, error, activation, costs)
    return values, errors
