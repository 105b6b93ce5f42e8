"""The ops registered with torch.library: schema, fakes, torch.compile, errors; CUDA's half on the
emulator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from servewright_runtime import native, ops
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError
from servewright_runtime.ops import mlp_reference, torch_ops
from support.emulated_module import emulated_module
from support.native_model import TYPES, decode, encode
from support.networks import ACTIVATIONS, random_net
from support.tree import text_of

torch_ops.register()
OPS = torch.ops.servewright
Args = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None], list[str]]


def network(tokens: tuple[int, ...] = (3,), dtype: Any = torch.float32, seed: int = 0) -> Args:
    rng = np.random.default_rng(seed)
    net = random_net(rng, [20, 33, 12, 5], ["gelu", "tanh", "softmax"])
    x = torch.from_numpy(rng.standard_normal((*tokens, 20)).astype(np.float32))
    weights = [torch.from_numpy(w).to(dtype) for w in net.weights]
    biases = [None if b is None else torch.from_numpy(b) for b in net.biases]
    return x, weights, biases, net.activations


def projection(tensor_type: str, tokens: int = 3, norm: bool = False) -> tuple[Any, dict[str, Any]]:
    """Arguments of `project`, packed for the CPU, and x, weights and norm in float64."""
    rng = np.random.default_rng(1)
    rows = encode(rng.standard_normal((37, 64)).astype(np.float32), tensor_type)
    x = torch.from_numpy(rng.standard_normal((tokens, 64)).astype(np.float32))
    packed = torch_ops.pack(torch.from_numpy(rows), tensor_type, 64)
    scale = torch.from_numpy(rng.uniform(0.5, 2, 64).astype(np.float32)) if norm else None
    wide = x.double()
    if scale is not None:
        wide = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    exact = wide @ torch.from_numpy(decode(rows, tensor_type)).double().T
    return (x, packed, tensor_type, 37), {"norm": scale, "exact": exact, "rows": rows}


def test_registering_again_changes_nothing() -> None:
    before = torch.ops.servewright.mlp.default
    torch_ops.register()
    assert torch.ops.servewright.mlp.default is before


def test_mlp_passes_torchs_own_checks() -> None:
    for tokens in ((3,), (), (2, 4), (0,)):
        torch.library.opcheck(OPS.mlp.default, network(tokens))


def test_project_passes_torchs_own_checks() -> None:
    for norm in (False, True):
        args, more = projection("Q4_0", norm=norm)
        torch.library.opcheck(OPS.project.default, args, {"norm": more["norm"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mlp_gives_what_its_reference_gives(dtype: Any) -> None:
    x, weights, biases, activations = network((4, 2), dtype)
    exact = mlp_reference.mlp(x.double(), weights, biases, activations)
    got = OPS.mlp(x, weights, biases, activations)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)
    turned = x.movedim(0, 1).contiguous().movedim(0, 1)
    assert torch.equal(OPS.mlp(turned, weights, biases, activations), got)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tensor_type", TYPES)
def test_project_gives_what_float64_gives(tensor_type: str, norm: bool) -> None:
    args, more = projection(tensor_type, norm=norm)
    got = OPS.project(*args, norm=more["norm"])
    # Activations meet quantised weights as int8: half a step of 1/127 of a block's largest.
    spread = more["exact"].abs().max()
    limit = 0.02 if tensor_type in ("Q8_0", "Q4_0", "Q4_1") else 1e-5
    assert (got - more["exact"]).abs().max() <= limit * spread


def test_a_projected_token_has_the_same_bits_in_any_batch() -> None:
    args, _ = projection("Q8_0", tokens=9)
    whole = OPS.project(*args)
    assert torch.equal(OPS.project(args[0][4:6], *args[1:]), whole[4:6])
    alone = OPS.project(args[0][8], *args[1:])
    assert torch.equal(alone, whole[8])


@pytest.mark.filterwarnings("ignore")  # torch's own compiler warns of what it finds
@pytest.mark.timeout(600)
def test_a_compiled_function_takes_the_ops_whole() -> None:
    x, weights, biases, activations = network((5,))
    (tokens, packed, tensor_type, rows), more = projection("Q4_1", tokens=5, norm=True)

    def step(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        first = torch.ops.servewright.mlp(x * 2, weights, biases, activations)
        second = torch.ops.servewright.project(tokens, packed, tensor_type, rows, norm=more["norm"])
        return torch.cat([first.relu(), second + 1], dim=-1)

    compiled = torch.compile(step, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, tokens), step(x, tokens))
        # Another batch, by the same trace or a new one.
        torch.testing.assert_close(compiled(x[:2], tokens[:2]), step(x[:2], tokens[:2]))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    x, weights, biases, activations = network((4, 2))
    args, _ = projection("Q8_0")
    on_meta = [weight.to("meta") for weight in weights]
    no_biases: list[torch.Tensor | None] = [None] * 3
    assert OPS.mlp(x.to("meta"), on_meta, no_biases, activations).shape == (4, 2, 5)
    assert OPS.mlp(x, weights, biases, activations).shape == (4, 2, 5)
    del args


def test_a_backward_pass_is_refused_with_the_cure() -> None:
    x, weights, biases, activations = network()
    y = OPS.mlp(x.requires_grad_(), weights, biases, activations)
    with pytest.raises(NotImplementedError, match=r"mlp has no backward pass; call it under"):
        y.sum().backward()


def _mlp_with(index: int, value: Any) -> list[Any]:
    args: list[Any] = list(network())
    args[index] = value
    return args


X, WEIGHTS, BIASES, NAMES = network()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (_mlp_with(0, X.double()), "x must be float32, got float64"),
        (_mlp_with(0, X[:, :7]), r"weights\[0\] must be \[1 to 4096, 7\], got \[33, 20\]"),
        (
            _mlp_with(1, [w.double() for w in WEIGHTS]),
            "must be float32, float16 or bfloat16, got float64",
        ),
        (_mlp_with(1, WEIGHTS[:2]), "got 2 weights, 3 biases, 3 activations"),
        (_mlp_with(2, [None, None, X[0]]), r"biases\[2\] must be \[5\], got \[20\]"),
        (_mlp_with(3, ["gelu", "tanh", "swish"]), r"activations\[2\] is swish; choose one of none"),
        (_mlp_with(1, [w.to("meta") for w in WEIGHTS]), "must lie on cpu, as x does, got meta"),
    ],
)
def test_networks_that_do_not_fit_are_refused(args: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        OPS.mlp(*args)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": torch.zeros(2, 65)}, r"x must have a multiple of 32 columns, got \[2, 65\]"),
        ({"x": torch.zeros(2, 64).half()}, "x must be float32, got float16"),
        ({"x": torch.zeros(2, 96)}, "packed must be what pack.. made here of 37 Q8_0 rows of 96"),
        ({"tensor_type": "Q5_0"}, "tensor_type is Q5_0; choose one of F32"),
        ({"rows": 70}, "packed must be what pack.. made here of 70 Q8_0 rows"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"packed": torch.zeros(99, dtype=torch.uint8)}, "packed must be what torch_ops.pack"),
        ({"norm": torch.zeros(63)}, r"norm must be \[64\], got \[63\]"),
    ],
)
def test_projections_that_do_not_fit_are_refused(change: dict[str, Any], told: str) -> None:
    (x, packed, tensor_type, rows), _ = projection("Q8_0")
    args = {"x": x, "packed": packed, "tensor_type": tensor_type, "rows": rows} | change
    with pytest.raises(ValueError, match=told):
        OPS.project(**args)


def test_what_cuda_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(4, 34, dtype=torch.uint8)
    monkeypatch.setattr(availability, "unavailable", lambda device: "No driver was found.")
    with pytest.raises(ConfigError, match="No driver was found"):
        torch_ops.pack(rows, "Q8_0", 32, "cuda")
    with pytest.raises(ConfigError, match="run on cpu and cuda, and not on meta"):
        torch_ops.pack(rows, "Q8_0", 32, "meta")


# ---- CUDA's half, on the emulator: there tensors are the CPU's. ----


def test_mlp_of_cuda_gives_what_its_reference_gives() -> None:
    x, weights, biases, activations = network((2, 3))
    exact = mlp_reference.mlp(x.double(), weights, biases, activations)
    got = torch_ops.Mlp(x, weights, biases, activations).on_cuda(emulated_module(), 0)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)
    empty = torch_ops.Mlp(x[:0], weights, biases, activations).on_cuda(emulated_module(), 0)
    assert empty.shape == (0, 3, 5)


@pytest.mark.parametrize("norm", [False, True])
def test_project_of_cuda_gives_what_float64_gives(norm: bool) -> None:
    kernels = emulated_module()
    for tensor_type in kernels.WEIGHT_TYPES:
        (x, _, _, rows), more = projection(tensor_type, norm=norm)
        packed = torch.empty(kernels.packed_bytes(tensor_type, rows, 64), dtype=torch.uint8)
        kernels.pack(tensor_type, 64, more["rows"], packed.numpy())
        call = torch_ops.Project(x, packed, tensor_type, rows, more["norm"])
        got = call.on_cuda(kernels, 0)
        # Activations are rounded to bf16.
        assert (got - more["exact"]).abs().max() <= 2**-8 * 4 * more["exact"].abs().max()


@pytest.mark.parametrize(
    ("index", "value", "told"),
    [
        (1, [WEIGHTS[0], WEIGHTS[2], WEIGHTS[2]], r"weights\[1\] must be float32 \[any, 33\]"),
        (3, ["gelu", "tanh", "swish"], r"activations\[2\] is swish; choose none"),
        (2, [None, None], "got 3 weights, 2 biases, 3 activations"),
    ],
)
def test_the_cuda_module_refuses_networks_that_do_not_fit(
    index: int, value: Any, told: str
) -> None:
    kernels, args = emulated_module(), _mlp_with(index, value)
    out, workspace = torch.empty(3, 5), torch.zeros(1 << 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=told):
        kernels.mlp(*args, out, workspace, 0)


def test_dense_weights_of_both_devices_are_those_of_the_file() -> None:
    kernels = emulated_module()
    for tensor_type in TYPES:
        rows = encode(
            np.random.default_rng(3).normal(size=(37, 96)).astype(np.float32), tensor_type
        )
        exact = torch.from_numpy(decode(rows, tensor_type))
        args = (torch_ops.pack(torch.from_numpy(rows), tensor_type, 96), tensor_type, 37, 96)
        torch.library.opcheck(OPS.dequantise.default, args)
        got = OPS.dequantise(*args)
        assert (got - exact).abs().max() <= 2**-23 * exact.abs().max()
        assert torch.equal(got, exact.float()) or tensor_type == "Q4_1"
        if tensor_type in kernels.WEIGHT_TYPES:
            packed = torch.empty(kernels.packed_bytes(tensor_type, 37, 96), dtype=torch.uint8)
            kernels.pack(tensor_type, 96, rows, packed.numpy())
            on_cuda = torch_ops.Dequantise(packed, tensor_type, 37, 96).on_cuda(kernels, 0)
            assert torch.equal(on_cuda, exact.float().bfloat16())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cols": 65}, "cols must be a multiple of 32, got 65"),
        ({"cols": 96}, "packed must be what pack.. made here of 37 Q8_0 rows of 96 columns"),
        ({"rows": 70}, "packed must be what pack.. made here of 70 Q8_0 rows"),
        ({"tensor_type": "Q6_K"}, "tensor_type is Q6_K; choose one of F32"),
        ({"packed": torch.zeros(3, 34)}, "packed must be uint8, got float32"),
    ],
)
def test_packed_weights_that_do_not_fit_are_refused(change: dict[str, Any], told: str) -> None:
    (_, packed, tensor_type, rows), _ = projection("Q8_0")
    args = {"packed": packed, "tensor_type": tensor_type, "rows": rows, "cols": 64} | change
    with pytest.raises(ValueError, match=told):
        OPS.dequantise(**args)


@pytest.mark.filterwarnings("ignore")  # torch's own compiler warns of what it finds
@pytest.mark.timeout(600)
def test_the_examples_of_the_page_run() -> None:
    page, names = text_of(Path("docs/ops.md")), dict[str, Any]()
    for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(text, "docs/ops.md", "exec"), names)  # noqa: S102
    for op in torch_ops.OPS:
        assert f"`servewright::{op.NAME}{op.SCHEMA}`" in page


def test_every_activation_has_one_name() -> None:
    assert native.variants()
    assert ops.ACTIVATIONS == ACTIVATIONS
