"""What a check of an op is, and how one calls the ops of a device."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from servewright_runtime.ops.torch_ops import Call, register
from support.emulated import Array
from support.projections import NAMES, Matrix

TRUNCATION = 2.0  # a truncated sum is off by a unit where a rounded one is off by half


@dataclass(frozen=True)
class Check:
    """One op at one size."""

    name: str
    worst: float  # of errors over their bounds; at most 1 is right

    @property
    def is_right(self) -> bool:
        return bool(self.worst <= 1)  # NaN is not


class Ops:
    """The module's ops on tensors of a device."""

    def __init__(self, kernels: ModuleType, device: Device) -> None:
        self.kernels = kernels
        self.device = device

    def put(self, array: Array) -> Tensor:
        """A copy, for ops work in place; uint16 is the bits of bf16."""
        tensor = torch.from_numpy(np.array(array, order="C"))
        if array.dtype == np.uint16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self.device.place)

    def poison(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What an op must overwrite."""
        return torch.full(shape, torch.nan, dtype=dtype, device=self.device.place)

    def get(self, tensor: Tensor) -> Array:
        self.device.wait()
        return np.asarray(tensor.cpu().float().numpy())

    def packed(self, w: Matrix) -> Tensor:
        """Its bytes as the kernels want them."""
        name = NAMES[w.type]
        packed = np.empty(self.kernels.packed_bytes(name, w.rows, w.cols), np.uint8)
        self.kernels.pack(name, w.cols, w.gguf.reshape(w.rows, -1), packed, 4)
        return self.put(packed)

    def matrix(self, w: Matrix, packed: Tensor) -> object:
        return self.kernels.Matrix(NAMES[w.type], w.rows, w.cols, packed)

    def workspace(self, size: int) -> Tensor:
        """Bytes that are NaN as float32."""
        return torch.full((size,), 0xFF, dtype=torch.uint8, device=self.device.place)

    def by_torch(self, op: type[Call], *args: Any) -> Any:
        """What torch.ops.servewright gives; of the emulator's tensors, what it would call."""
        if self.device.place.type == "cpu":
            return op(*args).on_cuda(self.kernels, self.device.stream)
        register()
        return getattr(torch.ops.servewright, op.NAME)(*args)

    def equal(self, name: str, wanted: Tensor, got: Tensor) -> Check:
        """That two results are one to the bit; NaN is none."""
        is_equal = wanted.shape == got.shape and np.array_equal(self.get(wanted), self.get(got))
        return Check(name, 0.0 if is_equal else np.inf)


def ratio(error: Array, bound: Array) -> float:
    """The worst error over its bound; infinite where an exact result is not so."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(error == 0, 0.0, abs(error) / (TRUNCATION * bound))
    return float(np.max(ratios))
