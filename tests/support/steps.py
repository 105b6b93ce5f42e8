"""Driving a runner by hand: batches from lists, and teacher-forced logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import (
    BLOCK_TOKENS,
    Runner,
    SamplingBatch,
    StepBatch,
)


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence that a step runs, after `context` tokens that are in the cache."""

    tokens: Sequence[int]
    context: int
    blocks: Sequence[int]


def greedy(samples: int) -> SamplingBatch:
    """Sampling that takes the highest logit, `samples` times."""
    none = np.zeros(0, np.int32)
    return SamplingBatch(
        temperature=np.zeros(samples, np.float32),
        top_k=np.zeros(samples, np.int32),
        top_p=np.ones(samples, np.float32),
        min_p=np.zeros(samples, np.float32),
        seed=np.zeros(samples, np.uint64),
        draw=np.zeros(samples, np.uint64),
        presence=np.zeros(samples, np.float32),
        frequency=np.zeros(samples, np.float32),
        repetition=np.ones(samples, np.float32),
        history_ids=none,
        history_starts=np.zeros(samples + 1, np.int32),
        history_prompts=np.zeros(samples, np.int32),
        bias_ids=none,
        bias_values=np.zeros(0, np.float32),
        bias_starts=np.zeros(samples + 1, np.int32),
        logprobs=np.zeros(samples, np.uint8),
        top_logprobs=np.zeros(samples, np.int32),
    )


def drawn_of_each_kind(count: int, random: np.random.Generator) -> SamplingBatch:
    """Up to seven rows, greedy and drawn with each filter, penalties on; no histories or biases."""
    return replace(
        greedy(count),
        temperature=np.array([0, 0.7, 1, 1.5, 1, 1, 0], np.float32)[:count],
        top_k=np.array([0, 5, 0, 20, 0, 0, 0], np.int32)[:count],
        top_p=np.array([1, 1, 0.9, 0.8, 1, 1, 1], np.float32)[:count],
        min_p=np.array([0, 0, 0, 0, 0.1, 0, 0], np.float32)[:count],
        seed=random.integers(0, 2**64, count, dtype=np.uint64),
        draw=random.integers(0, 2**32, count, dtype=np.uint64),
        presence=np.full(count, 0.5, np.float32),
        frequency=np.full(count, 0.1, np.float32),
        repetition=np.full(count, 1.3, np.float32),
    )


def make_batch(
    pieces: Sequence[Piece], *, sample: Sequence[int] | None = None, logits: bool = True
) -> StepBatch:
    """A step over `pieces`. sample: indices of the tokens to draw after; all of them if None."""
    tokens = [token for piece in pieces for token in piece.tokens]
    width = max((len(piece.blocks) for piece in pieces), default=0)
    tables = np.full((len(pieces), width), -1, np.int32)
    for row, piece in enumerate(pieces):
        tables[row, : len(piece.blocks)] = piece.blocks
    chosen = range(len(tokens)) if sample is None else sample
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        seq_starts=np.cumsum([0, *(len(piece.tokens) for piece in pieces)], dtype=np.int32),
        context_starts=np.array([piece.context for piece in pieces], np.int32),
        block_tables=tables,
        sample_tokens=np.array(chosen, np.int32),
        sampling=greedy(len(chosen)),
        return_logits=logits,
    )


def forced_logits(
    runner: Runner, sequences: Sequence[Sequence[int]], prompts: Sequence[int]
) -> list[npt.NDArray[np.float32]]:
    """Logits after each given token from the prompt's last on: [len - prompt + 1, vocab].

    All sequences run together: the first `prompts[i]` tokens in two chunks, the rest one by one.
    Blocks are dealt out of order, so that a runner which ignores its tables is found out.
    """
    order = np.random.default_rng(1).permutation(runner.num_blocks).tolist()
    blocks = [[order.pop() for _ in range(-(-len(s) // BLOCK_TOKENS))] for s in sequences]
    done = [0] * len(sequences)
    found: list[list[npt.NDArray[np.float32]]] = [[] for _ in sequences]
    step = 0
    while any(done[i] < len(s) for i, s in enumerate(sequences)):
        pieces, owners, sampled = [], [], []
        at = 0
        for i, tokens in enumerate(sequences):
            if done[i] == len(tokens):
                continue
            half = prompts[i] // 2
            end = (half or prompts[i]) if step == 0 else max(prompts[i], done[i] + 1)
            pieces.append(Piece(tokens[done[i] : end], done[i], blocks[i]))
            at += end - done[i]
            done[i] = end
            if end >= prompts[i]:
                owners.append(i)
                sampled.append(at - 1)
        logits = runner.step(make_batch(pieces, sample=sampled)).logits
        assert logits is not None
        for i, row in zip(owners, logits, strict=True):
            found[i].append(row.copy())
        step += 1
    return [np.stack(rows) for rows in found]
