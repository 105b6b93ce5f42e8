"""Prefill: many tokens of a few sequences at once, by matrix products on dense weights.

A layer's matrices are laid out as bf16 one after another in one workspace, so a prefill of n tokens
costs the products and, besides, about three times the bytes of the dense weights, whatever n is:
the more tokens a step may have, the less that counts. Up to FUSED_TOKENS tokens the decode step's
own projections read the packed weights once and are the cheaper way.

Rounded to bf16: as in a decode step (docs/kernels/step.md), and on the dense way quantised weights
too. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from servewright_runtime.cuda.passes import Part
from servewright_runtime.cuda.weights import Weights
from servewright_runtime.models.runner import LlamaConfig

# What one read of the packed weights serves in the fused projections; twice as many tokens read
# them twice, which is still less than laying them out.
FUSED_TOKENS = 64


@dataclass(frozen=True)
class _Layer:
    """Matrices by the product that they belong to: rows one behind the other."""

    attention_norm: Tensor
    qkv: Sequence[Any]
    o: Sequence[Any]
    ffn_norm: Tensor
    gate_up: Sequence[Any]
    down: Sequence[Any]


class Prefill:
    """Layers of a model on up to `tokens` tokens, with a workspace of their own."""

    def __init__(
        self,
        kernels: ModuleType,
        device: Device,
        config: LlamaConfig,
        weights: Weights,
        tables: tuple[Tensor, Tensor],
        *,
        tokens: int,
        fused_tokens: int = FUSED_TOKENS,
    ) -> None:
        """tables: cosines and sines, as `kernels.fill_rope` fills them."""
        self._kernels = kernels
        self._device = device
        self._config = config
        self._fused_tokens = fused_tokens
        self._cosines, self._sines = tables
        self._embedding = weights.matrix("token_embd.weight")
        self._layers = [_layer(weights, index) for index in range(config.layers)]
        c, q = config, config.heads * config.head_dim

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device.place)

        half = torch.bfloat16
        self._x = empty(tokens, c.hidden_size)  # the residual stream
        self._delta = empty(tokens, c.hidden_size)  # what a layer's half adds to it
        self._normed = empty(tokens, c.hidden_size, dtype=half)
        # Q, K, V and, later in a layer, gate and up.
        self._wide = empty(tokens * max(_qkv_rows(c), 2 * c.ffn_size))
        self._queries = empty(tokens, c.heads, c.head_dim, dtype=half)
        self._attended = empty(tokens, q, dtype=half)
        self._inner = empty(tokens, c.ffn_size, dtype=half)
        self._dense = empty(_dense_elements(c), dtype=half)

    @staticmethod
    def device_bytes(config: LlamaConfig, tokens: int) -> int:
        """Of the workspace."""
        c, q = config, config.heads * config.head_dim
        wide = max(_qkv_rows(c), 2 * c.ffn_size)
        token = 4 * (2 * c.hidden_size + wide) + 2 * (c.hidden_size + 2 * q + c.ffn_size)
        return token * tokens + 2 * _dense_elements(c)

    def run(self, token_ids: Tensor, parts: Sequence[Part], tables: Tensor, pool: Tensor) -> Tensor:
        """Queue the layers; returns the residual stream behind the last, [tokens, hidden] float32.

        token_ids: int32 [tokens], of all parts in order.  tables: int32, a row a part.  pool: bf16
        [layers, pages, 2, kv_heads, page, head_dim]; K and V of the parts are appended.
        """
        tokens = len(token_ids)
        x = self._x[:tokens]
        self._kernels.embed(self._embedding, token_ids, x, self._device.stream)
        layers = self._fused if tokens <= self._fused_tokens else self._products

        def attend(qkv: Tensor, layer: int) -> Tensor:
            return self._attend(qkv, parts, tables, pool[layer])

        layers(x, attend)
        return x

    def _products(self, x: Tensor, attend: Callable[[Tensor, int], Tensor]) -> None:
        """x += all layers, on dense weights."""
        k, stream, tokens = self._kernels, self._device.stream, len(x)
        eps = self._config.norm_eps
        normed, inner = self._normed[:tokens], self._inner[:tokens]
        delta, added = self._delta[:tokens], None
        for index, layer in enumerate(self._layers):
            k.residual_norm(x, added, layer.attention_norm, eps, normed, stream)
            attended = attend(self._multiply(normed, layer.qkv, self._wide), index)
            self._multiply(attended, layer.o, delta)
            k.residual_norm(x, delta, layer.ffn_norm, eps, normed, stream)
            k.silu_mul(self._multiply(normed, layer.gate_up, self._wide), inner, stream)
            added = self._multiply(inner, layer.down, delta)
        x += delta

    def _fused(self, x: Tensor, attend: Callable[[Tensor, int], Tensor]) -> None:
        """x += all layers, by the projections of the decode step."""
        k, stream, tokens = self._kernels, self._device.stream, len(x)
        eps = self._config.norm_eps
        inner = self._inner[:tokens]
        for index, layer in enumerate(self._layers):
            qkv = self._wide[: tokens * _qkv_rows(self._config)].view(tokens, -1)
            if len(layer.qkv) == 1:
                k.project_normed(layer.qkv[0], x, layer.attention_norm, eps, qkv, stream)
            else:
                self._project_apart(layer, x, qkv)
            k.project_residual(layer.o[0], attend(qkv, index), x, stream)
            k.gate_up(*layer.gate_up, x, layer.ffn_norm, eps, inner, stream)
            k.project_residual(layer.down[0], inner, x, stream)

    def _project_apart(self, layer: _Layer, x: Tensor, qkv: Tensor) -> None:
        """Q, K and V of different types: three launches, each into a buffer of its own."""
        first = 0
        for matrix in layer.qkv:
            out = self._dense.view(torch.float32)[: len(x) * matrix.rows].view(len(x), -1)
            self._kernels.project_normed(
                matrix, x, layer.attention_norm, self._config.norm_eps, out, self._device.stream
            )
            qkv[:, first : first + matrix.rows] = out
            first += matrix.rows

    def _multiply(self, x: Tensor, matrices: Sequence[Any], out: Tensor) -> Tensor:
        """x @ [matrices, one behind the other].T into the beginning of `out`."""
        first, cols = 0, x.shape[1]
        for matrix in matrices:
            size = matrix.rows * cols
            dense = self._dense[first : first + size].view(matrix.rows, cols)
            self._kernels.dequantise(matrix, dense, self._device.stream)
            first += size
        result = out.view(-1)[: len(x) * (first // cols)].view(len(x), -1)
        self._device.multiply(x, self._dense[:first].view(-1, cols), result)
        return result

    def _attend(self, qkv: Tensor, parts: Sequence[Part], tables: Tensor, pool: Tensor) -> Tensor:
        k, stream, first = self._kernels, self._device.stream, 0
        attended = self._attended[: len(qkv)]
        for row, part in enumerate(parts):
            span = slice(first, first + part.tokens)
            queries, pages = self._queries[span], tables[row]
            k.rope_append(
                qkv[span], self._cosines, self._sines, pool, pages, part.position, queries,
                True, stream,
            )  # fmt: skip
            k.prefill_attention(queries, pool, pages, part.position, attended[span], stream)
            first += part.tokens
        return attended


def _layer(weights: Weights, index: int) -> _Layer:
    def name(role: str) -> str:
        return f"blk.{index}.{role}.weight"

    qkv = [name(role) for role in ("attn_q", "attn_k", "attn_v")]
    if len({weights.types[each] for each in qkv}) == 1:
        joined = [weights.matrix(*qkv)]
    else:
        joined = [weights.matrix(each) for each in qkv]
    return _Layer(
        attention_norm=weights.norm(name("attn_norm")),
        qkv=joined,
        o=[weights.matrix(name("attn_output"))],
        ffn_norm=weights.norm(name("ffn_norm")),
        gate_up=[weights.matrix(name("ffn_gate")), weights.matrix(name("ffn_up"))],
        down=[weights.matrix(name("ffn_down"))],
    )


def _qkv_rows(config: LlamaConfig) -> int:
    return (config.heads + 2 * config.kv_heads) * config.head_dim


def _dense_elements(config: LlamaConfig) -> int:
    """Of the largest product's weights."""
    q = config.heads * config.head_dim
    rows = max(_qkv_rows(config), 2 * config.ffn_size, q)
    return max(rows * config.hidden_size, FUSED_TOKENS * 2 * q)
