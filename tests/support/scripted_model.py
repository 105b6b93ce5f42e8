"""A model that says what a test wants, under the real engine, scheduler and detokenizer.

A token is a byte, so a character of several bytes comes in several steps. The model keeps the token
ids it is given in a paged cache, reads each context back, and goes on with the reply that belongs
to the prompt the context begins with; after the reply comes EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from servewright_runtime.models.loaded import ChatTemplate, LoadedModel
from servewright_runtime.models.runner import BLOCK_TOKENS, LlamaConfig, StepBatch, StepResult

EOS = 256
GO = 257  # control token that ends a rendered conversation
VOCAB = 258
# A reply of all prompts without one of their own: plain, with characters of 2, 3 and 4 bytes.
DEFAULT_REPLY = "Hello, wörld! 你好 🦙 and goodbye."

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
    context_length=1 << 20,
    tied_head=True,
)


class ByteTemplate:
    """Renders `role: content` lines and the <go> token."""

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return lines + ("<go>" if add_generation_prompt else "")

    def close(self) -> None:
        """Nothing to end."""


class ByteTokenizer:
    """A token a byte, and two control tokens."""

    vocab_size = VOCAB
    bos_id: int | None = None
    eos_ids = frozenset({EOS})

    def __init__(self, *, has_template: bool = True) -> None:
        self.chat_template: ChatTemplate | None = ByteTemplate() if has_template else None

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if parse_special and text.endswith("<go>"):
            return [*text.removesuffix("<go>").encode(), GO]
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        pieces = [
            self.token_text(token_id).encode()
            if keep_control and token_id >= EOS
            else self.token_bytes(token_id)
            for token_id in ids
        ]
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b""

    def token_text(self, token_id: int) -> str:
        return {EOS: "<eos>", GO: "<go>"}.get(token_id) or self.decode([token_id])


class ScriptedRunner:
    """A Runner. replies: prompt to reply, or its ids. on_step: called within each step."""

    config = CONFIG
    kernel = "scripted"
    weights_bytes = 0

    def __init__(
        self,
        replies: Mapping[str, str | bytes | list[int]] | None = None,
        *,
        num_blocks: int = 256,
        default: str | bytes = DEFAULT_REPLY,
        on_step: Callable[[StepBatch], None] | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.on_step = on_step
        self.is_finite = True
        tokenizer = ByteTokenizer()
        self._replies = {
            tuple(tokenizer.encode(prompt, add_special=False, parse_special=True)): _ids(reply)
            for prompt, reply in (replies or {}).items()
        }
        self._default = _ids(default)
        self._cache = np.full((num_blocks, BLOCK_TOKENS), -1, np.int32)

    def step(self, batch: StepBatch) -> StepResult:
        if self.on_step is not None:
            self.on_step(batch)
        ends = {}
        for index, start in enumerate(batch.context_starts.tolist()):
            first, end = batch.seq_starts[index : index + 2].tolist()
            for offset, token in enumerate(batch.token_ids[first:end].tolist()):
                block, slot = divmod(start + offset, BLOCK_TOKENS)
                self._cache[batch.block_tables[index, block], slot] = token
            ends[end - 1] = (index, start + end - first)
        drawn = []
        for at in batch.sample_tokens.tolist():
            index, length = ends[at]
            table = batch.block_tables[index, : -(-length // BLOCK_TOKENS)]
            drawn.append(self._next(tuple(self._cache[table].reshape(-1)[:length].tolist())))
        width = int(batch.sampling.top_logprobs.max(initial=0))
        # The drawn token is the likeliest, then come the ids 0, 1, 2 ...
        tops = [[token, *(i for i in range(width + 1) if i != token)][:width] for token in drawn]
        return StepResult(
            token_ids=np.array(drawn, np.int32),
            logprobs=np.full(len(drawn), -0.5, np.float32),
            top_ids=np.array(tops, np.int32).reshape(len(drawn), width),
            top_logprobs=np.tile(-0.5 - np.arange(width, dtype=np.float32), (len(drawn), 1)),
            finite=self.is_finite,
            logits=None,
        )

    def commit_ahead(self) -> bool:
        """Nothing to commit."""
        return False

    def close(self) -> None:
        pass

    def _next(self, context: tuple[int, ...]) -> int:
        for prompt, reply in self._replies.items():
            if context[: len(prompt)] == prompt:
                said = len(context) - len(prompt)
                return reply[said] if said < len(reply) else EOS
        # The longest end of the context that the default reply begins with is what was said.
        reply = self._default
        for said in range(min(len(reply), len(context)), 0, -1):
            if context[-said:] == reply[:said]:
                return reply[said] if said < len(reply) else EOS
        return reply[0]


def _ids(reply: str | bytes | list[int]) -> tuple[int, ...]:
    return tuple(reply.encode() if isinstance(reply, str) else reply)


def loaded(runner: ScriptedRunner, *, has_template: bool = True) -> LoadedModel:
    """The model as a loader would give it."""
    tokenizer = ByteTokenizer(has_template=has_template)
    return LoadedModel(runner=runner, tokenizer=tokenizer, format="test", bytes=0)
