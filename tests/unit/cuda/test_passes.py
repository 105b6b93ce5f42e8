"""Passes cut a batch without losing, doubling or reordering a token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.cuda.passes import passes
from servewright_runtime.models.runner import StepBatch
from support.steps import Piece, make_batch


def batch_of(lengths: list[int], sample: list[int]) -> StepBatch:
    """Sequences of so many new tokens, each with some before them."""
    pieces = [Piece(range(count), 5 * i, [0]) for i, count in enumerate(lengths)]
    return make_batch(pieces, sample=sample)


batches = st.lists(st.sampled_from([1, 1, 2, 3, 17, 40]), min_size=1, max_size=12).flatmap(
    lambda lengths: st.builds(
        batch_of,
        st.just(lengths),
        st.lists(st.integers(0, sum(lengths) - 1), max_size=20),
    )
)


@given(batch=batches, slots=st.integers(1, 4), tokens=st.integers(1, 50))
def test_every_token_is_in_one_pass_in_order_and_every_draw_in_its_token_s(
    batch: StepBatch, slots: int, tokens: int
) -> None:
    prefills, decodes = passes(batch, slots=slots, tokens=tokens)
    lengths = np.diff(batch.seq_starts)
    next_token = batch.seq_starts[:-1].copy()
    drawn: dict[int, int] = {}
    for prefill in prefills:
        assert 1 <= len(prefill.parts) <= slots
        assert 1 <= prefill.tokens <= tokens
        places: list[int] = []
        for part in prefill.parts:
            assert part.first == next_token[part.sequence]
            done = part.first - batch.seq_starts[part.sequence]
            assert part.position == batch.context_starts[part.sequence] + done
            next_token[part.sequence] += part.tokens
            places += range(part.first, part.first + part.tokens)
        for row, draw in zip(prefill.rows.tolist(), prefill.draws.tolist(), strict=True):
            assert draw not in drawn
            drawn[draw] = places[row]
    for decode in decodes:
        assert 1 <= len(decode.sequences) <= slots
        assert (lengths[decode.sequences] == 1).all()
        np.testing.assert_array_equal(next_token[decode.sequences], decode.tokens)
        next_token[decode.sequences] += 1
        drawn |= dict(zip(decode.draws.tolist(), decode.tokens.tolist(), strict=True))
    np.testing.assert_array_equal(next_token, batch.seq_starts[1:])
    assert drawn == dict(enumerate(batch.sample_tokens.tolist()))


def test_what_the_engine_sends_is_as_few_passes_as_can_be() -> None:
    batch = batch_of([1, 30, 1, 1, 40, 1], [0, 30, 31, 32, 72, 73])
    prefills, decodes = passes(batch, slots=64, tokens=512)
    assert [[part.sequence for part in each.parts] for each in prefills] == [[1, 4]]
    assert [each.sequences.tolist() for each in decodes] == [[0, 2, 3, 5]]


def test_a_lone_token_that_draws_nothing_is_prefilled() -> None:
    prefills, decodes = passes(batch_of([1, 1], [1]), slots=4, tokens=8)
    assert [part.sequence for each in prefills for part in each.parts] == [0]
    assert [each.sequences.tolist() for each in decodes] == [[1]]
