"""Small random Llama models for the native kernels, and the same model in plain numpy.

`NumpyLlama` follows what the kernels promise, in float64: weights as dequantised, activations that
meet quantised weights rounded to int8 by blocks of 32 (but for their outliers), K and V rounded to
float16. What is left between the two is float32 arithmetic and the rare rounding that
falls the other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from servewright_runtime.models.runner import (
    BLOCK_TOKENS,
    LlamaConfig,
    StepBatch,
    StepResult,
)
from servewright_runtime.native import NativeRunner
from support.steps import greedy

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

QUANTISED = ("Q8_0", "Q4_0", "Q4_1")
TYPES = ("F32", "F16", "BF16", *QUANTISED)

SMALL = LlamaConfig(
    vocab_size=77,  # no multiple of any lane count
    hidden_size=96,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=32,
    ffn_size=160,
    norm_eps=1e-5,
    rope_base=10000.0,
    rope_dims=32,
    rope_scale=1.0,
    rope_factors=None,
    context_length=2048,
    tied_head=False,
)


def encode(values: Floats, tensor_type: str) -> Bytes:
    """Rows of float32 as the bytes of a GGUF tensor, [rows, row_bytes]."""
    kind = GGMLQuantizationType[tensor_type]
    return np.ascontiguousarray(quants.quantize(values, kind).view(np.uint8))


def decode(rows: Bytes, tensor_type: str) -> Doubles:
    """The values that GGUF rows stand for, by the gguf package."""
    kind = GGMLQuantizationType[tensor_type]
    return np.asarray(quants.dequantize(rows, kind), np.float64)


def quantise(x: Doubles) -> Doubles:
    """Rows rounded to int8 with one scale for 32 values, as activations are. A value above 4 times
    every other of its block stays as it is, and counts as 0 for the others."""
    blocks = x.reshape(x.shape[0], -1, 32)
    size = np.abs(blocks)
    ordered = np.sort(size, axis=2)
    is_outlier = (size == ordered[:, :, 31:]) & (size > 4 * ordered[:, :, 30:31])
    others = np.where(is_outlier, 0.0, blocks)
    scale = np.abs(others).max(axis=2, keepdims=True) / 127
    steps = np.divide(others, scale, out=np.zeros_like(blocks), where=scale > 0)
    result: Doubles = np.where(is_outlier, blocks, np.round(steps) * scale).reshape(x.shape)
    return result


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of every tensor."""
    hidden, q = config.hidden_size, config.heads * config.head_dim
    kv = config.kv_heads * config.head_dim
    shapes = {"token_embd.weight": (config.vocab_size, hidden), "output_norm.weight": (1, hidden)}
    if not config.tied_head:
        shapes["output.weight"] = (config.vocab_size, hidden)
    for layer in range(config.layers):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (1, hidden),
                "attn_q": (q, hidden),
                "attn_k": (kv, hidden),
                "attn_v": (kv, hidden),
                "attn_output": (hidden, q),
                "ffn_norm": (1, hidden),
                "ffn_gate": (config.ffn_size, hidden),
                "ffn_up": (config.ffn_size, hidden),
                "ffn_down": (hidden, config.ffn_size),
            }.items()
        }
    return shapes


@dataclass(frozen=True)
class Model:
    """A random model: its tensors as GGUF bytes. `types` is by tensor name."""

    config: LlamaConfig
    types: Mapping[str, str]
    tensors: Mapping[str, Bytes] = field(repr=False)

    def runner(
        self, variant: str, *, threads: int = 1, num_blocks: int = 64, seal: bool = True
    ) -> NativeRunner:
        """The model on the kernels of `variant`, loaded in chunks, last rows first."""
        runner = NativeRunner(self.config, num_blocks=num_blocks, threads=threads, variant=variant)
        for name, rows in self.tensors.items():
            for first in reversed(range(0, len(rows), 64)):
                runner.load(name, self.types[name], first, rows[first : first + 64])
        if seal:
            runner.seal()
        return runner


def make_model(
    config: LlamaConfig = SMALL,
    types: str | Mapping[str, str] = "Q4_0",
    *,
    seed: int = 0,
) -> Model:
    """types: of all matrices, or by the tensor's short name ("attn_q"), others Q8_0."""
    rng = np.random.default_rng(seed)
    tensors, kinds = {}, {}
    for name, (rows, cols) in tensor_shapes(config).items():
        if name.endswith("norm.weight"):
            kinds[name] = "F32"
            values = 1 + 0.1 * rng.standard_normal((rows, cols))
        else:
            short = name.split(".")[-2]
            kinds[name] = types if isinstance(types, str) else types.get(short, "Q8_0")
            values = rng.standard_normal((rows, cols)) * 1.5 / np.sqrt(cols)
        tensors[name] = encode(values.astype(np.float32), kinds[name])
    if config.rope_factors is not None:
        kinds["rope_freqs.weight"] = "F32"
        factors = np.array([config.rope_factors], np.float32)
        tensors["rope_freqs.weight"] = factors.view(np.uint8)
    return Model(config, kinds, tensors)


class NumpyLlama:
    """The model in float64, with the kernels' roundings."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.types = model.types
        self.weights = {n: decode(rows, model.types[n]) for n, rows in model.tensors.items()}

    def _project(self, name: str, x: Doubles) -> Doubles:
        if self.types[name] in QUANTISED:
            x = quantise(x)
        return x @ self.weights[name].T

    def _norm(self, name: str, x: Doubles) -> Doubles:
        square = (x**2).mean(axis=1, keepdims=True)
        scaled: Doubles = x / np.sqrt(square + self.config.norm_eps) * self.weights[name][0]
        return scaled

    def _rotate(self, x: Doubles) -> Doubles:
        """x: [tokens, heads, head_dim]; token t is at position t."""
        c = self.config
        pairs = np.arange(c.rope_dims // 2)
        frequency = c.rope_scale * c.rope_base ** (-2.0 * pairs / c.rope_dims)
        if c.rope_factors is not None:
            frequency = frequency / np.array(c.rope_factors, np.float32)
        angle = np.arange(len(x))[:, None, None] * frequency
        out = x.copy()
        even, odd = x[..., 0 : c.rope_dims : 2], x[..., 1 : c.rope_dims : 2]
        out[..., 0 : c.rope_dims : 2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1 : c.rope_dims : 2] = odd * np.cos(angle) + even * np.sin(angle)
        return out

    def _attend(self, prefix: str, x: Doubles) -> Doubles:
        c, n = self.config, len(x)
        q = self._project(prefix + "attn_q.weight", x).reshape(n, c.heads, c.head_dim)
        k = self._project(prefix + "attn_k.weight", x).reshape(n, c.kv_heads, c.head_dim)
        v = self._project(prefix + "attn_v.weight", x).reshape(n, c.kv_heads, c.head_dim)
        q = self._rotate(q)
        k = self._rotate(k).astype(np.float16).astype(np.float64)
        v = v.astype(np.float16).astype(np.float64)
        group = c.heads // c.kv_heads
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(c.head_dim)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        attended: Doubles = np.einsum("hts,shd->thd", weights, v).reshape(n, -1)
        return attended

    def logits(self, tokens: Sequence[int]) -> Doubles:
        """Logits after each token, [tokens, vocab]."""
        x = self.weights["token_embd.weight"][list(tokens)]
        for layer in range(self.config.layers):
            prefix = f"blk.{layer}."
            attended = self._attend(prefix, self._norm(prefix + "attn_norm.weight", x))
            x = x + self._project(prefix + "attn_output.weight", attended)
            inner = self._norm(prefix + "ffn_norm.weight", x)
            gate = self._project(prefix + "ffn_gate.weight", inner)
            up = self._project(prefix + "ffn_up.weight", inner)
            x = x + self._project(prefix + "ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
        head = "token_embd.weight" if self.config.tied_head else "output.weight"
        return self._project(head, self._norm("output_norm.weight", x))


@dataclass(frozen=True)
class Piece:
    """`tokens` of a sequence that a step runs, after `context` tokens that are in the cache."""

    tokens: Sequence[int]
    context: int = 0
    first_block: int = 0  # its blocks are first_block, first_block + 1, ...


def make_batch(pieces: Sequence[Piece], *, width: int | None = None) -> StepBatch:
    """A step over `pieces` that returns the logits after every token."""
    lengths = [len(p.tokens) for p in pieces]
    needed = [-(-(p.context + n) // BLOCK_TOKENS) for p, n in zip(pieces, lengths, strict=True)]
    tables = np.full((len(pieces), width or max(needed, default=0)), -1, np.int32)
    for row, (piece, count) in enumerate(zip(pieces, needed, strict=True)):
        tables[row, :count] = np.arange(piece.first_block, piece.first_block + count)
    total = sum(lengths)
    return StepBatch(
        token_ids=np.array([t for p in pieces for t in p.tokens], np.int32),
        seq_starts=np.cumsum([0, *lengths], dtype=np.int32),
        context_starts=np.array([p.context for p in pieces], np.int32),
        block_tables=tables,
        sample_tokens=np.arange(total, dtype=np.int32),
        sampling=greedy(total),
        return_logits=True,
    )


def with_sampling(batch: StepBatch, **columns: npt.NDArray[np.generic]) -> StepBatch:
    """The batch with columns of its sampling replaced."""
    return replace(batch, sampling=replace(batch.sampling, **columns))  # type: ignore[arg-type]


def logits_of(result: StepResult) -> Floats:
    """The logits of a step that was asked for them."""
    assert result.logits is not None
    return result.logits


def random_tokens(config: LlamaConfig, count: int, seed: int = 1) -> list[int]:
    """Token ids from a seed."""
    ids: list[int] = np.random.default_rng(seed).integers(0, config.vocab_size, count).tolist()
    return ids
