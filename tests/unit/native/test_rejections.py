"""What the kernels refuse: nothing that Python passes may read or write out of bounds."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from servewright_runtime import native
from servewright_runtime.errors import ConfigError
from servewright_runtime.models.runner import StepBatch
from servewright_runtime.native import NativeRunner
from support.native_model import (
    SMALL,
    Model,
    Piece,
    logits_of,
    make_batch,
    make_model,
    with_sampling,
)

BLOCKS = 8


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="module")
def runner(model: Model) -> NativeRunner:
    return model.runner("base", num_blocks=BLOCKS)


def two_sequences() -> StepBatch:
    """20 tokens from the start in blocks 0 and 1, one after 17 in blocks 2 and 3."""
    return make_batch([Piece([1] * 20), Piece([2], 17, first_block=2)])


def put(array: np.ndarray, at: Any, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[at] = value
    return changed


STEP_FIELDS: dict[str, list[tuple[Callable[[StepBatch], Any], str]]] = {
    "token_ids": [
        (lambda b: b.token_ids.astype(np.int64), "numpy array of int32"),
        (lambda b: b.token_ids.tolist(), "numpy array of int32"),
        (lambda b: b.token_ids[::2], "not contiguous"),
        (lambda b: b.token_ids[None], "with 1 dimension"),
        (lambda b: put(b.token_ids, 3, -1), r"token_ids\[3\] must be in 0..76, got -1"),
        (lambda b: put(b.token_ids, 20, 77), r"token_ids\[20\] must be in 0..76, got 77"),
        (lambda b: b.token_ids[:-1], r"seq_starts\[2\]"),
    ],
    "seq_starts": [
        (lambda b: put(b.seq_starts, 0, 1), r"seq_starts\[0\] must be 0"),
        (lambda b: put(b.seq_starts, 1, 0), r"seq_starts\[1\] must be at least 1"),
        (lambda b: put(b.seq_starts, 1, 2**31 - 1), r"seq_starts\[2\]"),
        (lambda b: put(b.seq_starts, 1, -(2**31)), r"seq_starts\[1\]"),
        (lambda b: put(b.seq_starts, 2, 22), r"seq_starts\[2\] must be 21, got 22"),
        (lambda b: b.seq_starts[:-1], r"seq_starts must be \[3\]"),
    ],
    "context_starts": [
        (lambda b: put(b.context_starts, 1, -1), r"context_starts\[1\] must be in 0..31"),
        (lambda b: put(b.context_starts, 1, 32), "the block table holds 32 positions"),
        (lambda b: put(b.context_starts, 1, 2**31 - 1), r"context_starts\[1\]"),
        (lambda b: b.context_starts[:1], "seq_starts must be"),
    ],
    "block_tables": [
        (
            lambda b: put(b.block_tables, (1, 1), BLOCKS),
            r"block_tables\[3\] must be in 0..7, got 8",
        ),
        (lambda b: put(b.block_tables, (1, 0), -1), r"block_tables\[2\] must be in 0..7, got -1"),
        (lambda b: b.block_tables[:1].copy(), "must have 2 rows"),
        (lambda b: b.block_tables[0].copy(), "with 2 dimensions"),
        (lambda b: np.zeros((2, 0), np.int32), r"holds 0 positions"),
        (lambda b: put(b.block_tables, (0, 1), 0), "nothing else in the step writes"),
        (lambda b: put(b.block_tables, (1, 1), 1), "nothing else in the step writes"),
        (lambda b: put(b.block_tables, (1, 0), 0), "nothing in the step writes"),
    ],
    "sample_tokens": [
        (lambda b: put(b.sample_tokens, 5, 21), r"sample_tokens\[5\] must be in 0..20"),
        (lambda b: put(b.sample_tokens, 0, -1), r"sample_tokens\[0\]"),
        (lambda b: b.sample_tokens[:4].copy(), r"temperature must be \[4\]"),
    ],
}

N = 21
SAMPLING_FIELDS: dict[str, list[tuple[Any, str]]] = {
    "temperature": [
        (np.full(N, -0.5, np.float32), "at least 0, got -0.5"),
        (np.full(N, np.nan, np.float32), "got nan"),
        (np.full(N, np.inf, np.float32), "got inf"),
        (np.zeros(N, np.float64), "array of float32"),
    ],
    "top_k": [(np.full(N, -1, np.int32), r"top_k\[0\] must be in 0..2147483647")],
    "top_p": [
        (np.zeros(N, np.float32), "above 0 and at most 1"),
        (np.full(N, 1.5, np.float32), "above 0 and at most 1"),
    ],
    "min_p": [(np.full(N, 1.5, np.float32), "in 0..1")],
    "seed": [(np.zeros(N, np.int64), "array of uint64")],
    "draw": [(np.zeros(N + 1, np.uint64), r"draw must be \[21\]")],
    "presence": [(np.full(N, np.inf, np.float32), "finite")],
    "frequency": [(np.full(N, np.nan, np.float32), "finite")],
    "repetition": [(np.zeros(N, np.float32), "above 0")],
    "history_ids": [(np.zeros(5, np.int32), r"history_starts\[21\] must be 5")],
    "history_starts": [(put(np.zeros(N + 1, np.int32), 4, 9), r"history_starts\[5\]")],
    "history_prompts": [(np.ones(N, np.int32), r"history_prompts\[0\] must be in 0..0")],
    "bias_ids": [(np.zeros(2, np.int32), r"bias_values must be \[2\]")],
    "bias_starts": [(np.full(N + 1, -1, np.int32), r"bias_starts\[0\] must be 0")],
    "logprobs": [(np.full(N, 2, np.uint8), "0 or 1")],
    "top_logprobs": [(np.full(N, 78, np.int32), r"in 0..77")],
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, *case) for name, cases in STEP_FIELDS.items() for case in cases],
)
def test_a_batch_that_does_not_fit_is_refused_by_name(
    runner: NativeRunner, name: str, change: Callable[[StepBatch], Any], message: str
) -> None:
    batch = two_sequences()
    bad = replace(batch, **{name: change(batch)})
    with pytest.raises(ValueError, match=r"^step: ") as refused:
        runner.step(bad)
    assert re.search(message, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(name, *case) for name, cases in SAMPLING_FIELDS.items() for case in cases],
)
def test_sampling_that_does_not_fit_is_refused_by_name(
    runner: NativeRunner, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=r"^step: ") as refused:
        runner.step(with_sampling(two_sequences(), **{name: value}))
    assert re.search(message, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"history_ids": np.full(2, 77, np.int32)},
        {"history_ids": np.full(2, -1, np.int32)},
        {"bias_ids": np.full(2, 77, np.int32), "bias_values": np.zeros(2, np.float32)},
        {"bias_ids": np.zeros(2, np.int32), "bias_values": np.full(2, np.nan, np.float32)},
    ],
)
def test_histories_and_biases_hold_ids_of_the_vocabulary(
    runner: NativeRunner, columns: dict[str, np.ndarray]
) -> None:
    name = "history" if "history_ids" in columns else "bias"
    starts = put(np.full(N + 1, 2, np.int32), 0, 0)
    with pytest.raises(ValueError, match=rf"^step: {name}_\w+\[0\]"):
        runner.step(with_sampling(two_sequences(), **{f"{name}_starts": starts}, **columns))


def test_a_refused_step_writes_nothing(model: Model) -> None:
    runner = model.runner("base", num_blocks=BLOCKS)
    tokens = [3, 1, 4, 1, 5]
    runner.step(make_batch([Piece(tokens)]))
    bad = with_sampling(make_batch([Piece([9] * 5)]), top_p=np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="top_p"):
        runner.step(bad)
    got = logits_of(runner.step(make_batch([Piece([6], 5)])))
    fresh = model.runner("base", num_blocks=BLOCKS)
    np.testing.assert_array_equal(got, logits_of(fresh.step(make_batch([Piece([*tokens, 6])])))[5:])


def test_shared_blocks_may_be_read_by_many(runner: NativeRunner) -> None:
    """Two sequences with one prefix in block 0, each with its own block after it."""
    runner.step(make_batch([Piece([1] * 16)]))
    batch = make_batch([Piece([2], 16), Piece([2], 16)])
    shared = replace(batch, block_tables=np.array([[0, 1], [0, 2]], np.int32))
    logits = logits_of(runner.step(shared))
    np.testing.assert_array_equal(logits[0], logits[1])


def test_objects_that_are_no_batch_are_refused(runner: NativeRunner) -> None:
    with pytest.raises(AttributeError):
        runner.step(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token_ids must be"):
        runner.step(replace(two_sequences(), token_ids=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 24}, "head_dim a multiple of 16"),
        ({"head_dim": 512}, "up to 256"),
        ({"kv_heads": 4}, "heads a multiple of kv_heads"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"hidden_size": 100}, "hidden_size a multiple of 32"),
        ({"ffn_size": -32}, "ffn_size a multiple of 32"),
        ({"heads": 1, "kv_heads": 1, "head_dim": 48}, "heads . head_dim"),
        ({"rope_dims": 34}, "rope_dims"),
        ({"rope_dims": 3}, "rope_dims"),
        ({"rope_factors": (1.0,)}, "rope_factors one for each of 16"),
        ({"rope_factors": (0.0,) * 16}, "rope_factors"),
        ({"rope_base": 0.0}, "rope_base"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": 0}, "layers"),
        ({"context_length": 0}, "context_length"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(
    changes: dict[str, Any], message: str
) -> None:
    config = replace(SMALL, **changes)
    reason = native.unfit(config)
    assert reason is not None
    assert re.search(message, reason), reason
    with pytest.raises(ValueError, match="fused kernels want"):
        NativeRunner(config, num_blocks=4, threads=1, variant="base")


def test_a_model_that_fits_has_no_reason() -> None:
    assert native.unfit(SMALL) is None


def test_numbers_too_large_for_the_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        NativeRunner(replace(SMALL, vocab_size=2**40), num_blocks=4, threads=1, variant="base")
    for blocks, threads in ((0, 1), (4, 0), (4, 5000)):
        with pytest.raises(ValueError, match="must be"):
            NativeRunner(SMALL, num_blocks=blocks, threads=threads, variant="base")


LOADS: list[tuple[tuple[str, str, int, Any], str]] = [
    (("blk.2.attn_q.weight", "Q4_0", 0, (32, 54)), "no such tensor"),
    (("output.bias", "F32", 0, (1, 4)), "no such tensor"),
    (("blk.0.attn_q.weight", "Q5_0", 0, (32, 54)), "F32, F16, BF16, Q8_0, Q4_0 or Q4_1, got Q5_0"),
    (("blk.0.attn_norm.weight", "F16", 0, (1, 192)), "must be F32, got F16"),
    (("blk.0.attn_q.weight", "Q4_0", 0, (32, 53)), "a row of 96 Q4_0 is 54 bytes, got 53"),
    (("blk.0.attn_q.weight", "Q4_0", -32, (32, 54)), "within 192"),
    (("blk.0.attn_q.weight", "Q4_0", 192, (32, 54)), "within 192"),
    (("blk.0.attn_q.weight", "Q4_0", 2**62, (32, 54)), "within 192"),
    (("blk.0.attn_q.weight", "Q4_0", 0, (193, 54)), "within 192"),
    (("blk.0.attn_q.weight", "Q4_0", 0, (0, 54)), "within 192"),
    (("blk.0.attn_q.weight", "Q4_0", 16, (32, 54)), "multiples of 32 rows"),
    (("blk.0.attn_q.weight", "Q4_0", 0, (33, 54)), "multiples of 32 rows"),
    (("blk.0.attn_q.weight", "Q4_0", 0, (54,)), "with 2 dimensions"),
    (("rope_freqs.weight", "F32", 0, (1, 64)), "no such tensor"),
]


@pytest.mark.parametrize(("arguments", "message"), LOADS)
def test_rows_that_do_not_fit_are_refused(
    arguments: tuple[str, str, int, tuple[int, ...]], message: str
) -> None:
    runner = NativeRunner(SMALL, num_blocks=4, threads=1, variant="base")
    name, tensor_type, first_row, shape = arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        runner.load(name, tensor_type, first_row, np.zeros(shape, np.uint8))


def test_rows_are_loaded_once_and_with_one_type(model: Model) -> None:
    runner = NativeRunner(SMALL, num_blocks=4, threads=1, variant="base")
    rows = model.tensors["blk.0.attn_q.weight"]
    runner.load("blk.0.attn_q.weight", "Q4_0", 64, rows[64:128])
    with pytest.raises(ValueError, match="row 64 was loaded before"):
        runner.load("blk.0.attn_q.weight", "Q4_0", 32, rows[32:128])
    with pytest.raises(ValueError, match="began as Q4_0, continues as Q8_0"):
        runner.load("blk.0.attn_q.weight", "Q8_0", 0, np.zeros((32, 102), np.uint8))


def test_sealing_names_what_is_missing(model: Model) -> None:
    runner = NativeRunner(SMALL, num_blocks=4, threads=1, variant="base")
    for name, rows in model.tensors.items():
        if name == "blk.1.ffn_up.weight":
            rows = rows[:64]
        if name != "output_norm.weight":
            runner.load(name, model.types[name], 0, rows)
    with pytest.raises(ValueError, match=re.escape("missing of blk.1.ffn_up.weight, output_norm")):
        runner.seal()
    with pytest.raises(ValueError, match="call seal"):
        runner.step(two_sequences())


def test_other_rope_factors_than_the_config_s_are_refused() -> None:
    config = replace(SMALL, rope_factors=(2.0,) * 16)
    runner = NativeRunner(config, num_blocks=4, threads=1, variant="base")
    with pytest.raises(ValueError, match="differ from the config"):
        runner.load("rope_freqs.weight", "F32", 0, np.zeros((1, 64), np.uint8))


def test_a_closed_runner_refuses_work(model: Model) -> None:
    runner = model.runner("base")
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.step(make_batch([Piece([1])]))
    with pytest.raises(ValueError, match="closed"):
        runner.load("output.weight", "F32", 0, np.zeros((1, 1), np.uint8))


def test_the_environment_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVEWRIGHT_CPU", raising=False)
    assert native.chosen_variant() == native.variants()[0]
    monkeypatch.setenv("SERVEWRIGHT_CPU", "base")
    assert native.chosen_variant() == "base"
    monkeypatch.setenv("SERVEWRIGHT_CPU", "sse9")
    every = "amx, avx512, avx2, base, avx2x16"
    with pytest.raises(ConfigError, match=f"must be one of {every}, got 'sse9'"):
        native.chosen_variant()
    monkeypatch.setattr(native, "variants", lambda: ("base",))
    monkeypatch.setenv("SERVEWRIGHT_CPU", "avx512")
    with pytest.raises(ConfigError, match="instructions this CPU lacks"):
        native.chosen_variant()


def test_an_installation_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_native", None)
    assert native.variants() == ()
    why = native.unavailable()
    assert why is not None
    assert "engine.kernel to Reference" in why
    with pytest.raises(ConfigError, match=r"set engine[.]kernel to Reference"):
        native.chosen_variant()
