"""A scheduler's step as the arrays that the model takes."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence as Seq

import numpy as np

from servewright_runtime.engine.scheduler import Chunk
from servewright_runtime.engine.sequence import Sequence
from servewright_runtime.models.runner import BLOCK_TOKENS, Int32s, SamplingBatch, StepBatch

# Columns of a block table for what decoding adds, so that it is laid out anew every 64 tokens.
SPARE_BLOCKS = 4


class Batcher:
    """Lays out one step after another.

    Weights have driven everything else out of the caches when a step begins, so each object touched
    here costs several times what it costs in a loop. So while the same sequences decode, the arrays
    of the step before are used again and only what moves is written.
    """

    def __init__(self) -> None:
        self._sampled: list[Sequence] = []
        self._sampling = _sampling([])
        self._decode: StepBatch | None = None  # the step before, if `_sampled` was all of it

    def build(self, chunks: Seq[Chunk]) -> StepBatch:
        """Lay the chunks' tokens in one row, with a block table a sequence.

        chunks: at least one. A token is drawn for each chunk that reaches its sequence's end.
        The arrays of the step before must not be in use any more.
        """
        sampled = [chunk.sequence for chunk in chunks if chunk.samples]
        is_decode = len(sampled) == len(chunks) == sum(chunk.tokens for chunk in chunks)
        sampling = self._sampling_of(sampled)
        before = self._decode if is_decode else None
        if before is not None and before.sampling is sampling and _has_room(before, sampled):
            _move(before, sampled)
            return before
        batch = _laid_out(chunks, sampling)
        self._decode = batch if is_decode else None
        return batch

    def _sampling_of(self, sampled: list[Sequence]) -> SamplingBatch:
        if sampled == self._sampled and not self._sampling.history_ids.size:
            self._sampling.draw[:] = [len(sequence.token_ids) for sequence in sampled]
        else:
            self._sampled, self._sampling = sampled, _sampling(sampled)
        return self._sampling


def _has_room(batch: StepBatch, sequences: Seq[Sequence]) -> bool:
    columns = len(batch.block_tables[0])
    return all(len(sequence.blocks) <= columns for sequence in sequences)


def _move(batch: StepBatch, sequences: Seq[Sequence]) -> None:
    """Turn the arrays of a step that decoded `sequences` into those of the next."""
    batch.token_ids[:] = [sequence.token_ids[-1] for sequence in sequences]
    batch.context_starts[:] = [sequence.computed for sequence in sequences]
    for row, sequence in enumerate(sequences):
        if sequence.computed % BLOCK_TOKENS == 0:  # its token begins a block
            batch.block_tables[row, len(sequence.blocks) - 1] = sequence.blocks[-1]


def _laid_out(chunks: Seq[Chunk], sampling: SamplingBatch) -> StepBatch:
    token_ids = array("i")
    seq_starts = [0]
    sample_tokens: list[int] = []
    for sequence, start, tokens, samples in chunks:
        token_ids += sequence.token_ids[start : start + tokens]
        seq_starts.append(len(token_ids))
        if samples:
            sample_tokens.append(len(token_ids) - 1)
    width = max(len(chunk.sequence.blocks) for chunk in chunks) + SPARE_BLOCKS
    tables = np.full((len(chunks), width), -1, np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        seq_starts=np.array(seq_starts, np.int32),
        context_starts=np.array([chunk.start for chunk in chunks], np.int32),
        block_tables=tables,
        sample_tokens=np.array(sample_tokens, np.int32),
        sampling=sampling,
    )


def _sampling(sequences: Seq[Sequence]) -> SamplingBatch:
    params = [s.request.sampling for s in sequences]
    none = array("i")
    histories = [
        s.token_ids if p.has_penalties else none for s, p in zip(sequences, params, strict=True)
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
        history_ids=np.concatenate([np.array(history, np.int32) for history in [none, *histories]]),
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
    return np.array([0, *itertools.accumulate(lengths)], np.int32)
