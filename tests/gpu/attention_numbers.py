"""Attention of the CUDA half against float64: of decode steps, and of prefilled chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from gpu.checks import Check, Ops, ratio
from servewright_runtime.ops.torch_ops import PagedAttention, PrefillAttention
from support.decode_attention import PAGE, Decode
from support.emulated import Array, from_bfloat16, to_bfloat16


def decode(
    ops: Ops, head_dim: int, heads: int, kv_heads: int, lengths: Sequence[int]
) -> Iterator[Check]:
    """RoPE, append and attention of a new token a sequence; its lengths count that token.

    Above 256 positions a sequence is several blocks', whose results the last of them merges. Pages
    of nobody, and positions from the new token on, are NaN. It runs twice: every bit is the same,
    and tickets are left 0.
    """
    stream, k, longest = ops.device.stream, ops.kernels, max(lengths)
    case = Decode(lengths, heads, kv_heads, head_dim)
    given = {name: ops.put(array) for name, array in case.arrays.items() if name != "tickets"}
    tickets = torch.zeros(len(lengths) * kv_heads, dtype=torch.int32, device=ops.device.place)
    partials = ops.workspace(
        k.attention_workspace(heads, kv_heads, head_dim, longest, len(lengths))
    )
    names = ("qkv", "cosines", "sines", "pool", "page_table", "lengths")
    out, again = (ops.poison(len(lengths), heads, head_dim, dtype=torch.bfloat16) for _ in range(2))
    for to in (out, again):
        k.attention(*(given[name] for name in names), tickets, partials, to, longest, True, stream)

    ops.device.wait()
    before, after = case.arrays["pool"], _bits(given["pool"])
    where = f"head size {head_dim}, {heads} heads on {kv_heads}, {_told(lengths)}"
    yield Check(f"attention, {where}", _decoded(ops.get(out), case, after))
    same = ops.equal(f"attention again, {where}", out, again)
    yield same if not tickets.any() else Check(same.name, np.inf)
    yield from _appended(ops, case, given["pool"], before, where)

    other = ops.put(before)
    order = (
        given["qkv"],
        other,
        *(given[n] for n in ("page_table", "lengths", "cosines", "sines")),
    )
    by_torch = ops.by_torch(PagedAttention, *order, heads)
    same = ops.equal(f"torch.paged_attention, {where}", out.float().flatten(1), by_torch)
    yield same if np.array_equal(_bits(other), after) else Check(same.name, np.inf)


def _told(lengths: Sequence[int]) -> str:
    return f"lengths {', '.join(map(str, lengths[:8]))}{' ...' * (len(lengths) > 8)}"


def _bits(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.cpu().view(torch.int16).numpy().view(np.uint16))


def _decoded(out: Array, case: Decode, pool: Array) -> float:
    """flash-attention's rule, of each sequence, and the kernel's own bound."""
    exact = case.attended(pool, np.float64)
    plain = from_bfloat16(to_bfloat16(case.attended(pool, np.float32)))
    error, usual = (abs(each - exact).max(axis=(1, 2)) for each in (out, plain))
    own = 2.0**-8 * abs(exact) + case.margin(pool)[:, :, None] + 1e-30  # an empty slot's are 0
    return float(np.max([np.max(error / (2 * usual + 1e-5)), ratio(out - exact, own)]))


def _appended(
    ops: Ops, case: Decode, pool: torch.Tensor, before: Array, where: str
) -> Iterator[Check]:
    """Each sequence's new row holds its k and v; nothing else is written."""
    after, wanted, worst = ops.get(pool), from_bfloat16(before), [0.0]
    for token, length in enumerate(case.lengths):
        if length == 0:
            continue
        page = case.arrays["page_table"][token, (length - 1) // PAGE]
        row = after[page, :, :, (length - 1) % PAGE]
        kv = case.rotated(token, np.float64)[case.heads :].reshape(row.shape)
        worst.append(ratio(row - kv, abs(kv) * 2.0**-9 + 1e-6))
        wanted[page, :, :, (length - 1) % PAGE] = row
    yield Check(f"attention appends, {where}", float(np.max(worst)))
    is_same = np.array_equal(after, wanted, equal_nan=True)
    if np.isfinite(from_bfloat16(before)).any():
        yield Check(f"attention leaves the rest, {where}", 0.0 if is_same else np.inf)


def chunk(ops: Ops, head_dim: int, first: int, tokens: int) -> Iterator[Check]:
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
    yield Check(f"rope_append, {where}", ratio(kept[first:] - wanted, abs(wanted) * 2.0**-9 + 1e-6))

    if first:
        old = from_bfloat16(pool)[pages[at // PAGE], :, :, at % PAGE]
        untouched = 0.0 if np.array_equal(kept[:first], old[:first]) else np.inf
        yield Check(f"rope_append leaves the rest, {where}", untouched)

    yield Check(f"prefill_attention, {where}", _attended(ops.get(out), turned, kept, heads))
    other = ops.put(pool)
    by_torch = ops.by_torch(PrefillAttention, flat, other, table, first, *tables, heads)
    yield ops.equal(f"torch.prefill_attention, {where}", out.float(), by_torch)
    yield ops.equal(f"torch.prefill_attention appends, {where}", on_device, other)


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
