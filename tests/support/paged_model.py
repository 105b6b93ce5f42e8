"""A stand-in for a model that shows every mistake of paging, sharing and preemption.

It keeps a real paged cache, but of token ids: a step writes its tokens where the block tables say,
then reads each sampled sequence's whole context back through them. The next token is a hash of what
was read, so one wrong, stale or foreign block changes every token that follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from servewright_runtime.models.loaded import ChatTemplate, LoadedModel
from servewright_runtime.models.runner import (
    BLOCK_TOKENS,
    Float32s,
    LlamaConfig,
    StepBatch,
    StepResult,
)

VOCAB = 256
EOS = 255
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=32,
    ffn_size=32,
    norm_eps=1e-5,
    rope_base=10000.0,
    rope_dims=32,
    rope_scale=1.0,
    rope_factors=None,
    context_length=4096,
    tied_head=True,
)


def next_token(context: Sequence[int], *, seed: int = 0, draw: int = 0) -> int:
    """The token that follows `context`: 0 to 254 (never EOS by chance)."""
    value = 14695981039346656037 ^ seed
    for token in (*context, draw):
        value = ((value ^ int(token)) * 1099511628211) % 2**64
    return (value >> 20) % EOS


def expected_tokens(prompt: Sequence[int], count: int, *, seed: int = 0) -> list[int]:
    """What a request alone in the world gets."""
    context = list(prompt)
    for _ in range(count):
        context.append(next_token(context, seed=seed, draw=len(context)))
    return context[len(prompt) :]


class PagedModel:
    """A Runner. `on_step` is called within each step: to count, to block or to fail."""

    config = CONFIG
    kernel = "paged test model"
    weights_bytes = 0

    def __init__(self, num_blocks: int, on_step: Callable[[StepBatch], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self.closed = False
        self.finite = True
        self._cache = np.full((num_blocks, BLOCK_TOKENS), -1, np.int32)
        self._on_step = on_step
        self._lock = threading.Lock()

    def step(self, batch: StepBatch) -> StepResult:
        assert self._lock.acquire(blocking=False), "two steps at once"
        try:
            return self._step(batch)
        finally:
            self._lock.release()

    def _step(self, batch: StepBatch) -> StepResult:
        assert not self.closed
        if self._on_step is not None:
            self._on_step(batch)
        sequence_of = {}
        for index, start in enumerate(batch.context_starts):
            first, end = batch.seq_starts[index], batch.seq_starts[index + 1]
            assert end > first, "a sequence without tokens"
            sequence_of.update(dict.fromkeys(range(first, end), index))
            for offset, token in enumerate(batch.token_ids[first:end]):
                block, slot = divmod(int(start) + offset, BLOCK_TOKENS)
                self._cache[batch.block_tables[index, block], slot] = token
        drawn = []
        for row, at in enumerate(batch.sample_tokens):
            index = sequence_of[int(at)]
            length = int(batch.context_starts[index]) + int(at) - int(batch.seq_starts[index]) + 1
            table = batch.block_tables[index, : -(-length // BLOCK_TOKENS)]
            context = self._cache[table].reshape(-1)[:length]
            seed, draw = int(batch.sampling.seed[row]), int(batch.sampling.draw[row])
            drawn.append(next_token(context.tolist(), seed=seed, draw=draw))
        width = int(batch.sampling.top_logprobs.max(initial=0))
        logprobs: Float32s = np.array([-token / VOCAB for token in drawn], np.float32)
        return StepResult(
            token_ids=np.array(drawn, np.int32),
            logprobs=logprobs,
            top_ids=np.tile(np.arange(width, dtype=np.int32), (len(drawn), 1)),
            top_logprobs=np.tile(-np.arange(width, dtype=np.float32), (len(drawn), 1)),
            finite=self.finite,
            logits=None,
        )

    def commit_ahead(self) -> bool:
        """Nothing to commit."""
        return False

    def close(self) -> None:
        self.closed = True


class ByteTokenizer:
    """A token a byte; EOS is the control token 255."""

    vocab_size = VOCAB
    bos_id: int | None = None
    eos_ids = frozenset({EOS})
    chat_template: ChatTemplate | None = None

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == EOS else bytes([token_id])

    def token_text(self, token_id: int) -> str:
        return "<eos>" if token_id == EOS else self.decode([token_id])


def loaded(runner: PagedModel) -> LoadedModel:
    """The stand-in as a loader would give it."""
    return LoadedModel(runner=runner, tokenizer=ByteTokenizer(), format="test", bytes=0)
