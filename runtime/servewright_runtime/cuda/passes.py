"""A mixed batch as passes: what one decode step or one prefill takes at once.

Plain numbers in, plain numbers out. A sequence that brings one token and draws from it decodes;
any other is prefilled. Passes follow each other on one stream, and no sequence is in two of them
out of order, so cutting a batch changes nothing but time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from servewright_runtime.models.runner import Int32s, StepBatch


@dataclass(frozen=True, slots=True)
class Decoding:
    """Sequences with a new token each."""

    sequences: Int32s  # rows of the batch
    tokens: Int32s  # of each, its place in the batch's row of tokens
    draws: Int32s  # of each, its row among the batch's samples


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one sequence."""

    sequence: int  # row of the batch
    first: int  # place in the batch's row of tokens
    tokens: int
    position: int  # of the first token in its sequence


@dataclass(frozen=True, slots=True)
class Prefilling:
    """Parts of sequences that are computed together, and what is drawn from them."""

    parts: tuple[Part, ...]
    rows: Int32s  # of each draw, the place of its token among the pass's tokens
    draws: Int32s  # of each, its row among the batch's samples

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)


def passes(batch: StepBatch, *, slots: int, tokens: int) -> tuple[list[Prefilling], list[Decoding]]:
    """Cut a checked batch: at most `slots` sequences a pass, `tokens` tokens a prefill."""
    lengths = np.diff(batch.seq_starts)
    counts = np.bincount(batch.sample_tokens, minlength=len(batch.token_ids))
    firsts = batch.seq_starts[:-1]
    is_decode = (lengths == 1) & (counts[firsts] == 1)

    draw_of = np.empty(len(batch.token_ids), np.int32)
    draw_of[batch.sample_tokens] = np.arange(len(batch.sample_tokens), dtype=np.int32)
    decoding = np.flatnonzero(is_decode).astype(np.int32)
    decodes = [
        Decoding(rows, firsts[rows], draw_of[firsts[rows]])
        for rows in np.split(decoding, range(slots, len(decoding), slots))
        if len(rows)
    ]

    groups: list[list[Part]] = []
    room = 0
    for row in np.flatnonzero(~is_decode).tolist():
        first, left = int(firsts[row]), int(lengths[row])
        position = int(batch.context_starts[row])
        while left:
            if room == 0 or len(groups[-1]) == slots:
                groups.append([])
                room = tokens
            count = min(left, room)
            groups[-1].append(Part(row, first, count, position))
            first, left, position, room = (
                first + count,
                left - count,
                position + count,
                room - count,
            )
    return [_prefilling(parts, batch) for parts in groups], decodes


def _prefilling(parts: list[Part], batch: StepBatch) -> Prefilling:
    rows: list[Int32s] = []
    draws: list[Int32s] = []
    before = 0
    for part in parts:
        offsets = batch.sample_tokens - part.first
        inside = np.flatnonzero((offsets >= 0) & (offsets < part.tokens)).astype(np.int32)
        rows.append(offsets[inside] + np.int32(before))
        draws.append(inside)
        before += part.tokens
    return Prefilling(tuple(parts), np.concatenate(rows), np.concatenate(draws))
