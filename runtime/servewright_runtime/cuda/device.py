"""A GPU as the runner uses it: memory, one stream, graphs and matrix products, all by torch.

All that only a GPU can do is here; tests put a device of their own in its place, whose memory is
the host's and whose kernels are emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """Where tensors lie and work is queued."""

    name: str  # for people
    place: torch.device
    stream: int  # a cudaStream_t

    def entered(self) -> AbstractContextManager[object]:
        """Makes device and stream those of this thread's torch calls."""

    def free_bytes(self) -> int:
        """Memory that nothing holds, less what libraries need while they run."""

    def pinned(self, size: int) -> Tensor:
        """uint8 [size] of host memory that copies to the device without waiting."""

    def multiply(self, x: Tensor, weights: Tensor, out: Tensor) -> None:
        """out [tokens, rows] float32 = x [tokens, cols] @ weights [rows, cols].T, both bf16."""

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What repeats the launches of `launch`, which has run once before."""

    def wait(self) -> None:
        """Until all that was queued is done."""


class Gpu:
    """CUDA device number `index`. Raises RuntimeError, with CUDA's words, where it cannot start."""

    # Of the whole memory: cuBLAS' workspace, the graphs, torch's rounding of sizes.
    SPARE_SHARE = 20

    def __init__(self, index: int = 0) -> None:
        self.place = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(self.place)
        self._stream = torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]
        self.stream = self._stream.cuda_stream

    def entered(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.place))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def free_bytes(self) -> int:
        # What torch has cached and nobody holds is free too, once it is given back.
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.place)
        return max(0, free - total // self.SPARE_SHARE)

    def pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def multiply(self, x: Tensor, weights: Tensor, out: Tensor) -> None:
        torch.mm(x, weights.T, out_dtype=torch.float32, out=out)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, with models of their own, may go on meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            launch()
        return graph.replay

    def wait(self) -> None:
        self._stream.synchronize()
