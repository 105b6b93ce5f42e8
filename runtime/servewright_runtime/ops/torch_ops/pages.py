"""A layer's KV cache in pages, as the attention ops read and write it.

The dtype tells the layout, which is that of the kernels of a device:

    CPU   float16   [pages, kv_heads, 2, 16 * head_dim]: K [head_dim][16], then V [16][head_dim]
    CUDA  bfloat16  [pages, 2, kv_heads, 16, head_dim]
"""

from __future__ import annotations

import torch
from torch import Tensor

PAGE = 16  # positions


def kv_pool(pages: int, kv_heads: int, head_dim: int, device: str | int = "cpu") -> Tensor:
    """A pool of zeros for a layer. head_dim: a multiple of 16 up to 256; on CUDA 64 or 128."""
    where = torch.device(device)
    if where.type == "cpu":
        shape: tuple[int, ...] = (pages, kv_heads, 2, PAGE * head_dim)
        return torch.zeros(shape, dtype=torch.float16)
    shape = (pages, 2, kv_heads, PAGE, head_dim)
    return torch.zeros(shape, dtype=torch.bfloat16, device=where)


def keys_and_values(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Views of either layout, [pages, kv_heads, 16, head_dim] each: to read, and to write."""
    if pool.dtype == torch.bfloat16:
        return pool[:, 0], pool[:, 1]
    k, v = pool.unbind(2)
    return k.view(*k.shape[:2], -1, PAGE).mT, v.view(*v.shape[:2], PAGE, -1)
