"""What runs in the next step: continuous batching over a paged KV cache.

Plain data in, plain data out: no model, no thread, no clock. The rules:

- Sequences run in order of arrival. Those that decode go first, a token each; what is left of the
  step's token budget goes to prefill chunks. Beside decodes that is little, so that they never wait
  long for a prompt, and so that requests which came together do not go on in step: each that ends
  then finds others decoding and its successor is prefilled alone, at once.
- A waiting sequence starts when a batch place, budget and KV blocks for all its tokens are there.
  None overtakes the one before it, so none starves.
- When a running sequence finds no block, the latest arrival among the running gives all of its
  blocks back and waits again, at the front; its tokens are recomputed later (or found in the prefix
  cache). The earliest arrival is never preempted, and the pool holds at least one sequence of full
  length, so every sequence ends.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.sequence import Phase, Sequence
from servewright_runtime.kvcache.pool import BlockPool
from servewright_runtime.models.runner import BLOCK_TOKENS


class Chunk(NamedTuple):
    """The next `tokens` tokens of a sequence, beginning at `start`."""

    sequence: Sequence
    start: int
    tokens: int
    samples: bool  # it reaches the sequence's end, so that a token is drawn


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes, and what scheduling it did on the way."""

    chunks: list[Chunk]
    preempted: int  # sequences that gave their blocks back
    prefix_queried: int  # tokens looked up in the prefix cache
    prefix_hit: int  # and found


class Scheduler:
    """Waiting and running sequences, and the pool that they share."""

    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        assert num_blocks * BLOCK_TOKENS >= config.max_model_len, "one sequence must always fit"
        self._config = config
        self.pool = BlockPool(num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind the others."""
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Choose the next step's chunks and give them their blocks."""
        chunks: list[Chunk] = []
        preempted = 0
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.pending == 1 else prefilling).append(sequence)
        # Decodes first: with max_batch <= max_step_tokens none of them is ever left out.
        for sequence in decoding:
            preempted += self._plan(sequence, 1, chunks)
        budget = self._config.max_step_tokens - len(chunks)
        if chunks:
            budget = min(budget, self._config.mixed_prefill_tokens)
        for sequence in prefilling:
            tokens = min(sequence.pending, budget)
            preempted += self._plan(sequence, tokens, chunks)
            budget -= tokens
        queried = hit = 0
        while self.waiting and budget and not preempted:
            if len(self.running) >= self._config.max_batch:
                break
            found = self._start(self.waiting[0])
            if found is None:
                break
            sequence = self.waiting.popleft()
            if self._config.prefix_cache:
                queried += len(sequence.token_ids)
                hit += found
            tokens = min(sequence.pending, budget)
            self._plan(sequence, tokens, chunks)
            budget -= tokens
        return Step(chunks, preempted, queried, hit)

    def advance(self, step: Step) -> None:
        """Record that the step's chunks are computed; full blocks become findable."""
        for chunk in step.chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.start + chunk.tokens
            if self._config.prefix_cache:
                full = range(chunk.start // BLOCK_TOKENS, sequence.computed // BLOCK_TOKENS)
                for index in full:
                    self.pool.file(sequence.blocks[index], sequence.hash_at(index))

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands, and free its blocks."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.phase = Phase.FINISHED

    def check_integrity(self) -> None:
        """Assert the invariants of pool and queues. For tests, after each step."""
        self.pool.check_integrity(s.blocks for s in self.running)
        assert all(not s.blocks and s.computed == 0 for s in self.waiting)
        arrivals = [s.order for s in (*self.running, *self.waiting)]
        assert arrivals == sorted(arrivals), "a sequence overtook another"
        for sequence in self.running:
            assert sequence.computed <= len(sequence.blocks) * BLOCK_TOKENS
            assert sequence.computed < len(sequence.token_ids)

    def _plan(self, sequence: Sequence, tokens: int, chunks: list[Chunk]) -> int:
        """Add a sequence's next tokens, if any, to `chunks`, unless it is or gets preempted.

        Returns how many sequences were preempted to make room for them.
        """
        preempted = 0
        if not tokens or sequence.phase is not Phase.RUNNING:
            return preempted
        if sequence.computed + tokens > len(sequence.blocks) * BLOCK_TOKENS:
            preempted = self._make_room(sequence, tokens, chunks)
        if sequence.phase is Phase.RUNNING:
            samples = tokens == sequence.pending
            chunks.append(Chunk(sequence, sequence.computed, tokens, samples))
        return preempted

    def _make_room(self, sequence: Sequence, tokens: int, chunks: list[Chunk]) -> int:
        """Give a running sequence the blocks for its next tokens, preempting the latest arrivals.

        Takes what is planned for those out of `chunks` and returns how many they are. The sequence
        itself is preempted when it is the latest.
        """
        preempted = 0
        missing = sequence.missing_blocks(sequence.computed + tokens)
        while missing > self.pool.free_blocks:
            victim = self.running.pop()
            self._release(victim)
            victim.phase = Phase.WAITING
            self.waiting.appendleft(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.sequence is not victim]
            preempted += 1
            if victim is sequence:
                return preempted
        sequence.blocks.extend(self.pool.take() for _ in range(missing))
        return preempted

    def _start(self, sequence: Sequence) -> int | None:
        """Move the first waiting sequence among the running, with blocks for all its tokens.

        Returns how many of its tokens the prefix cache held, or None when blocks are short.
        """
        found: list[int] = []
        if self._config.prefix_cache:
            # The last token is always computed: its logits are what the step is for.
            for index in range((len(sequence.token_ids) - 1) // BLOCK_TOKENS):
                block = self.pool.find(sequence.hash_at(index))
                if block is None:
                    break
                found.append(block)
        missing = sequence.missing_blocks(len(sequence.token_ids)) - len(found)
        if missing > self.pool.free_blocks - sum(map(self.pool.is_free, found)):
            return None
        for block in found:
            self.pool.share(block)
        sequence.blocks = array("i", found)
        sequence.blocks.extend(self.pool.take() for _ in range(missing))
        sequence.computed = len(found) * BLOCK_TOKENS
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)  # it arrived after all that run: none overtakes
        return sequence.computed

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = array("i")
        sequence.computed = 0
