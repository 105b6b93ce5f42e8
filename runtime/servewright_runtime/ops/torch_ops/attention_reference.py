"""What servewright::paged_attention and servewright::prefill_attention compute, in plain torch.

In the dtype of qkv, float64 too; K and V are rounded to the pool's dtype. The pool is written as
the ops write it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from servewright_runtime.ops.torch_ops.pages import PAGE, keys_and_values


def paged_attention(
    qkv: Tensor,
    pool: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    cosines: Tensor,
    sines: Tensor,
    heads: int,
    interleaved: bool = True,
) -> Tensor:
    """A token a sequence; those of length 0 give zeros and touch no page."""
    out = qkv.new_zeros((len(qkv), heads * 2 * cosines.shape[1]))
    for token, length in enumerate(lengths.tolist()):
        if length:
            out[token] = prefill_attention(
                qkv[token : token + 1],
                pool,
                page_table[token],
                length - 1,
                cosines,
                sines,
                heads,
                interleaved,
            )[0]
    return out


def prefill_attention(
    qkv: Tensor,
    pool: Tensor,
    pages: Tensor,
    first_position: int,
    cosines: Tensor,
    sines: Tensor,
    heads: int,
    interleaved: bool = True,
) -> Tensor:
    """Tokens first_position, first_position + 1, ... of one sequence."""
    kv_heads, dim = keys_and_values(pool)[0].shape[1::2]
    x = qkv.reshape(len(qkv), -1, dim)  # [tokens, heads + 2 kv_heads, head_dim]
    q, k, v = x.tensor_split((heads, heads + kv_heads), dim=1)
    positions = torch.arange(first_position, first_position + len(qkv), device=qkv.device)
    angles = cosines[positions, None].to(qkv.dtype), sines[positions, None].to(qkv.dtype)
    append(rotated(k, *angles, interleaved), v, pool, pages, positions)
    return attended(rotated(q, *angles, interleaved), pool, pages, positions)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    """RoPE of heads [..., head_dim] by the angles of their pairs [..., head_dim / 2].

    Pairs are (2 i, 2 i + 1) where interleaved, as in GGUF's Llama, else (i, i + head_dim / 2).
    """
    pairs = x.reshape(*x.shape[:-1], *((-1, 2) if interleaved else (2, -1)))
    first, second = pairs.unbind(-1 if interleaved else -2)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.stack(turned, dim=-1 if interleaved else -2).flatten(-2)


def append(k: Tensor, v: Tensor, pool: Tensor, pages: Tensor, positions: Tensor) -> None:
    """k, v [tokens, kv_heads, head_dim] to where the pool has these positions of a sequence."""
    page, slot = pages[positions // PAGE].long(), positions % PAGE
    for part, new in zip(keys_and_values(pool), (k, v), strict=True):
        part[page, :, slot] = new.to(pool.dtype)


def attended(q: Tensor, pool: Tensor, pages: Tensor, positions: Tensor) -> Tensor:
    """Causal attention of q [tokens, heads, head_dim] at consecutive positions of a sequence."""
    end = int(positions[-1]) + 1 if len(positions) else 0
    used = pages[: -(-end // PAGE)].long()
    k, v = (  # [kv_heads, 1, positions, head_dim]
        part[used].transpose(0, 1).flatten(1, 2)[:, None, :end].to(q.dtype)
        for part in keys_and_values(pool)
    )
    q = q.reshape(len(q), len(k), -1, q.shape[2]).permute(
        1, 2, 0, 3
    )  # [kv_heads, group, tokens, dim]
    scores = q @ k.mT / math.sqrt(q.shape[3])
    is_later = torch.arange(end, device=q.device) > positions[:, None]
    weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
    return (weights @ v).permute(2, 0, 1, 3).flatten(1)
