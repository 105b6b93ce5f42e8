"""A sequence that prefill takes chunk by chunk: its products, its pages, and what must come out.

All that a kernel has no business to read holds NaN: positions behind the chunk, pages of nobody;
table entries behind the chunk's last page are out of range.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from support.decode_attention import NAN, NO_PAGE, PAGE, turned
from support.emulated import Array, Emulated, from_bfloat16, to_bfloat16

FLOAT32, BF16 = range(2)  # common/prefill_ops.h, Element


@dataclass
class Sequence:
    """`length` positions. `product` is the type of the matrix product that makes qkv."""

    length: int
    heads: int
    kv_heads: int
    head_dim: int
    interleaved_rope: bool = True
    product: int = FLOAT32
    scale: float = 1.0  # of q, so of the scores
    spare_pages: int = 3
    seed: int = 1
    qkv: Array = field(init=False)  # [length, heads + 2 kv_heads, head_dim] float32
    pages: Array = field(init=False)
    tables: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng((self.seed, self.head_dim))
        width = (self.length, self.heads + 2 * self.kv_heads, self.head_dim)
        self.qkv = random.normal(size=width).astype(np.float32)
        self.qkv[:, : self.heads] *= np.float32(self.scale)
        if self.product == BF16:
            self.qkv = from_bfloat16(to_bfloat16(self.qkv))
        needed = -(-self.length // PAGE)
        numbers = np.random.default_rng(self.spare_pages).permutation(needed + self.spare_pages)
        self.pages = numbers[:needed].astype(np.int32)
        angles = np.arange(self.length)[:, None] * 10000.0 ** (
            -2 * np.arange(self.head_dim // 2) / self.head_dim
        )
        self.tables = {
            "cosines": np.cos(angles).astype(np.float32),
            "sines": np.sin(angles).astype(np.float32),
        }

    def rotated(self, kind: Any) -> Array:
        """qkv with q and k rotated, computed in `kind`; in float32 to the bit."""
        cosines, sines = self.tables["cosines"], self.tables["sines"]
        x = turned(self.qkv, cosines[:, None], sines[:, None], self.interleaved_rope, kind)
        x[:, self.heads + self.kv_heads :] = self.qkv[:, self.heads + self.kv_heads :]
        return x

    def queries(self) -> Array:
        """bf16 [length, heads, head_dim] as rope_append leaves them, to the bit."""
        scale = np.float32(1.4426950408889634) * np.float32(self.head_dim**-0.5)
        return to_bfloat16(self.rotated(np.float32)[:, : self.heads] * scale)

    def pool(self, end: int) -> Array:
        """The pool when positions before `end` are in it."""
        count = len(self.pages) + self.spare_pages
        pool = np.full((count, 2, self.kv_heads, PAGE, self.head_dim), NAN, np.uint16)
        at = np.arange(end)
        kv = self.rotated(np.float32)[:end, self.heads :]
        pool[self.pages[at // PAGE], :, :, at % PAGE] = to_bfloat16(kv).reshape(
            end, 2, self.kv_heads, self.head_dim
        )
        return pool

    def chunk(self, first: int, tokens: int) -> dict[str, Array]:
        """Its page table: out of range behind its last page."""
        table = self.pages.copy()
        table[-(-(first + tokens) // PAGE) :] = NO_PAGE
        return {"pages": table}

    def scalars(self, first: int, tokens: int, **other: int) -> dict[str, int]:
        return {
            "first_position": first,
            "tokens": tokens,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "interleaved_rope": int(self.interleaved_rope),
            "element": self.product,
            "row_tiles": 0,
        } | other

    def products(self, first: int, tokens: int) -> Array:
        """The chunk's qkv, as the matrix product leaves it."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        qkv = self.qkv[first : first + tokens].reshape(tokens, width)
        return to_bfloat16(qkv) if self.product == BF16 else qkv

    def append(self, emulated: Emulated, first: int, tokens: int, **how: Any) -> dict[str, Array]:
        """pool and queries behind rope_append, all before the chunk being in the pool."""
        arrays = {
            "qkv": self.products(first, tokens),
            "pool": self.pool(first),
            **self.tables,
            **self.chunk(first, tokens),
        }
        return emulated.run("rope_append", arrays, self.scalars(first, tokens), **how)

    def attend(
        self,
        emulated: Emulated,
        first: int,
        tokens: int,
        scalars: dict[str, int] | None = None,
        **how: Any,
    ) -> Array:
        """out of the chunk, bf16 [tokens, heads, head_dim], behind a right rope_append."""
        arrays = {
            "queries": self.queries()[first : first + tokens],
            "pool": self.pool(first + tokens),
            **self.chunk(first, tokens),
        }
        scalars = self.scalars(first, tokens) | (scalars or {})
        return emulated.run("prefill_attention", arrays, scalars, **how)["out"]

    def attended(self, first: int, tokens: int, *, plain: bool = False) -> tuple[Array, Array]:
        """(out [tokens, heads, head_dim], how far the kernel may be from it), in float64 from the
        rounded q, k and v.

        plain: in float32, weights rounded to bf16, as any kernel for tensor cores does it.
        """
        kind = np.float32 if plain else np.float64
        group = self.heads // self.kv_heads
        q: Array = from_bfloat16(self.queries()[first : first + tokens]).astype(kind)
        kv = from_bfloat16(to_bfloat16(self.rotated(np.float32)[: first + tokens, self.heads :]))
        k, v = kv.astype(kind).reshape(len(kv), 2, self.kv_heads, -1).transpose(1, 2, 0, 3)
        q = q.reshape(tokens, self.kv_heads, group, -1)
        scores = q @ k.swapaxes(1, 2)
        hidden = np.arange(len(kv)) > first + np.arange(tokens)[:, None]
        scores[np.broadcast_to(hidden[:, None, None], scores.shape)] = -np.inf
        weights = np.exp2(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        if plain:
            weights = from_bfloat16(to_bfloat16(weights)).reshape(weights.shape)
        out = weights @ v / total
        largest = (abs(q) @ abs(k).swapaxes(1, 2)).max(-1, keepdims=True)
        most = abs(v).max((1, 2))[:, None, None]
        margin = (2.0**-8 + 2.0**-14 * (1 + largest) + 2.0**-22 * len(kv)) * most
        shape = (tokens, self.heads, self.head_dim)
        return out.reshape(shape), (margin + 2.0**-7 * abs(out)).reshape(shape)
