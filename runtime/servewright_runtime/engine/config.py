"""The engine's settings, resolved: every number is final here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Bounds of one engine. Sequences are choices: a request with n=3 is three of them."""

    name: str  # served model name
    max_model_len: int  # tokens of prompt and output together
    max_batch: int  # sequences running at once
    max_step_tokens: int  # tokens of one step: all decodes, the rest prefill chunks
    mixed_prefill_tokens: int  # of those, prefill tokens at most in a step that also decodes
    max_queued: int  # sequences waiting to run; one more is answered 429
    prefix_cache: bool

    def __post_init__(self) -> None:
        assert self.max_model_len >= 2
        assert 1 <= self.max_batch <= self.max_step_tokens, "a step must hold every decode"
        assert self.mixed_prefill_tokens >= 1, "prompts must get on beside decodes"
        assert self.max_queued >= 0
