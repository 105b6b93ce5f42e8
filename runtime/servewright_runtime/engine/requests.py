"""What goes into the engine and what comes out: plain data, no behaviour.

A `Request` is one sequence to generate: the API layer turns `n` choices and lists of prompts into
several. Each accepted request ends in exactly one `Output` with a `finish_reason`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from servewright_runtime.errors import RequestError


class FinishReason(enum.Enum):
    """Why a request ended. STOP and LENGTH are OpenAI's words; the others never reach a reply."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn from the logits. The defaults are OpenAI's, with every filter off.

    Order of application: logit_bias, repetition, frequency and presence penalty, temperature,
    min_p, top_k, top_p, draw. Logprobs are of the logits before all of these (as vLLM's).
    """

    temperature: float = 1.0  # 0 is greedy: the highest logit, the lowest id among equals
    top_p: float = 1.0  # (0, 1]; 1 is off
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # [0, 1]; 0 is off
    seed: int = 0  # 64 bits; with the position it decides the draw
    presence_penalty: float = 0.0  # of tokens in the output
    frequency_penalty: float = 0.0  # of tokens in the output
    repetition_penalty: float = 1.0  # of tokens in prompt and output; 1 is off
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    logprobs: bool = False  # the logprob of each drawn token
    top_logprobs: int = 0  # and of the most likely ones
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def has_penalties(self) -> bool:
        """Whether drawing needs to know the tokens before."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `request_id` is unique among the requests alive."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams

    def __post_init__(self) -> None:
        assert self.prompt_ids, "the API refuses an empty prompt"
        assert self.sampling.max_tokens >= 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token, its logprob and the most likely ones at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, exact on every ending."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds. The parts do not overlap."""

    queue_s: float  # accepted until first scheduled
    prefill_s: float  # first scheduled until the first token
    decode_s: float  # first token until the last


@dataclass(slots=True)
class Output:
    """What one step brought for one request.

    `text` never ends inside a character and never holds part of a stop string. The fields after
    `finish_reason` are set on the last output only.
    """

    request_id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # one a token, if asked for
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that matched
    usage: Usage | None = None
    timing: Timing | None = None
    error: RequestError | None = None  # with FinishReason.ERROR
