"""The table of ops, and the one way in which torch is told of an op."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch

from servewright_runtime.ops.torch_ops.attention import PagedAttention, PrefillAttention
from servewright_runtime.ops.torch_ops.call import Call, cuda_kernels, no_backward
from servewright_runtime.ops.torch_ops.networks import Mlp
from servewright_runtime.ops.torch_ops.sampling import Sample
from servewright_runtime.ops.torch_ops.weights import Dequantise, Project

NAMESPACE: Final = "servewright"
OPS: Final[tuple[type[Call], ...]] = (
    Mlp,
    Project,
    Dequantise,
    PagedAttention,
    PrefillAttention,
    Sample,
)


@cache
def register() -> None:
    """Define torch.ops.servewright.*; once a process, further calls do nothing."""
    # torch.library has few types.
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    _kept.append(library)
    for op in OPS:
        _define(library, op)


_kept: list[Any] = []  # a Library's definitions end with it


def _define(library: Any, op: type[Call]) -> None:
    def checked(*args: Any, **more: Any) -> Call:
        call = op(*args, **more)
        call.check()
        return call

    def fake(*args: Any, **more: Any) -> Any:
        return checked(*args, **more).fake()

    def on_cpu(*args: Any, **more: Any) -> Any:
        return checked(*args, **more).on_cpu()

    def on_cuda(*args: Any, **more: Any) -> Any:
        call = checked(*args, **more)
        stream = torch.cuda.current_stream(call.device).cuda_stream
        return call.on_cuda(cuda_kernels(call.device), stream)

    def backward(*_: Any) -> Any:
        raise NotImplementedError(no_backward(op.NAME))

    full = f"{NAMESPACE}::{op.NAME}"
    library.define(op.NAME + op.SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(op.NAME, on_cpu, "CPU")
    library.impl(op.NAME, on_cuda, "CUDA")
    torch.library.register_fake(full, fake, lib=library)
    if "!" not in op.SCHEMA:  # those that write refuse by themselves
        torch.library.register_autograd(full, backward, lib=library)
