"""Predicts a decode step of an 8B Llama on an H100 from what the kernels were counted to do.

    python -m hack.roofline --write      writes its tables into docs/kernels.md

A launch takes its boundary, its latencies, and the longer of memory and instruction issue. Each but
the first starts beside the one before it: boundary and latencies pass all the same, but memory
delivers meanwhile what the launch copies before it waits, as far as its first blocks have room for.
Bytes are the floors that tests/unit/cuda/test_ptx_kernels.py holds the kernels to; instructions are
those of the loops in csrc/cuda/budgets.toml, and so are the copies that stand before the wait.
Nothing here was measured on a device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from hack import budgets, nvcc

DOCUMENT = nvcc.ROOT / "docs" / "kernels.md"
_BEGIN = "<!-- python -m hack.roofline --write -->"
_END = "<!-- end -->"

# H100 SXM. Datasheet; a copy measured on one such card; cycles; two thirds of DRAM's latency go by
# before a block's first bytes come, the rest is the end: sums, norm, store.
DATASHEET = 3.35e12
COPY = 3.0e12
PROCESSORS = 132
ISSUES = PROCESSORS * 4 * 1.755e9  # instructions of warps a second
PROJECTION_LATENCY = 0.65e-6
# From the chain of latencies in docs/kernels/attention.md, 1,024 positions, without its first two
# links, of 800 and 1,000 cycles, which stand before the wait; greedy sampling by 15 blocks, from
# docs/kernels/sampling.md; one gather of a row.
ATTENTION_LATENCY = 4.5e-6 - 1.4e-6 - 1800 / 1.755e9
SAMPLING = 3.1e-6
EMBEDDING = 2e-6
# Between two kernels of a CUDA graph, as others report it: at best, and usual.
BOUNDARIES = (1.0e-6, 2.0e-6)

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCAB = 32, 4096, 32, 8, 128, 14336, 128256
CONTEXT = 1024
RANGES = 8  # of the columns, one a warp: csrc/cuda/gemm_plan.cuh
# Bytes of a packed tile of 16 rows and 64 columns (BF16: 32); its columns.
TILES = {"BF16": (1024, 32), "Q8_0": (1088, 64), "Q4_0": (576, 64), "Q4_1": (640, 64)}


@dataclass(frozen=True)
class Launch:
    """One kernel of a token. Seconds beside memory and issue are its latencies."""

    name: str
    times: int
    floor: float  # bytes from memory
    instructions: float
    latency: float
    early: float = 0  # bytes of the floor that its first blocks ask for before they wait
    # Seconds for which memory idles in the launch before, while these are under way already.
    idle: float = 0

    def seconds(self, boundary: float) -> float:
        """Of one launch."""
        lead = boundary + self.latency
        left = self.floor - min(self.early, COPY * (lead + self.idle))
        return lead + max(left / COPY, self.instructions / ISSUES)


def launches(weight: str) -> Iterator[Launch]:
    """A token's, at batch 1."""
    tile, columns = TILES[weight]
    kernels = budgets.read("sm_90")

    def early_bytes(kind: str, row_tiles: int, rows: int) -> float:
        budget = kernels[f"project<{weight}, {kind}, {row_tiles}, 1>"]
        stage = RANGES * row_tiles * tile
        stages = budget.shared // stage
        # Two pieces, or a piece and scales, of each row tile and stage: all before the wait.
        assert budget.waits == 1
        assert budget.early_copies >= (stages - 1) * row_tiles
        blocks = min(rows / 16 / row_tiles, PROCESSORS * budget.blocks)
        return blocks * (stages - 1) * stage

    def project(name: str, kind: str, rows: int, cols: int, times: int, idle: float = 0) -> Launch:
        size = rows / 16 * cols / columns * tile
        # The worse of the tilings that the launcher takes for matrices of this size.
        loops = [kernels[f"project<{weight}, {kind}, {r}, 1>"].loop / (r * tile) for r in (2, 4)]
        early = min(size, *(early_bytes(kind, r, rows) for r in (2, 4)))
        extra = rows * 4 * (2 if kind == "RESIDUAL" else 1) + cols * 8
        instructions = size * max(loops)
        return Launch(name, times, size + extra, instructions, PROJECTION_LATENCY, early, idle)

    cached = 2 * 2 * HEAD_DIM * KV_HEADS * CONTEXT
    wide = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    yield Launch("embedding", 1, HIDDEN * 6, 0, EMBEDDING)
    yield project("norm, Q, K, V", "SCALED", wide, HIDDEN, LAYERS)
    # A block's item is 256 positions, of which its stages take half before the wait.
    yield Launch("attention", LAYERS, cached, 0, ATTENTION_LATENCY, cached / 2)
    yield project("O, residual", "RESIDUAL", HIDDEN, HIDDEN, LAYERS, ATTENTION_LATENCY)
    yield project("norm, gate, up, SwiGLU", "SCALED_GATE_UP", 2 * FEED_FORWARD, HIDDEN, LAYERS)
    yield project("down, residual", "RESIDUAL", HIDDEN, FEED_FORWARD, LAYERS)
    yield project("norm, head", "SCALED", VOCAB, HIDDEN, 1)
    yield Launch("sampling, greedy", 1, VOCAB * 4, 0, SAMPLING)


def table(weight: str) -> str:
    """Markdown: a row a kernel, and the whole token."""
    lines = [
        f"| {weight}: launch | times | MB from memory | before its wait | memory, us | issue, us"
        " | with its latencies and boundary, us |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    every = list(launches(weight))
    for one in every:
        low, high = (one.seconds(boundary) * 1e6 for boundary in BOUNDARIES)
        lines.append(
            f"| {one.name} | {one.times} | {one.floor / 1e6:.2f} | {one.early / 1e6:.1f}"
            f" | {one.floor / COPY * 1e6:.1f} | {one.instructions / ISSUES * 1e6:.1f}"
            f" | {low:.1f}-{high:.1f} |"
        )
    count = sum(one.times for one in every)
    floor = sum(one.times * one.floor for one in every)
    totals = [sum(one.times * one.seconds(boundary) for one in every) for boundary in BOUNDARIES]
    shares = [floor / DATASHEET / total for total in totals]
    lines.append(
        f"| **token** | {count} | {floor / 1e6:,.0f} | | {floor / COPY * 1e6:,.0f} | |"
        f" {totals[0] * 1e6:,.0f}-{totals[1] * 1e6:,.0f}:"
        f" **{shares[0]:.0%}-{shares[1]:.0%}** of 3.35 TB/s |"
    )
    return "\n".join(lines)


def written() -> str:
    """docs/kernels.md with the tables of now."""
    head, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    tail = rest.partition(_END)[2]
    tables = "\n\n".join(table(weight) for weight in ("BF16", "Q4_0"))
    return f"{head}{_BEGIN}\n{tables}\n{_END}{tail}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(written())
    sys.exit(DOCUMENT.read_text() != written())
