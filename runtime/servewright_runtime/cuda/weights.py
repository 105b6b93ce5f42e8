"""A model's weights on the device: packed on the host a piece at a time, then uploaded.

What the host holds of them at once are two pieces, as large as those that `load` is given: one
travels while the next is packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from servewright_runtime.models.llama import tensor_shapes
from servewright_runtime.models.runner import LlamaConfig

# On the host alone, as the tables of RoPE.
_NOT_UPLOADED = "rope_freqs.weight"


class Weights:
    """`data`: uint8, all tensors as `kernels.layout` places them."""

    def __init__(
        self,
        kernels: ModuleType,
        device: Device,
        config: LlamaConfig,
        types: Mapping[str, str],
        threads: int,
    ) -> None:
        self.types = types
        self._kernels = kernels
        self._device = device
        self._threads = threads
        self._shapes = dict(tensor_shapes(config))
        size, self._places = kernels.layout(config, types)
        self.data = torch.empty(size, dtype=torch.uint8, device=device.place)
        self.loaded_bytes = 0
        # A flag for each tile of rows that came; vectors are one.
        self._came = {
            name: np.zeros(self._tiles(self._rows_cols(name)[0]), np.bool_) for name in self._shapes
        }
        self._pieces = [device.pinned(0), device.pinned(0)]

    def load(
        self, name: str, tensor_type: str, first_row: int, rows: npt.NDArray[np.uint8]
    ) -> None:
        """Pack rows and queue their upload. See `CudaRunner.load`."""
        if name not in self._shapes:
            raise ValueError(f"the model has no tensor {name}")
        if tensor_type != self.types[name]:
            raise ValueError(f"{name}: must be {self.types[name]}, got {tensor_type}")
        count, cols = self._rows_cols(name)
        is_matrix = len(self._shapes[name]) > 1
        row_bytes = self._kernels.row_bytes(tensor_type, cols) if is_matrix else 4 * cols
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != row_bytes:
            raise ValueError(
                f"{name}: rows must be uint8 [rows, {row_bytes}], got {rows.dtype} {rows.shape}"
            )
        end, tile = first_row + len(rows), self._kernels.PACK_ROWS
        if first_row < 0 or end > count or first_row % tile or (end % tile and end != count):
            raise ValueError(
                f"{name}: must be rows of 0 to {count} in multiples of {tile} but for the last, "
                f"got {first_row} to {end}"
            )
        came = self._came[name][first_row // tile : self._tiles(end)]
        if came.any():
            raise ValueError(f"{name}: rows of {first_row} to {end} have been loaded before")
        if name != _NOT_UPLOADED:
            self._upload(name, first_row, rows if is_matrix else rows.reshape(1, -1))
        came[:] = True

    def seal(self) -> None:
        """Wait for the last upload. Raises ValueError that names a tensor with rows missing."""
        for name, came in self._came.items():
            if not came.all():
                raise ValueError(f"{name}: {(~came).sum()} tiles of rows have not been loaded")
        self._device.wait()
        self._pieces.clear()

    def matrix(self, *names: str) -> object:
        """A Matrix of tensors of one type that lie one behind the other."""
        offset = self._places[names[0]][0]
        sizes = [self._places[name][1] for name in names]
        for before, name, size in zip(names, names[1:], sizes, strict=False):
            assert self._places[name][0] == self._places[before][0] + size, (before, name)
        rows = sum(self._rows_cols(name)[0] for name in names)
        cols = self._rows_cols(names[0])[1]
        data = self.data[offset : offset + sum(sizes)]
        return self._kernels.Matrix(self.types[names[0]], rows, cols, data)

    def norm(self, name: str) -> Tensor:
        """[cols] float32."""
        offset, size = self._places[name]
        return self.data[offset : offset + size].view(torch.float32)

    def _upload(self, name: str, first_row: int, rows: npt.NDArray[np.uint8]) -> None:
        tensor_type, offset = self.types[name], self._places[name][0]
        is_matrix = len(self._shapes[name]) > 1
        cols = self._rows_cols(name)[1]
        size = self._kernels.packed_bytes(tensor_type, len(rows), cols) if is_matrix else rows.size
        if is_matrix and first_row:
            offset += self._kernels.packed_bytes(tensor_type, first_row, cols)
        # Both pieces in turn: the one taken now was queued before the last wait.
        self._pieces.reverse()
        if len(self._pieces[0]) < size:
            self._pieces[0] = self._device.pinned(size)
        piece = self._pieces[0][:size]
        packed = piece.numpy()
        if is_matrix:
            self._kernels.pack(tensor_type, cols, rows, packed, self._threads)
        else:
            packed[:] = rows[0]
        with self._device.entered():
            self._device.wait()
            self.data[offset : offset + size].copy_(piece, non_blocking=True)
        self.loaded_bytes += size

    def _rows_cols(self, name: str) -> tuple[int, int]:
        shape = self._shapes[name]
        return (1, shape[0]) if len(shape) == 1 else (shape[1], shape[0])

    def _tiles(self, rows: int) -> int:
        return int(-(-rows // self._kernels.PACK_ROWS))
