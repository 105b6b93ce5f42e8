"""servewright::project and servewright::dequantise: quantised weights, packed for a device."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from servewright_runtime import hardware, native
from servewright_runtime.ops.torch_ops.call import Call, array, cuda_kernels, threads

_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
_BLOCK = 32


def pack(rows: Tensor, tensor_type: str, cols: int, device: str | int = "cpu") -> Tensor:
    """GGUF rows, uint8 [rows, row_bytes] in host memory, as the ops want them on a device.

    The layout is that of this process: of the CPU's kernels, [groups, group_bytes], or of CUDA's,
    [bytes]. Pack again rather than save or move the result. tensor_type: one of
    native.NATIVE_TYPES; on CUDA without F32 and F16. cols: a multiple of 32.
    Raises ValueError on a shape or type, ConfigError where the device's kernels cannot run.
    """
    where = torch.device(device)
    gguf = rows.contiguous().numpy()
    if where.type == "cpu":
        return torch.from_numpy(native.pack(tensor_type, gguf, cols))
    kernels = cuda_kernels(where)
    out = torch.empty(kernels.packed_bytes(tensor_type, len(rows), cols), dtype=torch.uint8)
    kernels.pack(tensor_type, cols, gguf, out.numpy(), threads=hardware.detect().cpus)
    return out.to(where)


class _Packed(Call):
    """What both ops ask of `packed`."""

    packed: Tensor
    tensor_type: str
    rows: int

    def check_packed(self, cols: int, told: str) -> None:
        self.want("packed", self.packed, (torch.uint8,))
        if self.tensor_type not in _TYPES:
            self.refuse(f"tensor_type is {self.tensor_type}; choose one of {', '.join(_TYPES)}")
        if cols < _BLOCK or cols % _BLOCK:
            self.refuse(told)
        if self.rows < 1:
            self.refuse(f"rows must be at least 1, got {self.rows}")
        if not self.is_meta and self.packed.dim() != (2 if self.is_on_host else 1):
            self.refuse(
                "packed must be what torch_ops.pack() makes for the device "
                f"{self.device}, got {list(self.packed.shape)}"
            )


@dataclass(slots=True)
class Project(_Packed):
    """x W^T, float32; with `norm`, x is first scaled to unit RMS and by it."""

    x: Tensor
    packed: Tensor
    tensor_type: str
    rows: int
    norm: Tensor | None = None
    eps: float = 1e-5

    NAME = "project"
    SCHEMA = (
        "(Tensor x, Tensor packed, str tensor_type, int rows, Tensor? norm=None, float eps=1e-5)"
        " -> Tensor"
    )

    def check(self) -> None:
        self.want("x", self.x, (torch.float32,))
        cols = self.x.shape[-1] if self.x.dim() else 0
        self.check_packed(
            cols, f"x must have a multiple of {_BLOCK} columns, got {list(self.x.shape)}"
        )
        self.want("norm", self.norm, (torch.float32,), (cols,))

    def fake(self) -> Tensor:
        return self.x.new_empty((*self.x.shape[:-1], self.rows))

    def on_cpu(self) -> Tensor:
        y = native.project_packed(
            array(self.x.reshape(-1, self.x.shape[-1])),
            array(self.packed),
            self.tensor_type,
            self.rows,
            norm=None if self.norm is None else array(self.norm),
            eps=self.eps,
            threads=threads(),
        )
        return torch.from_numpy(y).reshape(*self.x.shape[:-1], self.rows)

    def on_cuda(self, kernels: ModuleType, stream: int) -> Tensor:
        x = self.x.detach().reshape(-1, self.x.shape[-1]).contiguous()
        matrix = kernels.Matrix(self.tensor_type, self.rows, x.shape[1], self.packed.contiguous())
        if self.norm is None:
            y = x.new_zeros((len(x), self.rows))
            kernels.project_residual(matrix, x.to(torch.bfloat16), y, stream)
        else:
            y = x.new_empty((len(x), self.rows))
            norm = self.norm.detach().contiguous()
            kernels.project_normed(matrix, x, norm, self.eps, y, stream)
        return y.reshape(*self.x.shape[:-1], self.rows)


@dataclass(slots=True)
class Dequantise(_Packed):
    """[rows, cols]: float32 on the CPU, the nearest bf16 on CUDA."""

    packed: Tensor
    tensor_type: str
    rows: int
    cols: int

    NAME = "dequantise"
    SCHEMA = "(Tensor packed, str tensor_type, int rows, int cols) -> Tensor"

    def check(self) -> None:
        self.check_packed(self.cols, f"cols must be a multiple of {_BLOCK}, got {self.cols}")

    def fake(self) -> Tensor:
        is_cpus = self.packed.dim() == 2
        dtype = torch.float32 if is_cpus else torch.bfloat16
        return self.packed.new_empty((self.rows, self.cols), dtype=dtype)

    def on_cpu(self) -> Tensor:
        packed = array(self.packed)
        return torch.from_numpy(
            native.dequantise_packed(packed, self.tensor_type, self.rows, self.cols)
        )

    def on_cuda(self, kernels: ModuleType, stream: int) -> Tensor:
        packed = self.packed.contiguous()
        matrix = kernels.Matrix(self.tensor_type, self.rows, self.cols, packed)
        out = packed.new_empty((self.rows, self.cols), dtype=torch.bfloat16)
        kernels.dequantise(matrix, out, stream)
        return out
