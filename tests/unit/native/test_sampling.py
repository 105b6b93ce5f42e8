"""Draws of the kernels against models/sampling_reference.py, given the very same logits."""

from dataclasses import replace

import numpy as np
import pytest

from servewright_runtime import _native, native
from servewright_runtime.models import sampling_reference
from servewright_runtime.models.runner import StepBatch, StepResult
from servewright_runtime.native import NativeRunner
from support.native_model import (
    SMALL,
    Piece,
    logits_of,
    make_batch,
    make_model,
    random_tokens,
    with_sampling,
)

ROWS = 24
CONFIG = replace(SMALL, vocab_size=1003, layers=1)


@pytest.fixture(scope="module", params=native.variants())
def runner(request: pytest.FixtureRequest) -> NativeRunner:
    return make_model(CONFIG, "Q8_0", seed=5).runner(request.param, threads=2)


@pytest.fixture
def batch() -> StepBatch:
    return make_batch([Piece(random_tokens(CONFIG, ROWS))])


def f32(values: object) -> np.ndarray:
    return np.broadcast_to(np.asarray(values, np.float32), ROWS).copy()


def i32(values: object) -> np.ndarray:
    return np.broadcast_to(np.asarray(values, np.int32), ROWS).copy()


def assert_as_reference(runner: NativeRunner, batch: StepBatch) -> StepResult:
    result = runner.step(batch)
    wanted = sampling_reference.sample(logits_of(result), batch.sampling)
    np.testing.assert_array_equal(result.token_ids, wanted.token_ids)
    # One float32 rounding of a double on each side.
    np.testing.assert_allclose(result.logprobs, wanted.logprobs, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(result.top_ids, wanted.top_ids)
    np.testing.assert_allclose(result.top_logprobs, wanted.top_logprobs, rtol=3e-7, atol=1e-6)
    return result


def drawn(batch: StepBatch, seed: int = 0, **columns: np.ndarray) -> StepBatch:
    """The batch drawn at temperature 1 with a seed a row."""
    rng = np.random.default_rng(seed)
    return with_sampling(
        batch,
        **{
            "temperature": f32(1.0),
            "seed": rng.integers(0, 2**64, ROWS, dtype=np.uint64),
            "draw": rng.integers(0, 2**64, ROWS, dtype=np.uint64),
            **columns,
        },
    )


@pytest.mark.parametrize(("seed", "draw"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 2**63 + 5)])
def test_uniform_numbers_are_the_reference_s(seed: int, draw: int) -> None:
    assert _native.uniform(seed, draw) == sampling_reference.uniform(seed, draw)


@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 2.0, 100.0])
def test_draws_at_a_temperature(runner: NativeRunner, batch: StepBatch, temperature: float) -> None:
    for seed in range(5):
        assert_as_reference(runner, drawn(batch, seed, temperature=f32(temperature)))


@pytest.mark.parametrize("top_k", [1, 2, 10, 500, 1002, 1003, 5000])
def test_top_k_keeps_the_highest(runner: NativeRunner, batch: StepBatch, top_k: int) -> None:
    for seed in range(3):
        flat = drawn(batch, seed, top_k=i32(top_k), temperature=f32(5.0))
        result = assert_as_reference(runner, flat)
        if top_k == 1:
            np.testing.assert_array_equal(result.token_ids, logits_of(result).argmax(axis=1))


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999, 0.9999999])
def test_top_p_keeps_the_smallest_prefix(
    runner: NativeRunner, batch: StepBatch, top_p: float
) -> None:
    for seed in range(3):
        assert_as_reference(runner, drawn(batch, seed, top_p=f32(top_p), temperature=f32(3.0)))


@pytest.mark.parametrize("min_p", [1e-9, 0.02, 0.3, 1.0])
def test_min_p_keeps_what_is_likely_enough(
    runner: NativeRunner, batch: StepBatch, min_p: float
) -> None:
    for seed in range(3):
        assert_as_reference(runner, drawn(batch, seed, min_p=f32(min_p), temperature=f32(3.0)))


def test_filters_apply_one_after_the_other(runner: NativeRunner, batch: StepBatch) -> None:
    rng = np.random.default_rng(4)
    for seed in range(20):
        assert_as_reference(
            runner,
            drawn(
                batch,
                seed,
                temperature=f32(rng.choice([0.0, 0.5, 1.0, 4.0], ROWS)),
                top_k=i32(rng.choice([0, 1, 5, 40], ROWS)),
                top_p=f32(rng.choice([1.0, 0.95, 0.5, 0.05], ROWS)),
                min_p=f32(rng.choice([0.0, 0.01, 0.2], ROWS)),
            ),
        )


def test_equals_are_taken_by_lowest_id(batch: StepBatch) -> None:
    """Rows of the head that are equal give logits that are."""
    model = make_model(CONFIG, "Q8_0", seed=5)
    head = model.tensors["output.weight"].copy()
    head[3::7] = head[3]
    model = replace(model, tensors={**model.tensors, "output.weight": head})
    for variant in native.variants():
        runner = model.runner(variant)
        for top_k in (1, 3, 150):
            assert_as_reference(runner, drawn(batch, 1, top_k=i32(top_k), temperature=f32(9.0)))
        for top_p in (0.2, 0.7):
            assert_as_reference(runner, drawn(batch, 2, top_p=f32(top_p), temperature=f32(9.0)))
        assert_as_reference(runner, with_sampling(batch, top_logprobs=i32(20)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_and_penalties_shift_the_logits(
    runner: NativeRunner, batch: StepBatch, temperature: float
) -> None:
    rng = np.random.default_rng(6)
    lengths, biases = rng.integers(0, 60, ROWS), rng.integers(0, 9, ROWS)
    lengths[3] = biases[4] = 0
    columns = drawn(
        batch,
        temperature=f32(temperature),
        presence=f32(rng.uniform(-2, 2, ROWS)),
        frequency=f32(rng.uniform(-2, 2, ROWS)),
        repetition=f32(rng.uniform(0.5, 2, ROWS)),
        # Few different ids, so that many repeat, in the prompt and after it.
        history_ids=rng.integers(0, 25, lengths.sum(), dtype=np.int32),
        history_starts=np.cumsum([0, *lengths], dtype=np.int32),
        history_prompts=(lengths // 2).astype(np.int32),
        bias_ids=rng.integers(0, CONFIG.vocab_size, biases.sum(), dtype=np.int32),
        bias_values=rng.uniform(-100, 100, biases.sum()).astype(np.float32),
        bias_starts=np.cumsum([0, *biases], dtype=np.int32),
    )
    for _ in range(2):  # the second meets the scratch of the first
        assert_as_reference(runner, columns)


def test_a_bias_of_100_forces_a_token(runner: NativeRunner, batch: StepBatch) -> None:
    ids = np.arange(ROWS, dtype=np.int32) * 41
    forced = drawn(
        batch,
        bias_ids=ids,
        bias_values=f32(100.0),
        bias_starts=np.arange(ROWS + 1, dtype=np.int32),
    )
    np.testing.assert_array_equal(assert_as_reference(runner, forced).token_ids, ids)


@pytest.mark.parametrize("wanted", [0, 1, 20, 1003])
def test_logprobs_are_of_the_raw_logits(
    runner: NativeRunner, batch: StepBatch, wanted: int
) -> None:
    tops = i32(wanted)
    tops[::2] //= 2
    asked = drawn(batch, logprobs=np.ones(ROWS, np.uint8), top_logprobs=tops, top_k=i32(3))
    result = assert_as_reference(runner, asked)
    assert result.top_ids.shape == (ROWS, wanted)


def test_rows_do_not_depend_on_each_other(runner: NativeRunner, batch: StepBatch) -> None:
    asked = drawn(batch, top_p=f32(0.9))
    together = runner.step(asked).token_ids
    for row in (0, 7, ROWS - 1):
        one = slice(row, row + 1)
        sampling = make_batch([Piece([0])]).sampling
        sampling = replace(
            sampling,
            temperature=asked.sampling.temperature[one],
            top_p=asked.sampling.top_p[one],
            seed=asked.sampling.seed[one],
            draw=asked.sampling.draw[one],
        )
        single = replace(asked, sample_tokens=asked.sample_tokens[one], sampling=sampling)
        assert runner.step(single).token_ids[0] == together[row]


def test_draws_follow_the_distribution(runner: NativeRunner) -> None:
    """Chi-square of 2,400 draws of one row over its ten likeliest tokens and the rest."""
    batch = make_batch([Piece([5])])
    probabilities = np.exp(logits_of(runner.step(batch))[0].astype(np.float64) / 0.5)
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities)[:10]
    counts = np.zeros(11)
    repeated = make_batch([Piece([5])])
    sampling = make_batch([Piece([0] * 100)]).sampling
    for round_ in range(24):
        draws = np.arange(100, dtype=np.uint64) + 100 * round_
        many = replace(
            repeated,
            sample_tokens=np.zeros(100, np.int32),
            sampling=replace(sampling, temperature=np.full(100, 0.5, np.float32), draw=draws),
        )
        for token in runner.step(many).token_ids:
            place = np.flatnonzero(best == token)
            counts[place[0] if len(place) else 10] += 1
    expected = 2400 * np.append(probabilities[best], 1 - probabilities[best].sum())
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 36  # 10 degrees of freedom: p = 1e-4, and the draws are fixed by their seed
