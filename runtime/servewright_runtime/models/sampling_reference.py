"""Drawing tokens from logits, in plain numpy: the definition that every sampler follows.

Weights are doubles. What sums decide, they decide in integers: a token's mass is its weight in
units of 2**-45, rounded to nearest (csrc/common/draws.h), so no order of summation matters, and
another implementation takes the same decisions wherever its exponentials round to the same masses.
Nothing depends on other rows of the batch.

Uniform numbers: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC11), key = seed, counter = (draw, 0), both with the low word first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import Float32s, Int32s, SamplingBatch

Doubles = npt.NDArray[np.float64]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Drawn:
    """Fields of a StepResult. `top_*` are [samples, max(top_logprobs)], best first."""

    token_ids: Int32s
    logprobs: Float32s
    top_ids: Int32s
    top_logprobs: Float32s


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds of Philox on four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(seed: int, draw: int) -> int:
    """53 bits that `seed` and `draw` (64 bits each) decide.

    The high ones of the 64-bit number whose low word is Philox's first and high word its second.
    """
    words = philox4x32((draw & _MASK, draw >> 32, 0, 0), (seed & _MASK, seed >> 32))
    return (words[0] | words[1] << 32) >> 11


def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1), a multiple of 2**-53."""
    return float(random_bits(seed, draw)) * 2.0**-53


def sample(logits: Float32s, batch: SamplingBatch) -> Drawn:
    """One token for each row of `logits` [samples, vocab], as row i of `batch` says."""
    samples = logits.shape[0]
    width = int(batch.top_logprobs.max(initial=0))
    drawn = Drawn(
        np.zeros(samples, np.int32),
        np.zeros(samples, np.float32),
        np.zeros((samples, width), np.int32),
        np.zeros((samples, width), np.float32),
    )
    for row in range(samples):
        token = _draw(_adjusted(logits[row], batch, row), batch, row)
        drawn.token_ids[row] = token
        wanted = int(batch.top_logprobs[row])
        if batch.logprobs[row] or wanted:
            logprobs = _log_softmax(logits[row].astype(np.float64))
            drawn.logprobs[row] = logprobs[token]
            best = np.argsort(-logprobs, kind="stable")[:wanted]
            drawn.top_ids[row, : len(best)] = best
            drawn.top_logprobs[row, : len(best)] = logprobs[best]
    return drawn


def _adjusted(logits: Float32s, batch: SamplingBatch, row: int) -> Doubles:
    """Logits after bias and penalties, in double."""
    values = logits.astype(np.float64)
    bias = slice(batch.bias_starts[row], batch.bias_starts[row + 1])
    np.add.at(values, batch.bias_ids[bias], batch.bias_values[bias].astype(np.float64))

    history = batch.history_ids[batch.history_starts[row] : batch.history_starts[row + 1]]
    seen = np.unique(history)
    repetition = float(batch.repetition[row])
    values[seen] = np.where(values[seen] > 0, values[seen] / repetition, values[seen] * repetition)
    written, counts = np.unique(history[batch.history_prompts[row] :], return_counts=True)
    frequency, presence = float(batch.frequency[row]), float(batch.presence[row])
    values[written] -= frequency * counts + presence
    return values


def _draw(values: Doubles, batch: SamplingBatch, row: int) -> int:
    temperature = float(batch.temperature[row])
    if temperature == 0.0:
        return int(values.argmax())  # the lowest id among equals
    weights = np.exp((values - values.max()) / temperature)  # the highest is 1: min_p relies on it
    ids = np.flatnonzero(weights >= float(batch.min_p[row]))
    top_k, top_p = int(batch.top_k[row]), float(batch.top_p[row])
    if top_k or top_p < 1.0:
        ids = ids[np.argsort(-weights[ids], kind="stable")]  # best first, then by id
        if top_k:
            ids = ids[:top_k]
        if top_p < 1.0:
            cumulative = np.cumsum(_masses(weights[ids]))
            wanted = max(math.ceil(Fraction(top_p) * int(cumulative[-1])), 1)
            ids = ids[: int(np.searchsorted(cumulative, np.uint64(wanted))) + 1]
        ids = np.sort(ids)
    cumulative = np.cumsum(_masses(weights[ids]))
    place = random_bits(int(batch.seed[row]), int(batch.draw[row])) * int(cumulative[-1]) >> 53
    return int(ids[np.searchsorted(cumulative, np.uint64(place), side="right")])


def _masses(weights: Doubles) -> npt.NDArray[np.uint64]:
    """Units of 2**-45: doubles in [128, 256) are that far apart."""
    bits: npt.NDArray[np.uint64] = (weights + 128.0).view(np.uint64)
    return bits - np.float64(128).view(np.uint64)


def _log_softmax(values: Doubles) -> Doubles:
    values = values - values.max()
    shifted: Doubles = values - np.log(np.exp(values).sum())
    return shifted
