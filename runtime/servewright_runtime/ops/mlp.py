"""A whole dense network in one call: y = activation(W x + b), layer after layer, on the CPU.

`mlp_reference.py` has the same in plain torch; bounds of the error are in csrc/cpu/dense.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from servewright_runtime import hardware, native

# gelu is x Phi(x), gelu_tanh its form with tanh; softmax goes over a row's outputs.
ACTIVATIONS: Final = ("none", "relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softmax")
WEIGHT_TYPES: Final = ("float32", "float16", "bfloat16")
MAX_WIDTH: Final = 4096


class Mlp:
    """Dense layers with a copy of their weights; calling it runs all of them.

    A row of the result has the same bits alone and in any batch, on any number of threads, for each
    CPU variant by itself. Calls from several threads run side by side.
    """

    def __init__(
        self,
        weights: Sequence[npt.NDArray[Any]],
        biases: Sequence[npt.NDArray[np.float32] | None],
        activations: Sequence[str],
        *,
        weight_type: str | None = None,
        threads: int | None = None,
        variant: str | None = None,
    ) -> None:
        """weights: [outputs, inputs] each, as torch.nn.Linear has them: float32, float16 or the
        bfloat16 of ml_dtypes.

        weight_type: one of WEIGHT_TYPES, to which float32 weights are rounded (to nearest, ties to
        even), or None, which keeps each as it is. float16 (rounding errors up to 2^-12 of a weight)
        and bfloat16 (2^-9) halve the memory; activations and sums are float32 with all three.
        biases: [outputs] float32, or None. activations: of ACTIVATIONS. Widths are 1 to MAX_WIDTH,
        any number of layers. threads: at most so many (all cores), and fewer where a call is too
        short to share. variant: as native.chosen_variant().
        Raises ValueError that names the layer, what was wanted and what came; ConfigError where
        the kernels cannot run.
        """
        if weight_type is not None and weight_type not in WEIGHT_TYPES:
            raise ValueError(
                f"weight_type is {weight_type}; choose float32, float16, bfloat16, or None to keep "
                "weights as they are"
            )
        self._network = native.dense_network(
            [kept(w, f"weights[{i}]", weight_type) for i, w in enumerate(weights)],
            biases,
            activations,
            threads=threads if threads is not None else hardware.detect().cpus,
            variant=variant,
        )
        self.inputs: Final = weights[0].shape[1]
        self.outputs: Final = weights[-1].shape[0]

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[..., inputs] to [..., outputs], float32, C-contiguous. Releases the GIL.

        Raises ValueError on another dtype, shape or layout. NaN stays in its row.
        """
        return self._network.run(x)


def kept(weights: npt.NDArray[Any], name: str, weight_type: str | None) -> npt.NDArray[Any]:
    """Weights of a layer as the kernels take them: bfloat16 as its bits, uint16.

    Raises ValueError where they are of another type, or too large for `weight_type`. All else that
    is wrong with them the kernels refuse.
    """
    if not isinstance(weights, np.ndarray):
        return weights
    given = weights.dtype.name
    is_plain = weights.ndim == 2 and weights.flags.c_contiguous
    if given == "uint16":
        raise ValueError(f"{name} must be float32, float16 or bfloat16, got uint16")
    if given == "bfloat16" and not is_plain:
        raise ValueError(
            f"{name} must be C-contiguous with 2 dimensions, got bfloat16 {list(weights.shape)}"
        )
    if weight_type not in (None, given) and given in WEIGHT_TYPES:
        if given != "float32":
            raise ValueError(f"{name} is {given}, and only float32 is rounded to {weight_type}")
        if is_plain:
            return _rounded(weights, name, weight_type == "bfloat16")
    return weights.view(np.uint16) if given == "bfloat16" else weights


def _rounded(weights: npt.NDArray[np.float32], name: str, is_bfloat16: bool) -> npt.NDArray[Any]:
    if is_bfloat16:
        bits = weights.view(np.uint32)
        result: npt.NDArray[Any] = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
        result[np.isnan(weights)] = 0x7FC0
        is_whole = (result & 0x7FFF) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            result = weights.astype(np.float16)
        is_whole = ~np.isinf(result)
    lost = ~is_whole & np.isfinite(weights)
    if lost.any():
        kind = "bfloat16" if is_bfloat16 else "float16"
        raise ValueError(
            f"{name} holds {weights[lost][0]:g}, which is too large for {kind}; keep it as float32"
        )
    return result
