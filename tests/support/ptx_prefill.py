"""The ops of prefill, run from nvcc's PTX by the interpreter: launch geometry and arguments."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hack.ptx import Memory, launch
from numpy.typing import NDArray

from support.prefill_chunks import BF16, Sequence
from support.projections import EPS, NAMES, Matrix
from support.ptx_ops import Ran, dynamic_bytes, kernels, packed

Array = NDArray[Any]


def _run(
    source: str,
    name: str,
    memory: Memory,
    grid: tuple[int, int, int],
    parameters: bytes,
    **options: Any,
) -> Ran:
    kernel = kernels(source)[name]
    return Ran(memory, launch(kernel, memory, grid, (kernel.threads, 1, 1), parameters, **options))


def dequantise(w: Matrix) -> Ran:
    memory = Memory()
    tile_cols = 32 if NAMES[w.type] == "BF16" else 64
    column_tiles = -(-w.cols // tile_cols)
    tiles = -(-w.rows // 16) * column_tiles
    parameters = struct.pack(
        "<Q3i4xQ2i",
        *(memory.place("weights", packed(w)), w.rows, w.cols, w.type),
        memory.place_poisoned("out", (w.rows, w.cols), np.uint16),
        *(column_tiles, tiles),
    )
    grid = (-(-tiles // 32), 1, 1)
    return _run("dequantise.cu", f"unpack_tiles<{NAMES[w.type]}>", memory, grid, parameters)


def _prefill_args(sequence: Sequence, first: int, tokens: int, at: dict[str, int]) -> bytes:
    return struct.pack(
        "<Qi4x4Q2i2Q3i?3x",
        *(at.get("qkv", 0), sequence.product, at.get("cosines", 0), at.get("sines", 0)),
        *(at["pool"], at["pages"], first, tokens, at["queries"], at.get("out", 0)),
        *(sequence.heads, sequence.kv_heads, sequence.head_dim, sequence.interleaved_rope),
    )


def rope_append(sequence: Sequence, first: int, tokens: int) -> Ran:
    memory = Memory()
    arrays = {
        "qkv": sequence.products(first, tokens),
        "pool": sequence.pool(first),
        **sequence.tables,
        **sequence.chunk(first, tokens),
    }
    at = {name: memory.place(name, values) for name, values in arrays.items()}
    shape = (tokens, sequence.heads, sequence.head_dim)
    at["queries"] = memory.place_poisoned("queries", shape, np.uint16)
    product = "bfloat16" if sequence.product == BF16 else "float"
    name = f"rotate_and_append<{sequence.head_dim}, {product}>"
    parameters = _prefill_args(sequence, first, tokens, at)
    return _run("prefill.cu", name, memory, (tokens, 1, 1), parameters)


def rows_a_block(row_tiles: int) -> int:
    """Of prefill_attention: a (query, head) each."""
    return 4 * 16 * row_tiles


def prefill_attention(
    sequence: Sequence, first: int, tokens: int, row_tiles: int, **options: Any
) -> Ran:
    memory = Memory()
    arrays = {
        "queries": sequence.queries()[first : first + tokens],
        "pool": sequence.pool(first + tokens),
        **sequence.chunk(first, tokens),
    }
    at = {name: memory.place(name, values, constant=True) for name, values in arrays.items()}
    shape = (tokens, sequence.heads, sequence.head_dim)
    at["out"] = memory.place_poisoned("out", shape, np.uint16)
    name = f"attend_chunk<{sequence.head_dim}, {row_tiles}>"
    rows = tokens * (sequence.heads // sequence.kv_heads)
    grid = (sequence.kv_heads, -(-rows // rows_a_block(row_tiles)), 1)
    options["dynamic_bytes"] = dynamic_bytes("prefill.cu")[name]
    parameters = _prefill_args(sequence, first, tokens, at)
    return _run("prefill.cu", name, memory, grid, parameters, **options)


def residual_norm(x: Array, delta: Array, weight: Array) -> Ran:
    """delta: float32, or bf16 as uint16."""
    memory = Memory()
    is_bf16 = delta.dtype == np.uint16
    parameters = struct.pack(
        "<2Qi4xQf4xQ2i",
        *(memory.place("x", x), memory.place("delta", delta), int(is_bf16)),
        *(memory.place("weight", weight), EPS),
        *(memory.place_poisoned("out", x.shape, np.uint16), *x.shape),
    )
    name = f"add_and_norm<{'bfloat16' if is_bf16 else 'float'}>"
    grid = (len(x), 1, 1)
    return _run("rows.cu", name, memory, grid, parameters, dynamic_bytes=4 * x.shape[1])


def silu_mul(pairs: Array) -> Ran:
    """pairs: [tokens, 2 ffn], gate then up, float32, or bf16 as uint16."""
    memory = Memory()
    tokens, ffn = len(pairs), pairs.shape[1] // 2
    is_bf16 = pairs.dtype == np.uint16
    parameters = struct.pack(
        "<2Qi",
        memory.place("in", pairs),
        memory.place_poisoned("out", (tokens, ffn), np.uint16),
        ffn,
    )
    name = f"silu_rows<{'bfloat16' if is_bf16 else 'float'}>"
    blocks = -(-ffn // (8 if is_bf16 else 4) // 256)
    return _run("rows.cu", name, memory, (tokens, blocks, 1), parameters)
