"""The sampler that defines the others: known vectors, each filter's rule, and the distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.models.runner import SamplingBatch
from servewright_runtime.models.sampling_reference import philox4x32, sample, uniform
from support.steps import greedy


def drawing(count: int = 1, **columns: Any) -> SamplingBatch:
    """Sampling at temperature 1 of `count` rows, row i with draw i, and these columns."""
    base = greedy(count)
    arrays: dict[str, Any] = {
        "temperature": np.ones(count, np.float32),
        "draw": np.arange(count, dtype=np.uint64),
    }
    for name, value in columns.items():
        dtype = getattr(base, name).dtype
        arrays[name] = np.broadcast_to(np.asarray(value, dtype), (count,))
    return replace(base, **arrays)


def drawn(probabilities: list[float], batch: SamplingBatch) -> list[int]:
    logits = np.log(np.array([probabilities] * len(batch.draw), np.float32))
    token_ids: list[int] = sample(logits, batch).token_ids.tolist()
    return token_ids


def test_philox_gives_the_known_answers_of_its_authors() -> None:
    # Random123's kat_vectors, philox4x32 with 10 rounds.
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones,) * 2) == (
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    )  # fmt: skip
    assert philox4x32(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    ) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_uniform_numbers_are_multiples_of_a_53rd_power_below_one(seed: int, draw: int) -> None:
    u = uniform(seed, draw)
    assert 0 <= u < 1
    assert (u * 2**53).is_integer()


def test_draws_follow_the_probabilities() -> None:
    count = 20_000
    ids = drawn([0.5, 0.3, 0.15, 0.05], drawing(count, seed=7))
    found = np.bincount(ids, minlength=4) / count
    # Five standard deviations of a binomial share.
    wanted = np.array([0.5, 0.3, 0.15, 0.05])
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count)).all()


def test_seed_and_draw_alone_decide_a_draw() -> None:
    probabilities = [0.1] * 10
    once = drawn(probabilities, drawing(50, seed=3))
    assert drawn(probabilities, drawing(50, seed=3)) == once
    assert drawn(probabilities, drawing(50, seed=4)) != once


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert drawn([0.1, 0.4, 0.4, 0.1], greedy(1)) == [1]


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.65}, {0, 1, 2}),
        ({"min_p": 0.4}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.4, "top_k": 2}, {0, 1}),
        # 0.4 / 0.8 of what top_k keeps reaches 0.5, though it is 0.4 of all.
        ({"top_k": 3, "top_p": 0.49}, {0}),
    ],
)
def test_filters_keep_what_their_rule_says(columns: dict[str, float], kept: set[int]) -> None:
    # The three in the middle are equal: the lowest ids stay.
    ids = drawn([0.4, 0.2, 0.2, 0.1, 0.1], drawing(500, seed=1, **columns))
    assert set(ids) == kept


def test_temperature_sharpens_and_flattens() -> None:
    cold = drawn([0.6, 0.4], drawing(200, temperature=0.05, seed=1))
    hot = drawn([0.999, 0.001], drawing(2000, temperature=100.0, seed=1))
    assert sum(cold) < 5
    assert 800 < sum(hot) < 1200


def adjusted_choice(logits: list[float], **changes: Any) -> int:
    batch = replace(greedy(1), **changes)
    return int(sample(np.array([logits], np.float32), batch).token_ids[0])


def history(prompt: list[int], output: list[int]) -> dict[str, Any]:
    ids = np.array(prompt + output, np.int32)
    return {
        "history_ids": ids,
        "history_starts": np.array([0, len(ids)], np.int32),
        "history_prompts": np.array([len(prompt)], np.int32),
    }


def test_repetition_divides_positive_and_multiplies_negative_logits_of_all_seen() -> None:
    two = np.array([2.0], np.float32)
    assert adjusted_choice([3.0, 2.0], repetition=two, **history([0], [])) == 1
    assert adjusted_choice([-1.0, -1.5], repetition=two, **history([], [0])) == 1
    assert adjusted_choice([3.0, 1.4], repetition=two, **history([0, 0, 0], [])) == 0


def test_frequency_counts_and_presence_does_not_in_the_output_alone() -> None:
    one = np.array([1.0], np.float32)
    assert adjusted_choice([3.0, 1.5], frequency=one, **history([], [0])) == 0
    assert adjusted_choice([3.0, 1.5], frequency=one, **history([], [0, 0])) == 1
    assert adjusted_choice([3.0, 1.5], presence=one, **history([], [0, 0])) == 0
    assert adjusted_choice([3.0, 2.5], presence=one, **history([], [0, 0])) == 1
    assert adjusted_choice([3.0, 2.5], presence=one, **history([0, 0], [])) == 0


def test_bias_is_added_before_all_else() -> None:
    bias = {
        "bias_ids": np.array([1, 1], np.int32),
        "bias_values": np.array([1.0, 1.5], np.float32),
        "bias_starts": np.array([0, 2], np.int32),
    }
    assert adjusted_choice([2.0, 0.0], **bias) == 1


def test_logprobs_are_of_the_logits_as_they_came() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3]], np.float32))
    batch = replace(
        greedy(1),
        bias_ids=np.array([0], np.int32),
        bias_values=np.array([100.0], np.float32),
        bias_starts=np.array([0, 1], np.int32),
        logprobs=np.ones(1, np.uint8),
        top_logprobs=np.array([2], np.int32),
    )
    result = sample(logits, batch)
    assert result.token_ids.tolist() == [0]
    assert result.logprobs[0] == pytest.approx(np.log(0.1), abs=1e-6)
    assert result.top_ids.tolist() == [[1, 2]]
    assert result.top_logprobs[0] == pytest.approx(np.log([0.6, 0.3]), abs=1e-6)
