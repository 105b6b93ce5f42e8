"""Rows of logits with sampling parameters, run by the kernel, by the CPU's sampler (C++) and by the
reference (numpy)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from servewright_runtime.models import sampling_reference
from servewright_runtime.models.runner import SamplingBatch
from support.emulated import Array, Emulated

PLAIN = Emulated()
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Sampled:
    """What a sampler wrote, logprobs of rows that asked for none included."""

    token_ids: Array
    finite: Array
    logprobs: Array
    top_ids: Array
    top_values: Array


class Rows:
    """`logits` [rows, vocab]; every parameter is off unless given, as one value or one a row."""

    def __init__(self, logits: Array, seed: int = 0, **columns: Any) -> None:
        rng = np.random.default_rng(seed)
        self.count, self.vocab = logits.shape
        # Rows are readable up to a multiple of 4, and what is there must not matter.
        self.logits = np.full((self.count, (self.vocab + 3) // 4 * 4), np.nan, np.float32)
        self.logits[:, : self.vocab] = logits
        parameters: dict[str, Any] = {
            "temperature": np.float32(1),
            "top_k": np.int32(0),
            "top_p": np.float32(1),
            "min_p": np.float32(0),
            "seed": rng.integers(0, 2**64, self.count, dtype=np.uint64),
            "draw": rng.integers(0, 2**64, self.count, dtype=np.uint64),
            "presence": np.float32(0),
            "frequency": np.float32(0),
            "repetition": np.float32(1),
            "history_prompts": np.int32(0),
            "logprobs": np.uint8(0),
            "top_logprobs": np.int32(0),
        }
        self.columns = {
            name: np.broadcast_to(
                np.asarray(columns.pop(name, value), value.dtype), self.count
            ).copy()
            for name, value in parameters.items()
        }
        histories = columns.pop("histories", [[]] * self.count)
        biases = columns.pop("biases", [[]] * self.count)  # (id, value) pairs
        flat = [pair for row in biases for pair in row]
        self.columns |= {
            "history_ids": np.array([i for row in histories for i in row], np.int32),
            "history_starts": _starts(histories),
            "bias_ids": np.array([i for i, _ in flat], np.int32),
            "bias_values": np.array([value for _, value in flat], np.float32),
            "bias_starts": _starts(biases),
        }
        assert not columns, f"no such parameter: {list(columns)}"

    def run(self, emulated: Emulated = PLAIN, op: str = "sample", **how: Any) -> Sampled:
        """`parts` and `threads` of the launch are chosen where they are not given."""
        arrays = {"logits": self.logits, **self.columns}
        scalars = {"vocab": self.vocab, "top_width": MAX_TOP_LOGPROBS}
        for name, otherwise in (("launches", 1), ("parts", 0), ("threads", 0)):
            scalars[name] = how.pop(name, otherwise)
        if op == "sample":
            arrays["tickets"] = np.zeros(max(self.count, 1), np.uint32)
        out = emulated.run(op, arrays, scalars, **how)
        assert op != "sample" or not out["tickets"].any()
        names = ("token_ids", "finite", "token_logprobs", "top_ids", "top_values")
        return Sampled(*(out[name] for name in names))

    def on_cpu(self) -> Sampled:
        return self.run(op="sample_on_cpu")

    def by_reference(self) -> Array:
        """Its token ids; rows that are not finite have none that mean anything."""
        batch = SamplingBatch(
            **{field.name: self.columns[field.name] for field in fields(SamplingBatch)}
        )
        with np.errstate(over="ignore", under="ignore"):
            logits = np.nan_to_num(self.logits[:, : self.vocab])
            ids: Array = sampling_reference.sample(logits, batch).token_ids
        return ids


def random_rows(seed: int, count: int, vocab: int) -> Rows:
    """Rows of many kinds, and parameters of all kinds, many of them off or extreme."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, vocab)) * rng.choice([0.3, 1, 3, 8], (count, 1))
    for row, kind in enumerate(rng.integers(0, 10, count)):
        logits[row] = {
            0: np.round(logits[row]),  # ties
            1: rng.choice([0, -1, -2.5], vocab),
            2: np.full(vocab, 0.25),
            3: logits[row] * 1e-4,  # nearly equal
            4: -np.arange(vocab) * rng.choice([1e-3, 0.1, 1]),
            5: rng.choice([-0.0, 0.0], vocab),
            6: logits[row] * 20,
        }.get(int(kind), logits[row])
        if rng.random() < 0.05:
            places = rng.integers(0, vocab, 3)
            logits[row, places] = rng.choice([np.nan, np.inf, -np.inf], 3)

    def some(share: float, values: list[float], otherwise: float) -> Array:
        chosen = rng.random(count) < share
        picked: Array = np.where(chosen, rng.choice(values, count), otherwise)
        return picked

    lengths, biases = some(0.3, list(range(1, 200)), 0), some(0.3, list(range(1, 12)), 0)
    return Rows(
        logits,
        seed,
        temperature=some(0.8, [0, 0, 1e-30, 1e-3, 0.1, 0.7, 1.5, 2, 100, 1e30], 1),
        top_k=some(0.6, [1, 2, 5, 40, 200, vocab, vocab + 1, 2**31 - 1], 0),
        top_p=some(0.6, [1e-40, 1e-6, 0.05, 0.1, 0.5, 0.9, 0.95, 0.999, 0.9999999], 1),
        min_p=some(0.3, [1e-30, 1e-12, 0.01, 0.2, 1], 0),
        presence=rng.uniform(-2, 2, count),
        frequency=rng.uniform(-2, 2, count),
        repetition=rng.uniform(0.5, 2, count),
        # Few different ids, so that many repeat, in the prompt and after it.
        histories=[rng.integers(0, min(vocab, 40), int(n)).tolist() for n in lengths],
        history_prompts=(lengths * rng.random(count)).astype(np.int32),
        biases=[
            [
                (int(rng.integers(0, min(vocab, 30))), float(rng.uniform(-20, 20)))
                for _ in range(int(n))
            ]
            for n in biases
        ],
        logprobs=some(0.2, [1], 0),
        top_logprobs=some(0.2, list(range(min(vocab, MAX_TOP_LOGPROBS) + 1)), 0),
    )


def _starts(parts: list[Any]) -> Array:
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
