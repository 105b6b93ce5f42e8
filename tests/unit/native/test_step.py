"""Whole steps against the model in float64, and the same bits in any schedule."""

from dataclasses import replace

import numpy as np
import pytest

from servewright_runtime import native
from servewright_runtime.models.runner import LlamaConfig
from servewright_runtime.native import NativeRunner
from support.native_model import (
    QUANTISED,
    SMALL,
    TYPES,
    NumpyLlama,
    Piece,
    logits_of,
    make_batch,
    make_model,
    random_tokens,
)

VARIANTS = native.variants()

SHAPES = {
    "heads of 32, group of 3": SMALL,
    "heads of 64, group of 1": replace(SMALL, heads=2, kv_heads=2, head_dim=64, rope_dims=64),
    "heads of 128, group of 4": replace(SMALL, heads=4, kv_heads=1, head_dim=128, rope_dims=128),
    "heads of 16, group of 8": replace(SMALL, heads=8, kv_heads=1, head_dim=16, rope_dims=16),
    "heads of 80": replace(SMALL, heads=2, kv_heads=1, head_dim=80, rope_dims=80),
    "half of a head rotated": replace(SMALL, rope_dims=16),
    "scaled positions and factors": replace(
        SMALL, rope_scale=0.25, rope_factors=tuple(1.0 + 0.5 * i for i in range(16))
    ),
    "tied head": replace(SMALL, tied_head=True),
    "one lane over": replace(SMALL, vocab_size=33, ffn_size=32, hidden_size=32, layers=1),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# Of the logits' spread. Float weights: only a K or V that rounds to the other float16 (2^-11)
# differs from the model. Quantised: one activation in some thousand falls to the other int8, 1/127
# off, and each shifts the roundings after it.
FLOAT_BOUND, QUANTISED_BOUND = 0.002, 0.02


def assert_close(got: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    error = np.sqrt(((got - wanted) ** 2).mean())
    assert error <= bound * wanted.std(), f"error {error:.2e} of a spread of {wanted.std():.2e}"


@pytest.mark.parametrize("tensor_type", TYPES)
def test_logits_follow_the_model_for_each_tensor_type(variant: str, tensor_type: str) -> None:
    model, tokens = make_model(types=tensor_type), random_tokens(SMALL, 37)
    result = model.runner(variant).step(make_batch([Piece(tokens)]))
    bound = QUANTISED_BOUND if tensor_type in QUANTISED else FLOAT_BOUND
    assert_close(logits_of(result), NumpyLlama(model).logits(tokens), bound)
    assert result.finite
    np.testing.assert_array_equal(result.token_ids, logits_of(result).argmax(axis=1))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_logits_follow_the_model_for_each_shape(variant: str, config: LlamaConfig) -> None:
    model, tokens = make_model(config, "F16"), random_tokens(config, 21)
    result = model.runner(variant).step(make_batch([Piece(tokens)]))
    assert_close(logits_of(result), NumpyLlama(model).logits(tokens), FLOAT_BOUND)


def test_every_tensor_may_have_its_own_type(variant: str) -> None:
    types = {
        **{"attn_q": "F16", "attn_k": "Q4_1", "attn_v": "Q8_0", "attn_output": "BF16"},
        **{"ffn_gate": "Q4_0", "ffn_up": "F32", "ffn_down": "F16", "output": "Q4_0"},
    }
    model, tokens = make_model(types=types), random_tokens(SMALL, 19)
    result = model.runner(variant, threads=2).step(make_batch([Piece(tokens)]))
    assert_close(logits_of(result), NumpyLlama(model).logits(tokens), QUANTISED_BOUND)


def test_contexts_over_several_splits_follow_the_model(variant: str) -> None:
    config = replace(SMALL, layers=1)
    model, tokens = make_model(config, "F16"), random_tokens(config, 600)
    wanted = NumpyLlama(model).logits(tokens)
    for threads in (1, 2):
        runner = model.runner(variant, threads=threads)
        start = logits_of(runner.step(make_batch([Piece(tokens[:599])])))
        assert_close(start, wanted[:599], FLOAT_BOUND)
        # The last token alone: with two threads its splits are shared out.
        last = logits_of(runner.step(make_batch([Piece(tokens[599:], 599)])))
        assert_close(last, wanted[599:], FLOAT_BOUND)


def chunked(runner: NativeRunner, tokens: list[int], sizes: list[int]) -> np.ndarray:
    """Logits after each token, run in chunks of the given sizes."""
    parts, at = [], 0
    for size in sizes:
        batch = make_batch([Piece(tokens[at : at + size], at)])
        parts.append(logits_of(runner.step(batch)))
        at += size
    assert at == len(tokens)
    return np.concatenate(parts)


@pytest.mark.parametrize("tensor_type", ["Q4_0", "Q4_1", "F16"])
def test_a_token_has_the_same_bits_in_any_schedule(variant: str, tensor_type: str) -> None:
    """Batch composition, chunking, blocks and threads change no bit of any logit."""
    config = replace(SMALL, layers=1)
    model = make_model(config, tensor_type)
    lengths = [1, 5, 16, 33, 130, 290, 560]
    sequences = [random_tokens(config, n, seed=n) for n in lengths]
    runner = model.runner(variant, num_blocks=128)
    alone = [logits_of(runner.step(make_batch([Piece(s)]))) for s in sequences]
    rng = np.random.default_rng(2)
    for threads in (1, 2, 3):
        runner = model.runner(variant, threads=threads, num_blocks=128)
        done = [0] * len(sequences)
        first = np.cumsum([0, *(-(-n // 16) for n in lengths)])
        while any(d < n for d, n in zip(done, lengths, strict=True)):
            pieces, which = [], []
            for i, tokens in enumerate(sequences):
                left = lengths[i] - done[i]
                take = min(left, int(rng.choice([0, 1, 1, 2, 7, 16, 40, 300])))
                if take:
                    end = done[i] + take
                    pieces.append(Piece(tokens[done[i] : end], done[i], int(first[i])))
                    which.append(i)
            if not pieces:
                continue
            logits, at = logits_of(runner.step(make_batch(pieces))), 0
            for i, piece in zip(which, pieces, strict=True):
                count = len(piece.tokens)
                np.testing.assert_array_equal(
                    logits[at : at + count], alone[i][done[i] : done[i] + count]
                )
                done[i] += count
                at += count


@pytest.mark.parametrize("tensor_type", QUANTISED)
def test_single_tokens_have_the_bits_of_the_whole_prompt(variant: str, tensor_type: str) -> None:
    model, tokens = make_model(types=tensor_type, seed=3), random_tokens(SMALL, 40)
    runner = model.runner(variant, threads=2)
    whole = chunked(runner, tokens, [40])
    np.testing.assert_array_equal(chunked(runner, tokens, [1] * 40), whole)
    np.testing.assert_array_equal(chunked(runner, tokens, [3, 17, 20]), whole)


@pytest.mark.parametrize("other", ["avx512", "amx"])
def test_all_back_ends_of_16_lanes_run_the_same_model(other: str) -> None:
    if other not in VARIANTS:
        pytest.skip(f"this CPU lacks {other}")
    model, tokens = make_model(types="Q4_1"), random_tokens(SMALL, 50)
    results = [
        logits_of(model.runner(name).step(make_batch([Piece(tokens)])))
        for name in (other, "avx2x16")
    ]
    np.testing.assert_array_equal(results[0], results[1])


def test_an_empty_batch_draws_nothing(variant: str) -> None:
    result = make_model().runner(variant, threads=2).step(make_batch([]))
    assert result.token_ids.shape == (0,)
    assert logits_of(result).shape == (0, SMALL.vocab_size)
    assert result.finite


def test_tokens_without_samples_only_fill_the_cache(variant: str) -> None:
    model, tokens = make_model(), random_tokens(SMALL, 9)
    runner = model.runner(variant)
    whole = logits_of(runner.step(make_batch([Piece(tokens)])))
    batch = make_batch([Piece(tokens[:8], first_block=4)])
    none = np.zeros(0, np.int32)
    silent = replace(batch, sample_tokens=none, sampling=make_batch([]).sampling)
    assert runner.step(silent).token_ids.shape == (0,)
    last = runner.step(make_batch([Piece(tokens[8:], 8, first_block=4)]))
    np.testing.assert_array_equal(logits_of(last), whole[8:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tensor_type", ["Q4_0", "F16"])
def test_a_token_has_the_same_bits_whichever_others_are_drawn_for(
    variant: str, tensor_type: str, threads: int
) -> None:
    """The last layer computes only what is sampled, in whatever order and however often."""
    model = make_model(types=tensor_type)
    pieces = [
        Piece(random_tokens(SMALL, count, seed=count), first_block=at)
        for count, at in [(37, 0), (1, 3), (270, 4), (6, 21)]
    ]
    runner = model.runner(variant, threads=threads, num_blocks=32)
    batch = make_batch(pieces)
    whole = logits_of(runner.step(batch))
    for rows in ([36, 37, 307, 313], [310, 5, 5, 36, 0, 200], [170], list(range(9, 160))):
        sampling = make_batch([Piece([0] * len(rows))]).sampling
        some = replace(batch, sample_tokens=np.array(rows, np.int32), sampling=sampling)
        np.testing.assert_array_equal(logits_of(runner.step(some)), whole[rows])


def test_what_a_freed_block_held_does_not_show(variant: str) -> None:
    """Positions of a block after the sequence's end hold another's K and V."""
    model, tokens = make_model(), random_tokens(SMALL, 16)
    runner = model.runner(variant)
    fresh = logits_of(runner.step(make_batch([Piece(tokens[:3], first_block=9)])))
    runner.step(make_batch([Piece(tokens)]))
    reused = logits_of(runner.step(make_batch([Piece(tokens[:3])])))
    np.testing.assert_array_equal(reused, fresh)


def test_weights_that_are_not_finite_are_told(variant: str) -> None:
    model = make_model(types="F32")
    rows = model.tensors["blk.1.ffn_down.weight"].copy()
    rows.view(np.float32)[4, 7] = np.nan
    model = replace(model, tensors={**model.tensors, "blk.1.ffn_down.weight": rows})
    result = model.runner(variant).step(make_batch([Piece([1, 2, 3])]))
    assert not result.finite
    assert ((result.token_ids >= 0) & (result.token_ids < SMALL.vocab_size)).all()


def test_packed_weights_are_as_large_as_the_file_s() -> None:
    model = make_model()
    raw = sum(rows.nbytes for rows in model.tensors.values())
    padding = 64 * len(model.tensors) + 2 * 15 * 2 * SMALL.hidden_size
    for name in VARIANTS:
        assert raw <= model.runner(name).weights_bytes <= raw + padding
