"""The CUDA runner on the emulator: its tensors lie in the CPU's memory, a launch ends at once.

With SERVEWRIGHT_TEST_DEVICE=cuda it is on a real device instead (tests/gpu/prove.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import pytest
import torch
from torch import Tensor

from servewright_runtime.config import KvPlan
from servewright_runtime.cuda import availability
from servewright_runtime.cuda.device import Gpu
from servewright_runtime.cuda.prefill import FUSED_TOKENS
from servewright_runtime.cuda.runner import CudaRunner
from support.emulated_module import emulated_module
from support.native_model import Model

FREE_BYTES = 1 << 30


IS_EMULATED = os.environ.get("SERVEWRIGHT_TEST_DEVICE", "emulated") != "cuda"


class EmulatedDevice:
    """A `cuda.device.Device`; recording a step is remembering it."""

    name = "emulated"
    place = torch.device("cpu")
    stream = 0

    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()

    def free_bytes(self) -> int:
        return FREE_BYTES

    def pinned(self, size: int) -> Tensor:
        return torch.full((size,), 0xFF, dtype=torch.uint8)

    def multiply(self, x: Tensor, weights: Tensor, out: Tensor) -> None:
        torch.mm(x.float(), weights.float().T, out=out)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch

    def wait(self) -> None:
        pass


class CountedDevice:
    """A device that counts what is asked of it, and may have less memory than it has."""

    def __init__(self, free_bytes: int | None = None) -> None:
        self._inner = EmulatedDevice() if IS_EMULATED else Gpu()
        self.name, self.place, self.stream = (
            self._inner.name,
            self._inner.place,
            self._inner.stream,
        )
        self._free_bytes = free_bytes
        self.waits = 0
        self.buffers = 0  # pinned ones made
        self.products = 0
        self.recorded = 0
        self.replayed = 0

    def entered(self) -> AbstractContextManager[object]:
        return self._inner.entered()

    def free_bytes(self) -> int:
        return self._inner.free_bytes() if self._free_bytes is None else self._free_bytes

    def pinned(self, size: int) -> Tensor:
        self.buffers += 1
        return self._inner.pinned(size)

    def multiply(self, x: Tensor, weights: Tensor, out: Tensor) -> None:
        self.products += 1
        self._inner.multiply(x, weights, out)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        recorded = self._inner.record(launch)

        def replay() -> None:
            self.replayed += 1
            recorded()

        return replay

    def wait(self) -> None:
        self.waits += 1
        self._inner.wait()


def kernels() -> ModuleType:
    """The module that fits the device."""
    module: ModuleType = emulated_module() if IS_EMULATED else availability.kernels()
    return module


def use_test_device(patched: pytest.MonkeyPatch) -> None:
    """Make the device of the tests this machine's GPU, also for a whole replica."""
    if IS_EMULATED:
        patched.setattr(availability, "_cuda", emulated_module())
        patched.setattr(availability, "_torch_problem", lambda: None)
        patched.setattr("servewright_runtime.cuda.device.Gpu", EmulatedDevice)


def make_runner(
    model: Model,
    *,
    num_blocks: int = 64,
    max_length: int = 256,
    max_batch: int = 4,
    step_tokens: int = 48,
    fused_tokens: int = FUSED_TOKENS,
    device: CountedDevice | None = None,
    seal: bool = True,
    on_cache: Callable[[int], object] = lambda limit: None,
) -> CudaRunner:
    """The model loaded in chunks, last rows first. on_cache: told what the KV cache may take."""

    def cache(limit: int) -> KvPlan:
        on_cache(limit)
        return KvPlan(num_blocks, max_length)

    runner = CudaRunner(
        model.config,
        model.types,
        cache=cache,
        longest=max_length,
        max_batch=max_batch,
        step_tokens=step_tokens,
        threads=2,
        kernels=kernels(),
        device=device or CountedDevice(),
        fused_tokens=fused_tokens,
    )
    for name, rows in model.tensors.items():
        for first in reversed(range(0, len(rows), 64)):
            runner.load(name, model.types[name], first, rows[first : first + 64])
    if seal:
        runner.seal()
    return runner
