"""servewright::mlp: a dense network in one call. ops/mlp_reference.py is the same in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from servewright_runtime import native
from servewright_runtime.ops.mlp import ACTIVATIONS, MAX_WIDTH
from servewright_runtime.ops.torch_ops.call import Call, array, threads

_COUNTER_BYTES = 256  # csrc/common/mlp_ops.h, MLP_COUNTER_BYTES


@dataclass(slots=True)
class Mlp(Call):
    """[..., inputs] to [..., outputs] float32; on the CPU weights may be float16 or bfloat16."""

    x: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    activations: Sequence[str]

    NAME = "mlp"
    SCHEMA = "(Tensor x, Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor"

    def check(self) -> None:
        counts = len(self.weights), len(self.biases), len(self.activations)
        if counts[0] == 0 or len(set(counts)) > 1:
            self.refuse(
                "each layer has weights, a bias or None, and an activation; got "
                "{} weights, {} biases, {} activations".format(*counts)
            )
        self.want("x", self.x, (torch.float32,))
        width = self.x.shape[-1] if self.x.dim() else 0
        halves = (torch.float16, torch.bfloat16) if self.is_on_host else ()
        layers = zip(self.weights, self.biases, self.activations, strict=True)
        for index, (weight, bias, name) in enumerate(layers):
            self.want(f"weights[{index}]", weight, (torch.float32, *halves))
            rows = weight.shape[0] if weight.dim() else 0
            if weight.dim() != 2 or weight.shape[1] != width or not 1 <= rows <= MAX_WIDTH:
                self.refuse(
                    f"weights[{index}] must be [1 to {MAX_WIDTH}, {width}], got "
                    f"{list(weight.shape)}"
                )
            if not 1 <= width <= MAX_WIDTH:
                self.refuse(f"x must have 1 to {MAX_WIDTH} columns, got {width}")
            self.want(f"biases[{index}]", bias, (torch.float32,), (rows,))
            if name not in ACTIVATIONS:
                self.refuse(
                    f"activations[{index}] is {name}; choose one of {', '.join(ACTIVATIONS)}"
                )
            width = rows

    def fake(self) -> Tensor:
        return self.x.new_empty((*self.x.shape[:-1], self.weights[-1].shape[0]))

    def on_cpu(self) -> Tensor:
        y = native.run_dense(
            array(self.x),
            [array(weight) for weight in self.weights],
            [None if bias is None else array(bias) for bias in self.biases],
            self.activations,
            threads=threads(),
        )
        return torch.from_numpy(y)

    def on_cuda(self, kernels: ModuleType, stream: int) -> Tensor:
        x = self.x.detach().reshape(-1, self.x.shape[-1]).contiguous()
        widths = [x.shape[1], *(weight.shape[0] for weight in self.weights)]
        out = x.new_empty((len(x), widths[-1]))
        if len(x):
            size = kernels.mlp_workspace(widths, len(x))
            workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
            workspace[:_COUNTER_BYTES].zero_()
            weights = [weight.detach().contiguous() for weight in self.weights]
            biases = [None if bias is None else bias.detach().contiguous() for bias in self.biases]
            kernels.mlp(x, weights, biases, self.activations, out, workspace, stream)
        return out.reshape(*self.x.shape[:-1], widths[-1])
