"""A decode step's attention as data: a KV pool in pages, one new token a sequence, and the answer.

All that a kernel has no business to read holds NaN: positions from the new token on, pages of
nobody; table entries behind a sequence's pages are out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from support.emulated import Array, Emulated, from_bfloat16, to_bfloat16

PAGE = 16
NAN = 0xFFFF
NO_PAGE = np.iinfo(np.int32).max // 2


@dataclass
class Ran:
    out: Array  # [tokens, heads, head_dim] bf16
    pool: Array
    tickets: Array


@dataclass
class Decode:
    """One step of `lengths` sequences (the new token counted)."""

    lengths: Sequence[int]
    heads: int
    kv_heads: int
    head_dim: int
    interleaved_rope: bool = True
    rope_dims: int | None = None
    scale: float = 1.0  # of q, so of the scores
    spare_pages: int = 3
    seed: int = 1
    arrays: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        tokens, longest, dim = len(self.lengths), max([*self.lengths, 1]), self.head_dim
        needed = [-(-length // PAGE) for length in self.lengths]
        numbers = random.permutation(sum(needed) + self.spare_pages).astype(np.int32)
        table = np.full((tokens, max([*needed, 1])), NO_PAGE, np.int32)
        pool = np.full((len(numbers), 2, self.kv_heads, PAGE, dim), NAN, np.uint16)
        qkv = np.empty((tokens, self.heads + 2 * self.kv_heads, dim), np.float32)
        taken = 0
        for token, length in enumerate(self.lengths):
            # Of its own, so that a sequence is the same in any batch.
            own = np.random.default_rng((self.seed, token, length))
            qkv[token] = own.normal(size=qkv[token].shape)
            qkv[token, : self.heads] *= self.scale
            table[token, : needed[token]] = numbers[taken : taken + needed[token]]
            taken += needed[token]
            before = np.arange(max(length - 1, 0))
            kv = own.normal(size=(len(before), 2, self.kv_heads, dim))
            pool[table[token, before // PAGE], :, :, before % PAGE] = to_bfloat16(kv)
        pairs = np.arange(dim // 2)
        frequencies = 10000.0 ** (-2 * pairs / dim)
        frequencies[(self.rope_dims or dim) // 2 :] = 0
        angles = np.arange(longest)[:, None] * frequencies
        self.arrays = {
            "qkv": qkv.reshape(tokens, (self.heads + 2 * self.kv_heads) * dim),
            "cosines": np.cos(angles).astype(np.float32),
            "sines": np.sin(angles).astype(np.float32),
            "pool": pool,
            "page_table": table,
            "lengths": np.array(self.lengths, np.int32),
            "tickets": np.zeros(tokens * self.kv_heads, np.uint32),
        }

    def scalars(self, **other: int) -> dict[str, int]:
        """What the op takes beside arrays; `other` overrides."""
        return {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "interleaved_rope": int(self.interleaved_rope),
            "max_length": max([*self.lengths, 1]),
            "max_blocks": 3,
            "launches": 1,
        } | other

    def run(self, emulated: Emulated, *, scalars: dict[str, int] | None = None, **how: Any) -> Ran:
        got = emulated.run("attention", self.arrays, self.scalars(**scalars or {}), **how)
        return Ran(got["out"], got["pool"], got["tickets"])

    def kv(self, pool: Array, token: int) -> Array:
        """The sequence's rows of the pool: [K, V][kv_heads, length, head_dim] bf16."""
        length = self.lengths[token]
        pages = pool[self.arrays["page_table"][token, : -(-length // PAGE)]]
        rows = np.moveaxis(pages, 0, 2).reshape(2, self.kv_heads, -1, self.head_dim)
        return np.asarray(rows[:, :, :length])

    def rotated(self, token: int, kind: Any) -> Array:
        """q, k and v heads of the new token, q and k rotated, computed in `kind`: [heads, dim]."""
        at = max(self.lengths[token] - 1, 0)
        x = self.arrays["qkv"][token].reshape(-1, self.head_dim)
        cosines, sines = self.arrays["cosines"][at], self.arrays["sines"][at]
        out = turned(x, cosines, sines, self.interleaved_rope, kind)
        out[-self.kv_heads :] = x[-self.kv_heads :]
        return out

    def attended(self, pool: Array, kind: Any) -> Array:
        """out, computed in `kind` from the pool's bf16: [tokens, heads, head_dim]."""
        out = np.zeros((len(self.lengths), self.heads, self.head_dim), kind)
        group = self.heads // self.kv_heads
        for token, length in enumerate(self.lengths):
            if length == 0:
                continue
            q = self.rotated(token, kind)[: self.heads].reshape(self.kv_heads, group, -1)
            k, v = from_bfloat16(self.kv(pool, token)).astype(kind)
            scores = q @ k.swapaxes(1, 2) * kind(self.head_dim**-0.5)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            values = weights @ v / weights.sum(-1, keepdims=True)
            out[token] = values.reshape(self.heads, -1)
        return out

    def margin(self, pool: Array) -> Array:
        """What the kernel promises beside the rounding of its result: [tokens, heads]."""
        margin = np.zeros((len(self.lengths), self.heads))
        group = self.heads // self.kv_heads
        for token, length in enumerate(self.lengths):
            if length:
                q = np.abs(self.rotated(token, np.float64)[: self.heads])
                k, v = np.abs(from_bfloat16(self.kv(pool, token)))
                sums = q.reshape(self.kv_heads, group, -1) @ k.swapaxes(1, 2)
                largest = sums.max(-1) * self.head_dim**-0.5
                margin[token] = (2**-14 * (1 + largest) * v.max((1, 2))[:, None]).reshape(-1)
        return margin


def turned(x: Array, cosines: Array, sines: Array, interleaved: bool, kind: Any) -> Array:
    """RoPE of heads [..., dim] float32 by the angles of pairs [..., dim / 2], computed in `kind`.

    In float32 it is what a kernel must give, to the bit: one fused multiply-add behind one product.
    (Its product is exact in float64; the sum there has 29 bits more than the result.)
    """
    dim = x.shape[-1]
    pairs = np.arange(dim // 2)
    if interleaved:
        first, second = 2 * pairs, 2 * pairs + 1
    else:
        first, second = pairs, pairs + dim // 2
    wide, cosines, sines = x.astype(np.float64), cosines.astype(np.float64), sines.astype(kind)
    out = wide.copy()
    out[..., first] = wide[..., first] * cosines - x[..., second].astype(kind) * sines
    out[..., second] = wide[..., second] * cosines + x[..., first].astype(kind) * sines
    return np.asarray(out.astype(kind))
