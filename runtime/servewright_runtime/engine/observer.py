"""What the engine tells of its work, for metrics. Called on the engine thread; must be quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from servewright_runtime.engine.requests import FinishReason, SamplingParams, Timing, Usage


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, as it ended."""

    prefill_tokens: int
    decode_tokens: int
    running: int  # sequences
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
    seconds: float
    first_token_s: tuple[float, ...]  # time to first token of those whose first one came now
    inter_token_s: tuple[float, ...]  # time since the token before, of the others


@dataclass(frozen=True, slots=True)
class RequestStats:
    """One request, as it ended, cancelled ones included."""

    request_id: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    sampling: SamplingParams


class EngineObserver(Protocol):
    """Receives the engine's counts."""

    def on_step(self, stats: StepStats) -> None:
        """After each step."""

    def on_finish(self, stats: RequestStats) -> None:
        """After each request's last output."""

    def on_preempted(self, sequences: int) -> None:
        """Sequences that gave their KV blocks back and will be recomputed."""

    def on_prefix(self, queried_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""


class NullObserver:
    """Keeps nothing."""

    def on_step(self, stats: StepStats) -> None:
        """Ignore it."""

    def on_finish(self, stats: RequestStats) -> None:
        """Ignore it."""

    def on_preempted(self, sequences: int) -> None:
        """Ignore it."""

    def on_prefix(self, queried_tokens: int, hit_tokens: int) -> None:
        """Ignore it."""
