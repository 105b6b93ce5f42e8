"""The ops of the kernels registered with torch.library, so that torch.compile takes them whole.

    from servewright_runtime.ops import torch_ops
    torch_ops.register()
    y = torch.ops.servewright.mlp(x, weights, biases, activations)

torch reads no header of ours and we none of its: tensors cross as numpy arrays on the CPU, by
DLPack on CUDA. Registering is a call because it changes torch, and because importing torch takes a
second. The ops are for inference: a backward pass raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from servewright_runtime import hardware, native
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError
from servewright_runtime.ops.mlp import ACTIVATIONS, MAX_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

NAMESPACE = "servewright"
SCHEMAS = {
    "mlp": "(Tensor x, Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor",
    "project": (
        "(Tensor x, Tensor packed, str tensor_type, int rows, "
        "Tensor? norm=None, float eps=1e-5) -> Tensor"
    ),
}
_COUNTER_BYTES = 256  # csrc/common/mlp_ops.h, MLP_COUNTER_BYTES
# A row of `cols` weights in packed form, bytes.
_ROW_BYTES = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
_BLOCK = 32


@cache
def register() -> None:
    """Define torch.ops.servewright.*; once a process, further calls do nothing."""
    import torch

    # torch.library has few types.
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    _kept.append(library)
    on_cpu = {"mlp": _mlp_on_cpu, "project": _project_on_cpu}
    on_cuda = {"mlp": _mlp_on_cuda, "project": _project_on_cuda}
    fakes: dict[str, Any] = {"mlp": _fake_mlp, "project": _fake_project}
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, on_cpu[name], "CPU")
        library.impl(name, on_cuda[name], "CUDA")
        full = f"{NAMESPACE}::{name}"
        torch.library.register_fake(full, fakes[name], lib=library)
        torch.library.register_autograd(full, _refuse_backward(full), lib=library)


_kept: list[Any] = []  # a Library's definitions end with it


def pack(rows: Tensor, tensor_type: str, cols: int, device: str | int = "cpu") -> Tensor:
    """GGUF rows, uint8 [rows, row_bytes] in host memory, as `project` wants them on a device.

    The layout is that of this process: of the CPU's kernels, [groups, group_bytes], or of CUDA's,
    [bytes]. Pack again rather than save or move the result. tensor_type: one of
    native.NATIVE_TYPES; on CUDA without F32 and F16. cols: a multiple of 32.
    Raises ValueError on a shape or type, ConfigError where the device's kernels cannot run.
    """
    import torch

    where = torch.device(device)
    array = rows.contiguous().numpy()
    if where.type == "cpu":
        return torch.from_numpy(native.pack(tensor_type, array, cols))
    kernels = _cuda_kernels(where)
    out = torch.empty(kernels.packed_bytes(tensor_type, len(rows), cols), dtype=torch.uint8)
    kernels.pack(tensor_type, cols, array, out.numpy(), threads=hardware.detect().cpus)
    return out.to(where)


# ---- mlp ----


def _check_mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], names: Sequence[str]
) -> None:
    """Shapes and dtypes alone, so that tracing refuses what running would."""
    import torch

    if not weights or not len(weights) == len(biases) == len(names):
        raise ValueError(
            "servewright::mlp: each layer has weights, a bias or None, and an activation; got "
            f"{len(weights)} weights, {len(biases)} biases, {len(names)} activations"
        )
    _want("mlp", "x", x, x.device, (torch.float32,))
    width = x.shape[-1] if x.dim() else 0
    halves = (torch.float16, torch.bfloat16) if _is_host(x) else ()
    for index, (weight, bias, name) in enumerate(zip(weights, biases, names, strict=True)):
        _want("mlp", f"weights[{index}]", weight, x.device, (torch.float32, *halves))
        rows = weight.shape[0] if weight.dim() else 0
        if weight.dim() != 2 or weight.shape[1] != width or not 1 <= rows <= MAX_WIDTH:
            raise ValueError(
                f"servewright::mlp: weights[{index}] must be [1 to {MAX_WIDTH}, {width}], got "
                f"{list(weight.shape)}"
            )
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"servewright::mlp: x must have 1 to {MAX_WIDTH} columns, got {width}")
        if bias is not None:
            _want("mlp", f"biases[{index}]", bias, x.device, (torch.float32,))
            if bias.dim() != 1 or bias.shape[0] != rows:
                raise ValueError(
                    f"servewright::mlp: biases[{index}] must be [{rows}], got {list(bias.shape)}"
                )
        if name not in ACTIVATIONS:
            raise ValueError(
                f"servewright::mlp: activations[{index}] is {name}; choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        width = rows


def _fake_mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], names: Sequence[str]
) -> Tensor:
    _check_mlp(x, weights, biases, names)
    return x.new_empty((*x.shape[:-1], weights[-1].shape[0]))


def _mlp_on_cpu(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], names: Sequence[str]
) -> Tensor:
    import torch

    _check_mlp(x, weights, biases, names)
    y = native.run_dense(
        _array(x),
        [_array(weight) for weight in weights],
        [None if bias is None else _array(bias) for bias in biases],
        names,
        threads=_threads(),
    )
    return torch.from_numpy(y)


def _mlp_on_cuda(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], names: Sequence[str]
) -> Tensor:
    import torch

    _check_mlp(x, weights, biases, names)
    return run_mlp(_cuda_kernels(x.device), x, weights, biases, names, _stream(torch, x))


def run_mlp(
    kernels: ModuleType,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    names: Sequence[str],
    stream: int,
) -> Tensor:
    """`mlp` on tensors of the device of `kernels`, the module _cuda or its emulated twin."""
    import torch

    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    widths = [x.shape[-1], *(weight.shape[0] for weight in weights)]
    out = torch.empty((len(rows), widths[-1]), dtype=torch.float32, device=x.device)
    if len(rows):
        size = kernels.mlp_workspace(widths, len(rows))
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        workspace[:_COUNTER_BYTES].zero_()
        flat = [weight.detach().contiguous() for weight in weights]
        offsets = [None if bias is None else bias.detach().contiguous() for bias in biases]
        kernels.mlp(rows, flat, offsets, names, out, workspace, stream)
    return out.reshape(*x.shape[:-1], widths[-1])


# ---- project ----


def _check_project(
    x: Tensor, packed: Tensor, tensor_type: str, rows: int, norm: Tensor | None
) -> None:
    import torch

    _want("project", "x", x, x.device, (torch.float32,))
    _want("project", "packed", packed, x.device, (torch.uint8,))
    cols = x.shape[-1] if x.dim() else 0
    if tensor_type not in _ROW_BYTES:
        raise ValueError(
            f"servewright::project: tensor_type is {tensor_type}; choose one of "
            f"{', '.join(_ROW_BYTES)}"
        )
    if cols < _BLOCK or cols % _BLOCK:
        raise ValueError(
            f"servewright::project: x must have a multiple of {_BLOCK} columns, got {list(x.shape)}"
        )
    if rows < 1:
        raise ValueError(f"servewright::project: rows must be at least 1, got {rows}")
    if packed.dim() != (2 if _is_host(x) else 1):
        raise ValueError(
            "servewright::project: packed must be what torch_ops.pack() makes for the device of "
            f"x, {x.device}, got {list(packed.shape)}"
        )
    if norm is not None:
        _want("project", "norm", norm, x.device, (torch.float32,))
        if norm.dim() != 1 or norm.shape[0] != cols:
            raise ValueError(f"servewright::project: norm must be [{cols}], got {list(norm.shape)}")


def _fake_project(
    x: Tensor,
    packed: Tensor,
    tensor_type: str,
    rows: int,
    norm: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    _check_project(x, packed, tensor_type, rows, norm)
    return x.new_empty((*x.shape[:-1], rows))


def _project_on_cpu(
    x: Tensor,
    packed: Tensor,
    tensor_type: str,
    rows: int,
    norm: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    import torch

    _check_project(x, packed, tensor_type, rows, norm)
    y = native.project_packed(
        _array(x.reshape(-1, x.shape[-1])),
        _array(packed),
        tensor_type,
        rows,
        norm=None if norm is None else _array(norm),
        eps=eps,
        threads=_threads(),
    )
    return torch.from_numpy(y).reshape(*x.shape[:-1], rows)


def _project_on_cuda(
    x: Tensor,
    packed: Tensor,
    tensor_type: str,
    rows: int,
    norm: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    import torch

    _check_project(x, packed, tensor_type, rows, norm)
    kernels = _cuda_kernels(x.device)
    return run_project(kernels, x, packed, tensor_type, rows, norm, eps, _stream(torch, x))


def run_project(
    kernels: ModuleType,
    x: Tensor,
    packed: Tensor,
    tensor_type: str,
    rows: int,
    norm: Tensor | None,
    eps: float,
    stream: int,
) -> Tensor:
    """`project` on tensors of the device of `kernels`, the module _cuda or its emulated twin."""
    import torch

    flat = x.detach().reshape(-1, x.shape[-1]).contiguous()
    matrix = kernels.Matrix(tensor_type, rows, x.shape[-1], packed.contiguous())
    if norm is None:
        y = torch.zeros((len(flat), rows), dtype=torch.float32, device=x.device)
        kernels.project_residual(matrix, flat.to(torch.bfloat16), y, stream)
    else:
        y = torch.empty((len(flat), rows), dtype=torch.float32, device=x.device)
        kernels.project_normed(matrix, flat, norm.detach().contiguous(), eps, y, stream)
    return y.reshape(*x.shape[:-1], rows)


# ---- What they share ----


def _want(op: str, name: str, tensor: Tensor, device: Any, dtypes: tuple[Any, ...]) -> None:
    if tensor.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        wanted = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"servewright::{op}: {name} must be {wanted}, got {got}")
    if tensor.device != device:
        raise ValueError(
            f"servewright::{op}: {name} must lie on {device}, as x does, got {tensor.device}"
        )


def _is_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _array(tensor: Tensor) -> Any:
    """Of bfloat16, which numpy lacks, its bits as uint16."""
    import torch

    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.uint16).numpy()
    return plain.numpy()


@cache
def _threads() -> int:
    return hardware.detect().cpus


def _stream(torch: ModuleType, tensor: Tensor) -> int:
    stream: int = torch.cuda.current_stream(tensor.device).cuda_stream
    return stream


def _cuda_kernels(device: Any) -> ModuleType:
    """Raises ConfigError with what is missing."""
    if device.type != "cuda":
        raise ConfigError(f"The kernels run on cpu and cuda, and not on {device.type}.")
    why = availability.unavailable(device.index or 0)
    if why is not None:
        raise ConfigError(why)
    return availability.kernels()


def _refuse_backward(name: str) -> Any:
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"{name} has no backward pass; call it under torch.no_grad(), or train with "
            "torch's own layers."
        )

    return backward
