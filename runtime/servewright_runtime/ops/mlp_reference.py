"""What `Mlp` and the op `servewright::mlp` compute, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
) -> Tensor:
    """[..., inputs] to [..., outputs], in the dtype of x, to which weights and biases go."""
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        x = activated(linear(x, weight, bias), activation)
    return x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b."""
    y = x @ weight.to(x.dtype).mT
    return y if bias is None else y + bias.to(x.dtype)


def activated(z: Tensor, activation: str) -> Tensor:
    """One of ops.ACTIVATIONS, over the last dimension."""
    from torch.nn import functional

    match activation:
        case "none":
            return z
        case "relu":
            return z.relu()
        case "gelu":
            return functional.gelu(z)
        case "gelu_tanh":
            return functional.gelu(z, approximate="tanh")
        case "tanh":
            return z.tanh()
        case "sigmoid":
            return z.sigmoid()
        case "softmax":
            return z.softmax(dim=-1)
    raise ValueError(f"activation is {activation}, which is none of those in ops.ACTIVATIONS.")
