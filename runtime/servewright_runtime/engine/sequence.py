"""One request on its way through the engine."""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field

from servewright_runtime.engine.requests import Request
from servewright_runtime.kvcache.pool import ROOT_HASH, block_hash
from servewright_runtime.models.runner import BLOCK_TOKENS


class Phase(enum.Enum):
    """Where a sequence stands. A preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's tokens, its KV blocks and its clock readings (monotonic seconds).

    Tokens and blocks are int32 arrays: a step copies them whole.
    """

    request: Request
    order: int  # of arrival
    arrived_at: float
    token_ids: array[int] = field(init=False)  # prompt, then output
    computed: int = 0  # leading tokens whose K and V are in the cache
    blocks: array[int] = field(default_factory=lambda: array("i"))
    hashes: list[bytes] = field(default_factory=list)  # of the leading full blocks
    phase: Phase = Phase.WAITING
    cached_tokens: int = 0  # of the prompt, found in the prefix cache when first scheduled
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = array("i", self.request.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that the cache lacks: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.computed

    @property
    def output_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    def missing_blocks(self, tokens: int) -> int:
        """Blocks to add before the leading `tokens` tokens fit."""
        return -(-tokens // BLOCK_TOKENS) - len(self.blocks)

    def hash_at(self, index: int) -> bytes:
        """Hash of the sequence's full block `index`; computes those before it as needed."""
        for i in range(len(self.hashes), index + 1):
            parent = self.hashes[i - 1] if i else ROOT_HASH
            start = i * BLOCK_TOKENS
            self.hashes.append(block_hash(parent, self.token_ids[start : start + BLOCK_TOKENS]))
        return self.hashes[index]
