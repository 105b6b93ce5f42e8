"""Tensors that the kernels cannot read, as others: every weight within the bound that is told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime import native
from servewright_runtime.models.requantise import requantise, served_type
from support.tiny import TENSOR_TYPES, random_tensor

CONVERTED = [kind for kind in TENSOR_TYPES if served_type(kind) != kind]
HALF = 2.0**-11  # rounding to float16
SUBNORMAL = 2.0**-25  # the same below its normal numbers


def rows_of(kind: str, std: float) -> np.ndarray:
    rng = np.random.default_rng(7)
    made = random_tensor(rng, 8, 512, GGMLQuantizationType[kind], std)
    return np.ascontiguousarray(made).view(np.uint8).reshape(8, -1)


def values_of(rows: np.ndarray, kind: str) -> np.ndarray:
    """float64 [rows, blocks, 32]."""
    values = quants.dequantize(rows, GGMLQuantizationType[kind])
    return values.astype(np.float64).reshape(len(rows), -1, 32)


def test_the_kernels_read_what_a_type_is_served_as() -> None:
    assert len(CONVERTED) > 10
    assert {served_type(kind) for kind in TENSOR_TYPES} <= native.NATIVE_TYPES
    assert served_type("I32") == "I32"  # nothing that weights are kept in


@pytest.mark.parametrize("kind", [kind for kind in CONVERTED if served_type(kind) == "Q8_0"])
@pytest.mark.parametrize("std", [0.02, 3.0])
def test_a_weight_moves_by_half_a_step_of_q8_0_at_most(kind: str, std: float) -> None:
    rows = rows_of(kind, std)
    wanted = values_of(rows, kind)
    got = values_of(requantise(rows, kind, "Q8_0"), "Q8_0")
    largest = np.abs(wanted).max(-1, keepdims=True)
    assert (np.abs(got - wanted) <= largest * (1 / 254 + 1.001 * HALF) + 127 * SUBNORMAL).all()


@pytest.mark.parametrize("std", [0.02, 3.0])
def test_q4_k_keeps_its_values_as_q4_1(std: float) -> None:
    rows = rows_of("Q4_K", std)
    wanted = values_of(rows, "Q4_K")
    converted = requantise(rows, "Q4_K", "Q4_1")
    got = values_of(converted, "Q4_1")
    halves = converted.reshape(8, -1, 20)[:, :, :4].copy().view(np.float16).astype(np.float64)
    bound = (15 * np.abs(halves[:, :, :1]) + np.abs(halves[:, :, 1:])) * 1.001 * HALF
    assert (np.abs(got - wanted) <= bound + 16 * SUBNORMAL).all()
    # And they are the same 16 levels, not new ones.
    levels = values_of(rows, "Q4_K").reshape(-1, 32)
    assert all(len(set(a)) == len(set(b)) for a, b in zip(levels, got.reshape(-1, 32), strict=True))


@given(data=st.data(), kind=st.sampled_from(CONVERTED))
def test_any_bytes_are_converted_without_a_word(data: st.DataObject, kind: str) -> None:
    row_bytes = rows_of(kind, 1.0).shape[1]
    raw = data.draw(st.binary(min_size=row_bytes, max_size=row_bytes))
    rows = np.frombuffer(raw, np.uint8).reshape(1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = requantise(rows, kind, served_type(kind))
    assert made.dtype == np.uint8
    block_bytes = {"Q4_1": 20, "Q8_0": 34}[served_type(kind)]
    assert made.shape == (1, 512 // 32 * block_bytes)
