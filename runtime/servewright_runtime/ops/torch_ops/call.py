"""A call of an op: its arguments, and the four things that torch wants of an op.

A subclass is one op. It is a dataclass whose fields are the arguments in the schema's order, so an
op's signature stands twice: there and in the schema.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from servewright_runtime import hardware
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError


class Call(ABC):
    """One call. Its first argument is a tensor, on whose device the op runs."""

    NAME: ClassVar[str]
    SCHEMA: ClassVar[str]

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for shapes, dtypes and devices that the kernels do not take.

        It looks at no value, so that tracing refuses what running would.
        """

    @abstractmethod
    def fake(self) -> Any:
        """Results of the right shape, dtype and device, of any content."""

    @abstractmethod
    def on_cpu(self) -> Any:
        """The results, by _native. Raises ValueError for values out of range."""

    @abstractmethod
    def on_cuda(self, kernels: ModuleType, stream: int) -> Any:
        """The results, by `kernels`: the module _cuda or its emulated twin. Waits for nothing."""

    @property
    def device(self) -> torch.device:
        lead: Tensor = getattr(self, self._lead())
        return lead.device

    @property
    def is_on_host(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(f"servewright::{self.NAME}: {what}")

    def want(
        self,
        name: str,
        tensor: Tensor | None,
        dtypes: Sequence[torch.dtype],
        shape: Sequence[int | str] | None = None,
    ) -> None:
        """Refuse another dtype, device or shape; a word in `shape` stands for any size."""
        if tensor is None:
            return
        if tensor.dtype not in dtypes:
            names = [dtype_name(dtype) for dtype in dtypes]
            wanted = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
            self.refuse(f"{name} must be {wanted}, got {dtype_name(tensor.dtype)}")
        if tensor.device != self.device:
            self.refuse(
                f"{name} must lie on {self.device}, as {self._lead()} does, got {tensor.device}"
            )
        if shape is not None and not (
            tensor.dim() == len(shape)
            and all(
                isinstance(wanted, str) or wanted == size
                for wanted, size in zip(shape, tensor.shape, strict=True)
            )
        ):
            wanted = ", ".join(map(str, shape))
            self.refuse(f"{name} must be [{wanted}], got {list(tensor.shape)}")

    def refuse_gradients(self, *tensors: Tensor) -> None:
        """Of an op that writes its argument, for which torch knows no backward pass to refuse."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise NotImplementedError(no_backward(self.NAME))

    @classmethod
    def _lead(cls) -> str:
        return fields(cls)[0].name  # type: ignore[arg-type]


def no_backward(name: str) -> str:
    return (
        f"servewright::{name} has no backward pass; call it under torch.no_grad(), or train with "
        "torch's own layers."
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array(tensor: Tensor) -> Any:
    """The tensor in numpy, C-contiguous; of bfloat16, which numpy lacks, its bits as uint16."""
    plain = tensor.detach().contiguous()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


@cache
def threads() -> int:
    return hardware.detect().cpus


def cuda_kernels(device: torch.device) -> ModuleType:
    """Raises ConfigError with what is missing."""
    if device.type != "cuda":
        raise ConfigError(f"The kernels run on cpu and cuda, and not on {device.type}.")
    why = availability.unavailable(device.index or 0)
    if why is not None:
        raise ConfigError(why)
    return availability.kernels()
