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
        threads: int | None = None,
        variant: str | None = None,
    ) -> None:
        """weights: [outputs, inputs] each, as torch.nn.Linear has them, float32 or float16.

        float16 is read as it is and halves the memory; all sums are float32. biases: [outputs]
        float32, or None. activations: of ACTIVATIONS. Widths are 1 to MAX_WIDTH, any number of
        layers. threads: at most so many (all cores); a call with less than a million
        multiplications takes one. variant: as native.chosen_variant().
        Raises ValueError that names the layer, what was wanted and what came; ConfigError where
        the kernels cannot run.
        """
        self._network = native.dense_network(
            weights,
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
