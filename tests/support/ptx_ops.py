"""The ops of csrc/cuda, run from nvcc's PTX by the interpreter: launch geometry and arguments.

The second witness: what the emulator takes and answers, from the compiled kernels, with counts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hack import budgets, nvcc
from hack.ptx import Kernel, Memory, Program, Result, launch
from numpy.typing import NDArray

from support.decode_attention import Decode
from support.projections import BF16, EPS, NAMES, Q4_0, Q4_1, Q8_0, Matrix, left_for_norm
from support.sampling_rows import MAX_TOP_LOGPROBS, Rows

Array = NDArray[Any]
ARCHITECTURE = "sm_80"  # cp.async and mma.sync, which sm_90 compiles to the same PTX
SPLIT = 256  # common/step_ops.h, SPLIT_POSITIONS


@dataclass
class Ran:
    """A launch: its memory, with the traffic of each array, and what else was counted."""

    memory: Memory
    result: Result

    def read(self, name: str) -> Array:
        return self.memory.read(name)

    def loaded(self, *names: str) -> int:
        """Bytes that warps asked for, each request's bytes once."""
        return sum(self.memory.arrays[name].loads.bytes for name in names)

    def fetched(self) -> int:
        """Bytes of all sectors read at least once: what DRAM must deliver at least."""
        return sum(array.fetched for array in self.memory.arrays.values())

    def written(self) -> int:
        return sum(array.written for array in self.memory.arrays.values())

    def excess(self, *names: str) -> float:
        """Sectors of loads and stores over the ideal; of all arrays where none is named."""
        arrays = [self.memory.arrays[name] for name in names] or self.memory.arrays.values()
        traffic = [t for a in arrays for t in (a.loads, a.stores)]
        return sum(t.units for t in traffic) / sum(t.ideal for t in traffic)


@cache
def kernels(source: str) -> dict[str, Kernel]:
    """By the short names of the budget file."""
    compiled = nvcc.compile_kernels(nvcc.KERNELS / source, ARCHITECTURE)
    program = Program(compiled.ptx)
    names = budgets.short_names(list(program.kernels))
    return {names[mangled]: kernel for mangled, kernel in program.kernels.items()}


@cache
def dynamic_bytes(source: str) -> dict[str, int]:
    return budgets.dynamic_shared(list(kernels(source)))


def attention(case: Decode, max_blocks: int = 64, **options: Any) -> Ran:
    """One decode step's attention."""
    memory = Memory()
    at = {name: memory.place(name, values) for name, values in case.arrays.items()}
    tokens, longest = len(case.lengths), max([*case.lengths, 1])
    splits = -(-longest // SPLIT)
    group = case.heads // case.kv_heads
    record = 16 + group * case.head_dim
    partials = memory.place_poisoned(
        "partials", (record * case.kv_heads * tokens * splits,), np.float32
    )
    out = memory.place_poisoned("out", (tokens, case.heads, case.head_dim), np.uint16)
    parameters = struct.pack(
        "<5Qi4x4Q4i?3xii",
        *(at[name] for name in ("qkv", "cosines", "sines", "pool", "page_table")),
        case.arrays["page_table"].shape[1],
        *(at["lengths"], partials, at["tickets"], out),
        *(case.heads, case.kv_heads, case.head_dim, longest),
        *(case.interleaved_rope, max_blocks, tokens),
    )
    source, name = "attention.cu", f"paged_attention<{case.head_dim}>"
    kernel = kernels(source)[name]
    blocks = min(splits * tokens * case.kv_heads, max_blocks)
    return Ran(
        memory,
        launch(
            kernel,
            memory,
            (blocks, 1, 1),
            (kernel.threads, 1, 1),
            parameters,
            dynamic_bytes=dynamic_bytes(source)[name],
            **options,
        ),
    )


def project(
    kind: str,
    w: Matrix,
    x: Array,
    tiling: tuple[int, int],
    *,
    norm: Array | None = None,
    up: Matrix | None = None,
    residual: Array | None = None,
    **options: Any,
) -> Ran:
    """All but RESIDUAL take float32 x and `norm`, of which the scaled kinds are given what is left
    for them; RESIDUAL takes bf16 x and `residual`, and leaves all for `norm` where it is given.
    """
    memory = Memory()
    tokens = len(x)
    weights = memory.place("weights", packed(w))
    second = memory.place("up", packed(up)) if up else 0
    norms = memory.place("norm", norm) if norm is not None else 0
    squares, left = 0, (0, 0, 0)
    if kind.startswith("SCALED"):
        assert norm is not None
        x, sums = left_for_norm(x, norm)
        squares = memory.place("squares", sums)
    activations = memory.place("x", x)
    if residual is not None:
        out = memory.place("out", residual)
        if norm is not None:
            places = (
                memory.place_poisoned("next scaled", (tokens, w.rows), np.uint16),
                memory.place_poisoned("next squares", (tokens, -(-w.rows // 64) * 4), np.float32),
            )
            left = (norms, *places)
    else:
        dtype = np.uint16 if kind.endswith("GATE_UP") else np.float32
        out = memory.place_poisoned("out", (tokens, w.rows), dtype)
    row_tiles, token_tiles = tiling
    name = f"project<{NAMES[w.type]}, {kind}, {row_tiles}, {token_tiles}>"
    source = f"gemm_{NAMES[w.type].lower()}.cu"
    kernel = kernels(source)[name]
    parameters = struct.pack(
        "<2Q3i4x3Q2fQi4x4Q",
        *(weights, second, w.rows, w.cols, tokens),
        *((0, activations, norms) if kind in ("NORMED", "GATE_UP") else (activations, 0, 0)),
        *(EPS, 1 / w.cols, out, w.rows, squares, *left),
    )
    rows = 16 * (row_tiles // 2 if kind.endswith("GATE_UP") else row_tiles)
    grid = (-(-tokens // (8 * token_tiles)), -(-w.rows // rows), 1)
    return Ran(
        memory,
        launch(
            kernel,
            memory,
            grid,
            (kernel.threads, 1, 1),
            parameters,
            dynamic_bytes=dynamic_bytes(source)[name],
            **options,
        ),
    )


def gather(w: Matrix, token_ids: Array, norm: Array, **options: Any) -> Ran:
    """Rows of an embedding, as float32, and what is left for `norm`."""
    memory = Memory()
    parameters = struct.pack(
        "<Q3i4x5Q",
        *(memory.place("weights", packed(w)), w.rows, w.cols, w.type),
        memory.place("token_ids", token_ids),
        memory.place_poisoned("out", (len(token_ids), w.cols), np.float32),
        memory.place("norm", norm),
        memory.place_poisoned("scaled", (len(token_ids), w.cols), np.uint16),
        memory.place_poisoned("squares", (len(token_ids), -(-w.cols // 64) * 4), np.float32),
    )
    kernel = kernels("embedding.cu")[f"gather_rows<{NAMES[w.type]}>"]
    grid = (len(token_ids), 1, 1)
    return Ran(memory, launch(kernel, memory, grid, (kernel.threads, 1, 1), parameters, **options))


def packed(w: Matrix) -> Array:
    """The layout that csrc/cuda/weights.h describes, read from its text and nothing else."""
    tile_cols = 32 if w.type == BF16 else 64
    tiles, columns = -(-w.rows // 16), -(-w.cols // tile_cols)
    padded = np.zeros((16 * tiles, tile_cols * columns))
    padded[: w.rows, : w.cols] = w.quants + 8 * (w.type == Q4_0)
    blocks = tile_cols // 32
    # [row tile, column tile, block, g, t, row of (g, g + 8), column of the lane's 8]
    lanes = padded.reshape(tiles, 2, 8, columns, blocks, 4, 8).transpose(0, 3, 4, 2, 5, 1, 6)
    if w.type == BF16:
        words = lanes.astype(np.float32).view(np.uint32) >> np.uint32(16)
        pairs = words[..., 0::2] | words[..., 1::2] << np.uint32(16)  # [..., row, pair]
        # [step][g][t] pair 2 m of both rows, pair 2 m + 1 of both rows
        steps = pairs.reshape(*pairs.shape[:-1], 2, 2).transpose(0, 1, 2, 6, 3, 4, 7, 5)
        return np.ascontiguousarray(steps).astype(np.uint32).view(np.uint8).reshape(-1)
    pieces: Array
    if w.type == Q8_0:
        order = [0, 2, 1, 3, 4, 6, 5, 7]
        pieces = lanes[..., order].astype(np.int8).view(np.uint8)
    else:
        nibbles = lanes[..., [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint8)
        pieces = nibbles[..., 0::2] | nibbles[..., 1::2] << 4  # [..., row, byte]
    pieces = np.ascontiguousarray(pieces).reshape(tiles, columns, -1)
    scales = np.zeros((16 * tiles, blocks * columns, 1 + (w.type == Q4_1)), np.float16)
    scales[: w.rows, : w.cols // 32, 0] = w.d[:, ::32]
    if w.type == Q4_1:
        scales[: w.rows, : w.cols // 32, 1] = w.m[:, ::32]
    tail: Array = scales.reshape(tiles, 2, 8, columns, blocks, -1).transpose(0, 3, 2, 4, 1, 5)
    tail = np.ascontiguousarray(tail).view(np.uint8).reshape(tiles, columns, -1)
    return np.concatenate([pieces, tail], axis=2).reshape(-1)


_COLUMNS = (
    *("temperature", "top_p", "min_p", "presence", "frequency", "repetition", "top_k", "seed"),
    *("draw", "history_ids", "history_starts", "history_prompts", "bias_ids", "bias_values"),
    *("bias_starts", "logprobs", "top_logprobs"),
)


def sample(rows: Rows, parts: int = 1, **options: Any) -> Ran:
    """One draw a row, by so many blocks each."""
    memory = Memory()
    at = {"logits": memory.place("logits", rows.logits)}
    for name in _COLUMNS:
        values = rows.columns[name]
        at[name] = memory.place(name, values if values.size else np.zeros(1, values.dtype))
    stride = rows.logits.shape[1]
    words = -(-rows.vocab // 128) * 128  # of a row in the workspace
    # Behind what rows have: the bins of each part, and a word a segment.
    bins = rows.count * words * 12
    segments = bins + rows.count * parts * 2048 * 8
    size = segments + rows.count * -(-rows.vocab // 256) * 8
    workspace = memory.place_poisoned("workspace", (size,), np.uint8)
    results = [
        memory.place_poisoned("token_ids", (rows.count,), np.int32),
        memory.place_poisoned("finite", (rows.count,), np.int32),
        memory.place_poisoned("token_logprobs", (rows.count,), np.float32),
        memory.place_poisoned("top_ids", (rows.count, MAX_TOP_LOGPROBS), np.int32),
        memory.place_poisoned("top_values", (rows.count, MAX_TOP_LOGPROBS), np.float32),
    ]
    tickets = memory.place("tickets", np.zeros(rows.count, np.uint32))
    parameters = struct.pack(
        "<Q2i17Qi4x7Q3Q",
        *(at["logits"], stride, rows.vocab),
        *(at[name] for name in _COLUMNS),
        *(MAX_TOP_LOGPROBS, workspace, *results, tickets),
        workspace + rows.count * words * 8,  # the counts
        *(workspace + bins, workspace + segments),
    )
    kernel = kernels("sampling.cu")["sample_rows"]
    threads = 128 if rows.vocab <= 4096 else kernel.threads
    grid, block = (rows.count, parts, 1), (threads, 1, 1)
    ran = Ran(memory, launch(kernel, memory, grid, block, parameters, **options))
    assert not ran.read("tickets").any()
    return ran
