"""Both runners against `transformers` on tiny random models: every tensor type, every variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servewright_runtime import native
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.reference import TorchRunner
from servewright_runtime.models.registry import load_tensors
from support.hf_llama import hf_llama, hf_logits
from support.steps import forced_logits
from support.tiny import TENSOR_TYPES, make_tiny_gguf, tiny_shape

# Of the highest logit. Both sides round float32 differently: a dot of n <= 256 terms is off by
# about sqrt(n) / 2 = 8 units of 6e-8, and some 20 such follow each other. Measured: 3e-6.
FLOAT32_BOUND = 1e-5

# The rms error over the vocabulary, in standard deviations of the step's logits: (median of the
# steps, worst step). An int8 activation is off by up to 1/254 of the largest in its block of 32,
# which is 0.5 % rms of a Gaussian; each of 2 layers rounds 4 times at gains of 1.5 to 2, the head
# once: about 2.5 %. Random attention scores are steep, so a step near a tie multiplies that.
# Float weights meet float activations: only K and V are rounded, to float16's 0.03 %.
INT8_BOUND = (0.035, 0.12)
HALF_BOUND = (0.001, 0.006)
# Weights converted to Q8_0 are rounded as much as activations are, independently of them.
CONVERTED_BOUND = (math.sqrt(2) * INT8_BOUND[0], math.sqrt(2) * INT8_BOUND[1])

SEQUENCES = [(40, 20), (17, 16), (33, 1)]  # (tokens, of which prompt)


def make_sequences(lengths: list[tuple[int, int]]) -> tuple[list[list[int]], list[int]]:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 384, length).tolist() for length, _ in lengths]
    return tokens, [prompt for _, prompt in lengths]


def reference_runner(path: Path) -> TorchRunner:
    with GGUFFile(path) as file:
        runner = TorchRunner(read_config(file), num_blocks=64, threads=1)
        load_tensors(file, runner, lambda done, total: None)
    return runner


def native_runner(path: Path, variant: str) -> native.NativeRunner:
    with GGUFFile(path) as file:
        config = read_config(file)
        runner = native.NativeRunner(config, num_blocks=64, threads=2, variant=variant)
        load_tensors(file, runner, lambda done, total: None)
    return runner


def assert_reference_agrees(
    path: Path, rope: dict[str, Any] | None = None, lengths: list[tuple[int, int]] = SEQUENCES
) -> None:
    model, runner = hf_llama(path, rope), reference_runner(path)
    sequences, prompts = make_sequences(lengths)
    got = forced_logits(runner, sequences, prompts)
    for tokens, prompt, ours in zip(sequences, prompts, got, strict=True):
        wanted = hf_logits(model, tokens)[prompt - 1 :]
        assert np.abs(ours - wanted).max() <= FLOAT32_BOUND * np.abs(wanted).max()
    runner.close()


@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_the_reference_agrees_for_every_tensor_type(tmp_path: Path, tensor_type: str) -> None:
    shape = tiny_shape(tensor_type)
    assert_reference_agrees(make_tiny_gguf(tmp_path / "m.gguf", tensor_type=tensor_type, **shape))


def llama3_factors(base: float, dims: int, original: int, factor: float) -> list[float]:
    """The factors a converter writes into rope_freqs.weight (Llama 3.1's report, low 1, high 4)."""
    factors = []
    for i in range(0, dims, 2):
        wave_length = 2 * math.pi * base ** (i / dims)
        if wave_length < original / 4:
            factors.append(1.0)
        elif wave_length > original:
            factors.append(factor)
        else:
            smooth = (original / wave_length - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


LLAMA3 = llama3_factors(10000.0, 16, 64, 8.0)

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an untied head": ({"tied": False}, {}),
    "no grouping": ({"kv_heads": 4}, {}),
    "one key head": ({"kv_heads": 1}, {}),
    "a head wider than its share": ({"head_dim": 32}, {}),
    "another base": ({"rope_base": 500000.0}, {}),
    "linear scaling": ({"rope_scale_factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "Llama 3 scaling": (
        {"rope_factors": LLAMA3},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees_for_every_shape(tmp_path: Path, shape: str) -> None:
    arguments, rope = SHAPES[shape]
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type="F32", **arguments)
    assert_reference_agrees(path, rope)


def test_the_reference_agrees_over_hundreds_of_positions(tmp_path: Path) -> None:
    # The angles of transformers are float32: at position 400 off by 1.2e-5 radians.
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type="F32")
    model, runner = hf_llama(path), reference_runner(path)
    sequences, prompts = make_sequences([(400, 390)])
    [got] = forced_logits(runner, sequences, prompts)
    wanted = hf_logits(model, sequences[0])[389:]
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    runner.close()


CASES = [("tied", tensor_type) for tensor_type in TENSOR_TYPES] + [
    (shape, tensor_type) for shape in SHAPES for tensor_type in ("F32", "Q4_1")
]


@pytest.mark.parametrize(("shape", "tensor_type"), CASES)
def test_every_variant_agrees_with_the_reference(
    tmp_path: Path, shape: str, tensor_type: str
) -> None:
    arguments = SHAPES[shape][0] if shape in SHAPES else tiny_shape(tensor_type)
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type=tensor_type, **arguments)
    sequences, prompts = make_sequences(SEQUENCES)
    reference = reference_runner(path)
    wanted = np.concatenate(forced_logits(reference, sequences, prompts))
    # A conversion is the same for all.
    converts = tensor_type not in native.NATIVE_TYPES
    for variant in native.variants()[: 1 if converts else None]:
        runner = native_runner(path, variant)
        got = np.concatenate(forced_logits(runner, sequences, prompts))
        runner.close()
        errors = np.sqrt(np.square(got - wanted).mean(-1)) / wanted.std(-1)
        bound = CONVERTED_BOUND if converts else INT8_BOUND
        if tensor_type in ("F32", "F16", "BF16"):
            bound = HALF_BOUND
        assert np.median(errors) <= bound[0], variant
        assert errors.max() <= bound[1], variant
    reference.close()


def test_the_variants_that_ran_are_told(record_property: Callable[[str, object], None]) -> None:
    record_property("variants", native.variants())
    print("native variants run on this CPU:", ", ".join(native.variants()) or "none")
