"""Decode steps of the CUDA program on the emulator: who sits in which slot, step by step.

All that the step has no business to read is NaN or out of range: positions from the new token on,
pages of nobody, table entries behind a sequence's pages, the whole row of an empty slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import LlamaConfig, SamplingBatch
from support.emulated import Array, Emulated, to_bfloat16
from support.steps import greedy

PAGE = 16
NAN = 0xFFFF
NOTHING = np.iinfo(np.int32).min
NO_PAGE = np.iinfo(np.int32).max // 2
WEIGHTS = ("BF16", "Q8_0", "Q4_0", "Q4_1")  # common/step_ops.h, Weight
TOP_WIDTH = 5
PLAIN = Emulated()

# A slot's sequence and the position of its new token; None: empty.
Slot = tuple[int, int] | None


@dataclass(frozen=True)
class Steps:
    """[steps, slots, ...]; rows of empty slots mean nothing."""

    logits: Array
    token_ids: Array
    finite: Array
    launches: Array  # [steps]
    tickets: Array  # [steps, bytes], after each step


def decode(
    config: LlamaConfig,
    types: Mapping[str, str],
    tensors: Mapping[str, Array],
    sequences: Sequence[npt.NDArray[np.integer]],
    steps: Sequence[Sequence[Slot]],
    *,
    prefixes: Sequence[Sequence[Array]] | None = None,
    sampling: Sequence[SamplingBatch] | None = None,
    feeds_itself: bool = False,
    page_seed: int = 1,
    tiling: tuple[int, int] = (0, 0),
    processors: int = 2,
    max_length: int | None = None,
    emulated: Any = PLAIN,
    **how: Any,
) -> Steps:
    """Runs `steps`, a row of slots each, over `sequences` of token ids.

    emulated: an Emulated, or what else can `run` the op decode.

    prefixes: what the KV pool holds of each sequence before its first step, by layer: float64
    [tokens, K or V, kv_heads, head_dim] of bf16 values. sampling: one batch a step.
    """
    longest = 1 + max(slot[1] for row in steps for slot in row if slot)
    width = -(-longest // PAGE)
    spare = 2
    pages = len(sequences) * width + spare
    numbers = np.random.default_rng(page_seed).permutation(pages).astype(np.int32)
    tables = numbers[: len(sequences) * width].reshape(len(sequences), width)

    count = len(steps[0])
    ids = np.full((len(steps), count), NOTHING, np.int32)
    lengths = np.zeros((len(steps), count), np.int32)
    table = np.full((len(steps), count, width), NO_PAGE, np.int32)
    for step, row in enumerate(steps):
        for at, slot in enumerate(row):
            if slot is None:
                continue
            sequence, position = slot
            used = position // PAGE + 1
            ids[step, at] = sequences[sequence][position]
            lengths[step, at] = position + 1
            table[step, at, :used] = tables[sequence, :used]

    arrays: dict[str, Array] = dict(tensors)
    for name, rows in tensors.items():
        if types[name] == "F32":
            arrays[name] = rows.view(np.float32)
    arrays |= {"token_ids": ids, "lengths": lengths, "page_table": table}
    arrays |= _columns(sampling or [greedy(count)] * len(steps))
    if prefixes is not None:
        arrays["pool"] = _pool(config, prefixes, steps, tables, pages)
    scalars: dict[str, int | float] = {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.ffn_size,
        "norm_eps": config.norm_eps,
        "rope_base": config.rope_base,
        "rope_dims": config.rope_dims,
        "rope_scale": config.rope_scale,
        "max_length": max_length or longest,
        "pages": pages,
        "processors": processors,
        "row_tiles": tiling[0],
        "token_tiles": tiling[1],
        "top_width": TOP_WIDTH,
        "feeds_itself": int(feeds_itself),
    }
    for name, type_ in types.items():
        if type_ != "F32":
            scalars[f"type.{name.split('.')[-2]}"] = WEIGHTS.index(type_)
    out = emulated.run("decode", arrays, scalars, **how)
    names = ("logits", "token_ids_drawn", "finite_logits", "launches", "tickets")
    return Steps(*(out[name] for name in names))


def _columns(batches: Sequence[SamplingBatch]) -> dict[str, Array]:
    """[steps, ...] of each parameter; histories and biases at their longest."""
    columns = {}
    for field in fields(SamplingBatch):
        parts = [getattr(batch, field.name) for batch in batches]
        stacked = np.zeros((len(parts), max(map(len, parts))), parts[0].dtype)
        for row, part in zip(stacked, parts, strict=True):
            row[: len(part)] = part
        columns[field.name] = stacked
    return columns


def _pool(
    config: LlamaConfig,
    prefixes: Sequence[Sequence[Array]],
    steps: Sequence[Sequence[Slot]],
    tables: Array,
    pages: int,
) -> Array:
    shape = (config.layers, pages, 2, config.kv_heads, PAGE, config.head_dim)
    pool = np.full(shape, NAN, np.uint16)
    first: dict[int, int] = {}
    for row in steps:
        for slot in row:
            if slot is not None:
                first.setdefault(*slot)
    for sequence, end in first.items():
        at = np.arange(end)
        for layer, kv in enumerate(prefixes[sequence]):
            pool[layer][tables[sequence, at // PAGE], :, :, at % PAGE] = to_bfloat16(kv[:end])
    return pool
