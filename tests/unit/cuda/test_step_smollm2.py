"""SmolLM2-135M-Instruct by decode steps of csrc/cuda, emulated, against float64 and the CPU engine.

Eight texts of eight tokens, a slot each: eight steps, the prompt included. The emulator takes some
5 s of one core a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from servewright_runtime.models.bpe import build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.runner import LlamaConfig
from servewright_runtime.native import NativeRunner, unavailable
from support.decode_steps import Slot, decode
from support.emulated import Array
from support.native_model import Piece, logits_of, make_batch
from support.native_model import decode as dequantise
from support.rounded_llama import Bounded, RoundedLlama, bounded, centred, rms
from support.smollm2 import INT8_RMS_BOUND, smollm2_path

# The model begins all its texts so. Without it, a first word now and then makes the next logits
# follow from nothing but rounding ("Dear Sir": a spread of 6.4).
START = "<|im_start|>"
TEXTS = (
    "The capital of France is Paris, a city on the Seine",
    "Water boils at one hundred degrees, and it freezes at",
    "def fibonacci(n):\n    if n < 2: return n",
    "Once upon a time there was a little girl who",
    "In 1969 two men walked on the Moon for the",
    "日本の首都は東京です。",
    "Dear Sir or Madam, I am writing to ask",
    "1, 2, 3, 4, 5, 6, 7, 8",
)
TOKENS = 8
COPIES = 3  # of the model with random rounding
TIME_LIMIT_S = 900  # of the emulator, on a machine that others use too


@dataclass(frozen=True)
class SmolLM2:
    config: LlamaConfig
    types: dict[str, str]
    tensors: dict[str, Array]  # rows of bytes, as in the file
    tokens: Array  # [texts, TOKENS]

    def weight(self, name: str) -> Array:
        return dequantise(self.tensors[name], self.types[name])


@pytest.fixture(scope="module")
def model() -> Iterator[SmolLM2]:
    with GGUFFile(smollm2_path()) as file:
        config = read_config(file)
        tokenizer = build_tokenizer(file, config.vocab_size)
        ids = [
            tokenizer.encode(START + text, add_special=True, parse_special=True) for text in TEXTS
        ]
        yield SmolLM2(
            config,
            {name: info.type for name, info in file.tensors.items()},
            {name: file.read_rows(info, 0, info.rows) for name, info in file.tensors.items()},
            np.array([row[:TOKENS] for row in ids], np.int32),
        )


@pytest.fixture(scope="module")
def on_device(model: SmolLM2) -> Array:
    """Logits [texts, TOKENS, vocab]."""
    slots = range(len(TEXTS))
    steps: list[list[Slot]] = [[(i, position) for i in slots] for position in range(TOKENS)]
    # The tiling is what the emulator does fastest; it changes no bit (test_step.py).
    out = decode(
        model.config, model.types, model.tensors, list(model.tokens), steps, tiling=(4, 1),
        time_limit_s=TIME_LIMIT_S,
    )  # fmt: skip
    assert out.finite.all()
    assert (out.launches == 5 * model.config.layers + 3).all()
    np.testing.assert_array_equal(out.token_ids, out.logits.argmax(-1))
    return out.logits.transpose(1, 0, 2)


@pytest.fixture(scope="module")
def bounds(model: SmolLM2) -> Bounded:
    llama = RoundedLlama(model.config, model.weight)
    return bounded(llama, model.tokens, copies=COPIES, is_centred=True)


def test_logits_are_off_by_no_more_than_rounding_explains(
    on_device: Array, bounds: Bounded
) -> None:
    spread = rms(bounds.spread)
    # Three copies measure a row's spread poorly; the median row's is its least.
    errors = rms(centred(on_device) - bounds.exact) / np.maximum(spread, np.median(spread))
    print(f"{errors.max():.2f} spreads at most, {np.sqrt((errors**2).mean()):.2f} rms;", end=" ")
    print(f"a spread is {np.median(spread):.3f}, that of the logits {bounds.exact.std():.2f}")
    assert errors.max() <= 3
    assert np.sqrt((errors**2).mean()) <= 1.2


def test_logits_are_the_cpu_engine_s_within_both_bounds(
    model: SmolLM2, on_device: Array, bounds: Bounded
) -> None:
    if (why := unavailable()) is not None:
        pytest.skip(why)
    found, own = rms(centred(on_device - _on_cpu(model))), rms(bounds.spread)
    print(f"rms {np.median(found):.3f}, worst {found.max():.3f}; own spread {np.median(own):.3f}")
    assert np.median(found) <= np.hypot(INT8_RMS_BOUND[0], 1.5 * np.median(own))
    assert (found <= np.hypot(INT8_RMS_BOUND[1], 3 * own)).all()


def test_equal_texts_have_equal_bits_in_every_slot(on_device: Array) -> None:
    np.testing.assert_array_equal(on_device[:, 0], np.broadcast_to(on_device[0, 0], (8, 49152)))


def _on_cpu(model: SmolLM2) -> Array:
    """The fused runner's logits [texts, TOKENS, vocab], all texts prefilled in one step."""
    runner = NativeRunner(model.config, num_blocks=len(TEXTS), threads=1)
    for name, rows in model.tensors.items():
        runner.load(name, model.types[name], 0, rows)
    runner.seal()
    pieces = [Piece(row.tolist(), 0, i) for i, row in enumerate(model.tokens)]
    logits = logits_of(runner.step(make_batch(pieces)))
    runner.close()
    return logits.reshape(len(TEXTS), TOKENS, -1)
