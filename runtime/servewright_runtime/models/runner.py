"""The face of a model to the engine: one call runs a whole mixed batch.

`NativeRunner` (fused kernels) and `TorchRunner` (the plain reference) both have it. Everything
crosses as numpy arrays, so neither the engine nor the native module needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

# Tokens a KV block holds: 16 positions are the lanes of one 512-bit vector of scores.
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """A decoder of the Llama architecture, as a GGUF file's header states it."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    norm_eps: float
    rope_base: float
    rope_dims: int  # leading dimensions of a head that are rotated, in adjacent pairs
    rope_scale: float  # positions are multiplied by it; 1.0 unless scaled linearly
    rope_factors: tuple[float, ...] | None  # Llama 3: divides each pair's frequency
    context_length: int
    tied_head: bool  # the head is the embedding matrix

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one position takes, K and V in all layers, as float16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Sampling of `samples` rows, a column a parameter. Meaning: `engine.requests.SamplingParams`.

    Histories and biases are flat; row i's part is [starts[i], starts[i + 1]). A row without
    penalties has an empty history.
    """

    temperature: Float32s  # [samples]; 0 is greedy
    top_k: Int32s  # [samples]; 0 is off
    top_p: Float32s  # [samples]
    min_p: Float32s  # [samples]
    seed: npt.NDArray[np.uint64]  # [samples], Philox key
    draw: npt.NDArray[np.uint64]  # [samples], Philox counter: position of the drawn token
    presence: Float32s  # [samples]
    frequency: Float32s  # [samples]
    repetition: Float32s  # [samples]
    history_ids: Int32s  # [all histories], prompt then output
    history_starts: Int32s  # [samples + 1]
    history_prompts: Int32s  # [samples], how many of the row's history are prompt
    bias_ids: Int32s  # [all biases]
    bias_values: Float32s  # [all biases]
    bias_starts: Int32s  # [samples + 1]
    logprobs: npt.NDArray[np.uint8]  # [samples], 1 where the drawn token's logprob is wanted
    top_logprobs: Int32s  # [samples], how many most likely ones are wanted


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step: prefill chunks and decode tokens of `sequences` sequences, in one flat row."""

    token_ids: Int32s  # [tokens]
    seq_starts: Int32s  # [sequences + 1], offsets in token_ids
    context_starts: Int32s  # [sequences], tokens of the sequence already in the KV cache
    block_tables: Int32s  # [sequences, blocks], unused entries -1
    sample_tokens: Int32s  # [samples], indices in token_ids whose logits are drawn from
    sampling: SamplingBatch
    return_logits: bool = False  # tests and probes


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew. `logprobs` and `top_*` hold meaning only in rows that asked for it."""

    token_ids: Int32s  # [samples]
    logprobs: Float32s  # [samples]
    top_ids: Int32s  # [samples, max(top_logprobs)]
    top_logprobs: Float32s  # [samples, max(top_logprobs)]
    finite: bool  # every logit of the step was finite
    logits: Float32s | None  # [samples, vocab] with return_logits, before bias and penalties


class Runner(Protocol):
    """A loaded model with its KV cache of `num_blocks` blocks of BLOCK_TOKENS positions."""

    config: LlamaConfig
    num_blocks: int
    kernel: str  # what runs, for people: "avx512", "reference (torch 2.13.0)"

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take in memory."""

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch, append to the KV cache, draw tokens. Releases the GIL.

        Raises ValueError on shapes, dtypes or ids out of range, before anything is written.
        """

    def commit_ahead(self) -> bool:
        """Prepare a little of the memory that coming steps will take; for times without work.

        Returns whether more is to be done. Takes some milliseconds at most.
        """

    def close(self) -> None:
        """Free weights and cache. No step may run or follow."""
