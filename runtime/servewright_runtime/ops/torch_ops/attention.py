"""servewright::paged_attention and servewright::prefill_attention: RoPE, append to a paged pool and
attention in one op. attention_reference.py is the same in plain torch, pages.py has the pool.

The pool is written: positions of the new tokens get their k and v.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from servewright_runtime import native
from servewright_runtime.ops.torch_ops.call import Call, array, threads
from servewright_runtime.ops.torch_ops.pages import PAGE

_MAX_HEAD_DIM = 256  # csrc/common/kernels.h


class _Attention(Call):
    """What both ops share: their arguments but the pages, and their result."""

    qkv: Tensor
    pool: Tensor
    cosines: Tensor
    sines: Tensor
    heads: int
    interleaved: bool

    def check(self) -> None:
        self.refuse_gradients(self.qkv, self.pool)
        self.want("qkv", self.qkv, (torch.float32,))
        kv_heads, dim = self.check_pool()
        if self.heads < 1 or self.heads % kv_heads:
            self.refuse(f"heads must be a multiple of the pool's {kv_heads}, got {self.heads}")
        width = (self.heads + 2 * kv_heads) * dim
        self.want("qkv", self.qkv, (torch.float32,), ("tokens", width))
        self.want("cosines", self.cosines, (torch.float32,), ("positions", dim // 2))
        self.want("sines", self.sines, (torch.float32,), tuple(self.cosines.shape))

    def check_pool(self) -> tuple[int, int]:
        """KV heads and their dimensions."""
        dtypes = [torch.float16] if self.is_on_host else [torch.bfloat16]
        pool = self.pool
        self.want("pool", pool, [torch.float16, *dtypes] if self.is_meta else dtypes)
        shape = list(pool.shape)
        if pool.dtype == torch.float16:
            kv_heads, dim = (shape[1], shape[3] // PAGE) if len(shape) == 4 else (0, 0)
            fits = dim % 16 == 0 and 16 <= dim <= _MAX_HEAD_DIM
            fits = fits and shape[2:] == [2, PAGE * dim]
        else:
            kv_heads, dim = (shape[2], shape[4]) if len(shape) == 5 else (0, 0)
            fits = dim in (64, 128) and shape[1] == 2 and shape[3] == PAGE
        if not fits or kv_heads < 1 or shape[0] < 1:
            self.refuse(f"pool must be as torch_ops.kv_pool() makes it, got {shape}")
        if not pool.is_contiguous():
            self.refuse("pool must be contiguous, for it is written where it lies")
        return kv_heads, dim

    def fake(self) -> Tensor:
        return self.qkv.new_empty((self.qkv.shape[0], self.heads * self.head_dim))

    @property
    def kv_heads(self) -> int:
        return self.pool.shape[1 if self.pool.dtype == torch.float16 else 2]

    @property
    def head_dim(self) -> int:
        return 2 * self.cosines.shape[1]

    def attended(self, page_table: Tensor, lengths: Tensor) -> Tensor:
        y = native.attend(
            array(self.qkv),
            self.pool.detach().numpy(),
            array(page_table),
            array(lengths),
            array(self.cosines),
            array(self.sines),
            self.heads,
            interleaved=self.interleaved,
            threads=threads(),
        )
        return torch.from_numpy(y)


@dataclass(slots=True)
class PagedAttention(_Attention):
    """One new token a sequence: [tokens, heads * head_dim] float32."""

    qkv: Tensor
    pool: Tensor
    page_table: Tensor
    lengths: Tensor
    cosines: Tensor
    sines: Tensor
    heads: int
    interleaved: bool = True

    NAME = "paged_attention"
    SCHEMA = (
        "(Tensor qkv, Tensor(a!) pool, Tensor page_table, Tensor lengths, Tensor cosines, "
        "Tensor sines, int heads, bool interleaved=True) -> Tensor"
    )

    def check(self) -> None:
        _Attention.check(self)
        tokens = self.qkv.shape[0]
        self.want("page_table", self.page_table, (torch.int32,), (tokens, "pages"))
        self.want("lengths", self.lengths, (torch.int32,), (tokens,))
        if self.pool.dtype == torch.bfloat16 and self.heads > 8 * self.kv_heads:
            self.refuse(f"heads must be at most 8 a KV head on CUDA, got {self.heads}")

    def on_cpu(self) -> Tensor:
        return self.attended(self.page_table, self.lengths)

    def on_cuda(self, kernels: ModuleType, stream: int) -> Tensor:
        qkv, table = self.qkv.detach().contiguous(), self.page_table.contiguous()
        lengths = self.lengths.contiguous()
        cosines, sines = self.cosines.contiguous(), self.sines.contiguous()
        heads, kv_heads, dim = self.heads, self.kv_heads, self.head_dim
        out = qkv.new_empty((qkv.shape[0], heads, dim), dtype=torch.bfloat16)
        longest = min(PAGE * table.shape[1], cosines.shape[0])
        if qkv.shape[0] == 0 or longest == 0:
            return out.zero_().float().flatten(1)
        slots = min(qkv.shape[0], kernels.MAX_SLOTS)
        size = kernels.attention_workspace(heads, kv_heads, dim, longest, slots)
        partials = torch.empty(size, dtype=torch.uint8, device=qkv.device)
        tickets = lengths.new_zeros(slots * kv_heads)
        for first in range(0, qkv.shape[0], slots):
            some = slice(first, first + slots)
            kernels.attention(
                qkv[some],
                cosines,
                sines,
                self.pool.detach(),
                table[some],
                lengths[some],
                tickets,
                partials,
                out[some],
                longest,
                self.interleaved,
                stream,
            )
        return out.float().flatten(1)


@dataclass(slots=True)
class PrefillAttention(_Attention):
    """Consecutive tokens of one sequence: [tokens, heads * head_dim] float32."""

    qkv: Tensor
    pool: Tensor
    pages: Tensor
    first_position: int
    cosines: Tensor
    sines: Tensor
    heads: int
    interleaved: bool = True

    NAME = "prefill_attention"
    SCHEMA = (
        "(Tensor qkv, Tensor(a!) pool, Tensor pages, SymInt first_position, Tensor cosines, "
        "Tensor sines, int heads, bool interleaved=True) -> Tensor"
    )

    def check(self) -> None:
        _Attention.check(self)
        self.want("pages", self.pages, (torch.int32,), ("pages",))
        if self.first_position < 0:
            self.refuse(f"first_position must be at least 0, got {self.first_position}")
        end = self.first_position + self.qkv.shape[0]
        if end > PAGE * self.pages.shape[0]:
            self.refuse(f"pages must hold {end} positions, {PAGE} each, got {self.pages.shape[0]}")
        if end > self.cosines.shape[0]:
            self.refuse(f"cosines must have {end} positions, got {self.cosines.shape[0]}")

    def on_cpu(self) -> Tensor:
        if self.qkv.shape[0] == 0:
            return self.fake()
        length = torch.tensor([self.first_position + self.qkv.shape[0]], dtype=torch.int32)
        return self.attended(self.pages[None], length)

    def on_cuda(self, kernels: ModuleType, stream: int) -> Tensor:
        if self.qkv.shape[0] == 0:
            return self.fake()
        qkv, pool, pages = self.qkv.detach().contiguous(), self.pool.detach(), self.pages
        half = torch.bfloat16
        queries = qkv.new_empty((qkv.shape[0], self.heads, self.head_dim), dtype=half)
        out = qkv.new_empty((qkv.shape[0], self.heads * self.head_dim), dtype=half)
        pages, first = pages.contiguous(), self.first_position
        tables = self.cosines.contiguous(), self.sines.contiguous()
        kernels.rope_append(qkv, *tables, pool, pages, first, queries, self.interleaved, stream)
        kernels.prefill_attention(queries, pool, pages, first, out, stream)
        return out.float()
