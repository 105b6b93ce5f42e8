"""Every op of the CUDA half against float64, at sizes of real models.

The bounds are those of the emulated tests (support/projections.py), where each rounding to nearest
may be a truncation: tensor cores add so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from support.emulated import Array, from_bfloat16, to_bfloat16
from support.projections import EPS, NAMES, Matrix, normed_products, products, random_matrix, swiglu
from support.sampling_rows import Rows

TRUNCATION = 2.0  # a truncated sum is off by a unit where a rounded one is off by half
PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """Of what is proved; the emulator takes smaller ones."""

    projections: Sequence[tuple[int, int]]  # rows, cols
    tokens: Sequence[int]
    vocabularies: Sequence[int]
    chunks: Sequence[tuple[int, int]]  # first position, tokens


REAL = Sizes(
    projections=((4096, 4096), (1024, 14336), (6144, 4096)),
    tokens=(1, 2, 7, 8, 9, 16, 31, 33, 64, 200),
    vocabularies=(49152, 128256),
    chunks=((0, 1), (0, 333), (1000, 64), (255, 17)),
)


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

    def matrix(self, w: Matrix) -> object:
        """Packed and uploaded."""
        name = NAMES[w.type]
        packed = np.empty(self.kernels.packed_bytes(name, w.rows, w.cols), np.uint8)
        self.kernels.pack(name, w.cols, w.gguf.reshape(w.rows, -1), packed, 4)
        return self.kernels.Matrix(name, w.rows, w.cols, self.put(packed))


def checks(kernels: ModuleType, device: Device, sizes: Sizes = REAL) -> Iterator[Check]:
    """All of them; the device's stream is made current here."""
    ops = Ops(kernels, device)
    with device.entered():
        for type_ in range(len(NAMES)):
            for rows, cols in sizes.projections:
                yield from _projections(ops, type_, rows, cols, sizes.tokens)
        yield from _rows(ops, sizes)
        for vocab in sizes.vocabularies:
            yield _sampling(ops, vocab)
        for head_dim in (64, 128):
            for first, tokens in sizes.chunks:
                yield from _chunk(ops, head_dim, first, tokens)


def _projections(
    ops: Ops, type_: int, rows: int, cols: int, tokens: Sequence[int]
) -> Iterator[Check]:
    random, stream = np.random.default_rng((type_, rows, cols)), ops.device.stream
    k, name = ops.kernels, f"{NAMES[type_]} {rows} x {cols}"
    w, up = random_matrix(random, type_, rows, cols), random_matrix(random, type_, rows, cols)
    packed, packed_up = ops.matrix(w), ops.matrix(up)

    dense = ops.poison(rows, cols, dtype=torch.bfloat16)
    k.dequantise(packed, dense, stream)
    nearest = from_bfloat16(to_bfloat16(w.weights))
    yield Check(f"dequantise {name}", _ratio(ops.get(dense) - nearest, np.zeros_like(nearest)))

    ids = random.integers(0, rows, 50).astype(np.int32)
    x = ops.poison(len(ids), cols)
    k.embed(packed, ops.put(ids), x, stream)
    exact = w.weights[ids]
    # d * q + m in float32 is one rounding.
    yield Check(f"embed {name}", _ratio(ops.get(x) - exact, abs(exact) * 2.0**-23))

    for count in tokens:
        x_, norm = (
            random.standard_normal((count, cols)).astype(np.float32),
            random.uniform(0.5, 1.5, cols).astype(np.float32),
        )
        wanted = normed_products(w, x_, norm)
        out = ops.poison(count, rows)
        k.project_normed(packed, ops.put(x_), ops.put(norm), EPS, out, stream)
        error = ops.get(out) - wanted.values
        yield Check(f"project_normed {name}, {count} tokens", _ratio(error, wanted.errors))

        wanted = swiglu(wanted, normed_products(up, x_, norm))
        inner = ops.poison(count, rows, dtype=torch.bfloat16)
        k.gate_up(packed, packed_up, ops.put(x_), ops.put(norm), EPS, inner, stream)
        error = ops.get(inner) - wanted.values
        yield Check(f"gate_up {name}, {count} tokens", _ratio(error, wanted.errors))

        given = to_bfloat16(x_)
        wanted = products(w, from_bfloat16(given))
        before = random.standard_normal((count, rows)).astype(np.float32)
        sums = ops.put(before)
        k.project_residual(packed, ops.put(given), sums, stream)
        error = ops.get(sums) - (before + wanted.values)
        bound = wanted.errors + 2.0**-23 * (abs(before) + abs(wanted.values))
        yield Check(f"project_residual {name}, {count} tokens", _ratio(error, bound))


def _ratio(error: Array, bound: Array) -> float:
    """The worst error over its bound; infinite where an exact result is not so."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(error == 0, 0.0, abs(error) / (TRUNCATION * bound))
    return float(np.max(ratios))


def _rows(ops: Ops, sizes: Sizes) -> Iterator[Check]:
    """The rows' ops of a prefill."""
    random, stream, k = np.random.default_rng(9), ops.device.stream, ops.kernels
    tokens = max(sizes.tokens)
    hidden = sizes.projections[0][1]
    x, delta = random.standard_normal((2, tokens, hidden)).astype(np.float32)
    norm = random.uniform(0.5, 1.5, hidden).astype(np.float32)
    on_device, out = ops.put(x), ops.poison(tokens, hidden, dtype=torch.bfloat16)
    k.residual_norm(on_device, ops.put(delta), ops.put(norm), EPS, out, stream)
    total = (x + delta).astype(np.float64)
    yield Check("residual_norm, the sum", _ratio(ops.get(on_device) - (x + delta), 0 * total))
    exact = total / np.sqrt((total**2).mean(axis=1, keepdims=True) + EPS) * norm
    # The bf16 of the result is half a unit off, its float32 arithmetic far less.
    yield Check("residual_norm", _ratio(ops.get(out) - exact, abs(exact) * 2.0**-9))

    both = random.standard_normal((tokens, 2 * hidden)).astype(np.float32) * 3
    inner = ops.poison(tokens, hidden, dtype=torch.bfloat16)
    k.silu_mul(ops.put(both), inner, stream)
    gate, up = both[:, :hidden].astype(np.float64), both[:, hidden:]
    exact = gate / (1 + np.exp(-gate)) * up
    yield Check("silu_mul", _ratio(ops.get(inner) - exact, abs(exact) * 2.0**-9 + 2.0**-126))


def _sampling(ops: Ops, vocab: int) -> Check:
    """Draws of each kind must be the reference's: a wrong one counts as infinitely wrong."""
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((8, vocab)) * 3).astype(np.float32)
    histories = [random.integers(0, vocab, 40).tolist() for _ in range(8)]
    rows = Rows(
        logits,
        temperature=[0, 1, 1, 0.7, 1, 1, 1.3, 0],
        top_k=[0, 0, 40, 0, 0, 5, 0, 0],
        top_p=[1, 1, 1, 0.9, 1, 0.8, 1, 1],
        min_p=[0, 0, 0, 0, 0.05, 0, 0, 0],
        presence=0.5,
        frequency=0.2,
        repetition=1.2,
        histories=histories,
        history_prompts=20,
        biases=[[(3, 5.0)], *([[]] * 7)],
    )
    arrays = {
        name: ops.put(column.view(np.int64) if column.dtype == np.uint64 else column)
        for name, column in rows.columns.items()
    }
    drawn = torch.full((8,), -1, dtype=torch.int32, device=ops.device.place)
    results = {"token_ids": drawn, "finite": torch.zeros_like(drawn)}
    results |= {"token_logprobs": ops.poison(8), "top_values": ops.poison(8, 20)}
    results["top_ids"] = torch.zeros((8, 20), dtype=torch.int32, device=ops.device.place)
    k = ops.kernels
    workspace = torch.empty(
        k.sampling_workspace(vocab, 8), dtype=torch.uint8, device=ops.device.place
    )
    sampling = k.Sampling(arrays | results)
    k.sample(ops.put(rows.logits), vocab, sampling, workspace, ops.device.stream)
    is_equal = np.array_equal(ops.get(drawn), rows.by_reference())
    return Check(f"sample of {vocab}", 0.0 if is_equal else np.inf)


def _chunk(ops: Ops, head_dim: int, first: int, tokens: int) -> Iterator[Check]:
    """RoPE, append and attention of a chunk behind `first` positions."""
    random, stream, k = np.random.default_rng(head_dim + first), ops.device.stream, ops.kernels
    heads, kv_heads, length = 6, 2, first + tokens
    pages = random.permutation(-(-length // PAGE) + 3).astype(np.int32)
    shape = (len(pages), 2, kv_heads, PAGE, head_dim)
    pool = to_bfloat16(random.standard_normal(shape))
    angles = np.arange(length)[:, None] * 1e4 ** (-2 * np.arange(head_dim // 2) / head_dim)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    qkv = random.standard_normal((tokens, heads + 2 * kv_heads, head_dim)).astype(np.float32)

    on_device, table = ops.put(pool), ops.put(pages)
    queries = ops.poison(tokens, heads, head_dim, dtype=torch.bfloat16)
    out = ops.poison(tokens, heads * head_dim, dtype=torch.bfloat16)
    tables = (ops.put(cosines), ops.put(sines))
    flat = ops.put(qkv.reshape(tokens, -1))
    k.rope_append(flat, *tables, on_device, table, first, queries, True, stream)
    k.prefill_attention(queries, on_device, table, first, out, stream)

    where = f"head size {head_dim}, {tokens} tokens behind {first}"
    even, odd = qkv[..., 0::2].astype(np.float64), qkv[..., 1::2]
    c, s = cosines[first:, None], sines[first:, None]
    turned = np.stack((even * c - odd * s, even * s + odd * c), -1).reshape(qkv.shape)
    turned[:, heads + kv_heads :] = qkv[:, heads + kv_heads :]
    at = np.arange(length)
    kept = ops.get(on_device)[pages[at // PAGE], :, :, at % PAGE]  # [length, K and V, kv, dim]
    wanted = turned[:, heads:].reshape(tokens, 2, kv_heads, head_dim)
    yield Check(
        f"rope_append, {where}", _ratio(kept[first:] - wanted, abs(wanted) * 2.0**-9 + 1e-6)
    )

    if first:
        old = from_bfloat16(pool)[pages[at // PAGE], :, :, at % PAGE]
        untouched = 0.0 if np.array_equal(kept[:first], old[:first]) else np.inf
        yield Check(f"rope_append leaves the rest, {where}", untouched)

    yield Check(f"prefill_attention, {where}", _attended(ops.get(out), turned, kept, heads))


def _attended(out: Array, turned: Array, kept: Array, heads: int) -> float:
    """flash-attention's rule: our error is at most twice that of plain bf16 arithmetic."""
    tokens, _, head_dim = turned.shape
    group = heads // kept.shape[2]
    k, v = (kept[:, i].astype(np.float64).repeat(group, axis=1) for i in range(2))
    causal = np.tri(tokens, len(kept), len(kept) - tokens, dtype=bool)

    def attend(q: Array, rounded: Callable[[Array], Array]) -> Array:
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True, where=causal, initial=-np.inf))
        weights = np.where(causal, weights, 0)
        total = weights.sum(axis=2, keepdims=True)
        values = np.einsum("hts,shd->thd", rounded(weights) / total, v)
        return np.asarray(rounded(values).reshape(tokens, -1))

    def to_nearest(x: Array) -> Array:
        return from_bfloat16(to_bfloat16(x)).astype(np.float64)

    q = turned[:, :heads]
    exact = attend(q, lambda x: x)
    usual = attend(to_nearest(q), to_nearest)
    return float(abs(out - exact).max() / (2 * abs(usual - exact).max() + 1e-5))


# Named here so that prove.py's JSON and the tests speak of the same list.
OPS: tuple[str, ...] = (
    "dequantise", "embed", "project_normed", "gate_up", "project_residual", "residual_norm",
    "silu_mul", "sample", "rope_append", "prefill_attention",
)  # fmt: skip
