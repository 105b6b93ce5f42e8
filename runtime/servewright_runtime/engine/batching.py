"""A scheduler's step as the arrays that the model takes."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from servewright_runtime.engine.scheduler import Chunk
from servewright_runtime.engine.sequence import Sequence
from servewright_runtime.models.runner import Int32s, SamplingBatch, StepBatch


def build_batch(chunks: Seq[Chunk], *, return_logits: bool = False) -> StepBatch:
    """Lay the chunks' tokens in one row, with a block table a sequence.

    chunks: at least one. A token is drawn for each chunk that reaches its sequence's end.
    """
    token_ids: list[int] = []
    seq_starts = [0]
    sample_tokens: list[int] = []
    sampled: list[Sequence] = []
    for chunk in chunks:
        token_ids += chunk.sequence.token_ids[chunk.start : chunk.start + chunk.tokens]
        seq_starts.append(len(token_ids))
        if chunk.samples:
            sample_tokens.append(len(token_ids) - 1)
            sampled.append(chunk.sequence)
    tables = np.full((len(chunks), max(len(c.sequence.blocks) for c in chunks)), -1, np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        seq_starts=np.array(seq_starts, np.int32),
        context_starts=np.array([c.start for c in chunks], np.int32),
        block_tables=tables,
        sample_tokens=np.array(sample_tokens, np.int32),
        sampling=_sampling(sampled),
        return_logits=return_logits,
    )


def _sampling(sequences: Seq[Sequence]) -> SamplingBatch:
    params = [s.request.sampling for s in sequences]
    histories = [
        s.token_ids if p.has_penalties else [] for s, p in zip(sequences, params, strict=True)
    ]
    bias = [pair for p in params for pair in p.logit_bias]
    return SamplingBatch(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        seed=np.array([p.seed for p in params], np.uint64),
        draw=np.array([len(s.token_ids) for s in sequences], np.uint64),
        presence=np.array([p.presence_penalty for p in params], np.float32),
        frequency=np.array([p.frequency_penalty for p in params], np.float32),
        repetition=np.array([p.repetition_penalty for p in params], np.float32),
        history_ids=np.array([i for history in histories for i in history], np.int32),
        history_starts=_starts([len(history) for history in histories]),
        history_prompts=np.array(
            [
                len(s.request.prompt_ids) if history else 0
                for s, history in zip(sequences, histories, strict=True)
            ],
            np.int32,
        ),
        bias_ids=np.array([token for token, _ in bias], np.int32),
        bias_values=np.array([value for _, value in bias], np.float32),
        bias_starts=_starts([len(p.logit_bias) for p in params]),
        logprobs=np.array([p.logprobs for p in params], np.uint8),
        top_logprobs=np.array([p.top_logprobs for p in params], np.int32),
    )


def _starts(lengths: Seq[int]) -> Int32s:
    """Where each part begins in a flat row, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
