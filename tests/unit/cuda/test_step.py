"""Whole decode steps of csrc/cuda, emulated: numbers, bits, replay, sampling, launches.

Numbers: small random models against float64 on the same dequantised weights. A logit's bound is
how far rounding to bf16 by chance moves it (support/rounded_llama.py), and a second model that
rounds to nearest at the same places leaves only float32 arithmetic, and now and then a rounding
that falls the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from servewright_runtime.models import sampling_reference
from servewright_runtime.models.runner import LlamaConfig, SamplingBatch
from support.decode_steps import PLAIN, WEIGHTS, Slot, Steps, decode
from support.emulated import Array, Emulated, Fault
from support.native_model import SMALL, Model, encode, make_model
from support.native_model import decode as dequantise
from support.projections import left_for_norm
from support.rounded_llama import Bounded, RoundedLlama, bounded, rms
from support.steps import drawn_of_each_kind

BASE = replace(
    SMALL,
    hidden_size=96,  # no multiple of a column tile
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=64,
    rope_dims=64,
    ffn_size=96,
    tied_head=True,
)
MIXED = {  # each weight type, and quantised down beside float head, as files mix them
    "attn_q": "Q4_1", "attn_k": "Q4_1", "attn_v": "Q4_1", "attn_output": "Q4_0",
    "ffn_gate": "Q4_1", "ffn_up": "Q4_1", "ffn_down": "Q8_0", "output": "BF16",
    "token_embd": "Q4_1",
}  # fmt: skip
LAUNCHES_A_LAYER, OTHER_LAUNCHES = 5, 3
COPIES = 16  # of the model with random rounding


@dataclass(frozen=True)
class Case:
    types: str  # of all matrices, or "mixed"
    head_dim: int
    tied: bool
    heads: int = 2
    kv_heads: int = 1
    rope_dims: int | None = None
    rope_scale: float = 1.0
    has_factors: bool = False

    @property
    def config(self) -> LlamaConfig:
        rope_dims = self.rope_dims or self.head_dim
        factors = tuple(np.linspace(1, 4, rope_dims // 2)) if self.has_factors else None
        return replace(
            BASE,
            head_dim=self.head_dim,
            heads=self.heads,
            kv_heads=self.kv_heads,
            rope_dims=rope_dims,
            rope_scale=self.rope_scale,
            rope_factors=factors,
            tied_head=self.tied,
        )

    @property
    def model(self) -> Model:
        return make_model(self.config, MIXED if self.types == "mixed" else self.types)

    def __str__(self) -> str:
        return f"{self.types}-{self.head_dim}-{'tied' if self.tied else 'untied'}"


MAIN = Case("mixed", 64, False, heads=3)
CASES = [
    MAIN,
    Case("BF16", 128, True, rope_dims=64),
    Case("Q8_0", 64, True, rope_scale=0.25),
    Case("Q4_0", 128, False, has_factors=True),
]

# Where sequences begin to decode; the rest of their context is in the pool. Lengths are one more:
# the first tokens, the edge of a page, the edge of a split (256).
SHORT, LONG = (0, 14, 15, 29), (253, 254, 255)
STARTS = SHORT + LONG
STEPS = 3
# Nine slots, two of them empty.
BATCH = [
    [(0, s), None, (1, 14 + s), (4, 253 + s), (2, 15 + s), (5, 254 + s), (3, 29 + s), None,
     (6, 255 + s)]
    for s in range(STEPS)
]  # type: list[list[Slot]]  # fmt: skip


@dataclass(frozen=True)
class Reference:
    sequences: list[Array]  # token ids
    bounds: list[Bounded]  # [1, tokens, vocab] of each sequence
    nearest: list[Array]  # [tokens, vocab]
    prefixes: list[list[Array]]  # KV by layer, as the device would have written it


@cache
def reference(case: Case) -> Reference:
    random = np.random.default_rng(7)
    vocab = case.config.vocab_size
    return refer(
        case,
        [random.integers(0, vocab, (len(at), max(at) + STEPS)) for at in (SHORT, LONG)],
    )


def refer(case: Case, batches: Sequence[Array]) -> Reference:
    """What float64 says of sequences [sequences, tokens], in batches of one length."""
    model = case.model
    weights = {n: dequantise(rows, model.types[n]) for n, rows in model.tensors.items()}
    exact = RoundedLlama(case.config, weights.__getitem__)
    found = Reference([], [], [], [])
    for ids in batches:
        bounds, near = bounded(exact, ids, copies=COPIES), exact.forward(ids, "nearest")
        for i in range(len(ids)):
            found.sequences.append(ids[i])
            found.bounds.append(Bounded(bounds.exact[i], bounds.spread[i]))
            found.nearest.append(near.logits[i])
            found.prefixes.append([kv[i] for kv in near.kv])
    return found


def run(case: Case, steps: Sequence[Sequence[Slot]], **how: Any) -> Steps:
    model, known = case.model, how.pop("known", None) or reference(case)
    sequences = how.pop("sequences", known.sequences)
    prefixes = how.pop("prefixes", known.prefixes)
    return decode(
        case.config, model.types, model.tensors, sequences, steps, prefixes=prefixes, **how
    )


def by_place(steps: Sequence[Sequence[Slot]], out: Steps) -> dict[tuple[int, int], Array]:
    """Logits [vocab] after each (sequence, position)."""
    return {
        slot: out.logits[step, at]
        for step, row in enumerate(steps)
        for at, slot in enumerate(row)
        if slot is not None
    }


@cache
def base(case: Case) -> dict[tuple[int, int], Array]:
    return by_place(BATCH, run(case, BATCH))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_off_by_no_more_than_rounding_explains(case: Case) -> None:
    check_rounding(case, base(case), reference(case))


def check_rounding(case: Case, logits: dict[tuple[int, int], Array], known: Reference) -> None:
    errors, near, worst = [], [], 0.0
    for (sequence, position), got in logits.items():
        bound = known.bounds[sequence]
        spread = bound.spread[position]
        error = got - bound.exact[position]
        errors.append(rms(error) / rms(spread))
        near.append(rms(got - known.nearest[sequence][position]) / rms(spread))
        # 16 copies measure one logit's spread within some 18 %; half a row's is its least.
        worst = max(worst, float((np.abs(error) / np.maximum(spread, rms(spread) / 2)).max()))
    print(
        f"{case}: rows {np.max(errors):.2f}, rms {np.sqrt(np.mean(np.square(errors))):.2f}", end=" "
    )
    print(f"logits {worst:.2f}; of nearest {np.max(near):.2f}, median {np.median(near):.2f}")
    # A row's errors hang together, as few roundings matter most: 3 deviations of a single row, and
    # the mean of all 21 is close to 1. Six of 1600 single logits.
    assert np.max(errors) <= 3
    assert np.sqrt(np.mean(np.square(errors))) <= 1.5
    assert worst <= 8
    # With the same roundings little is left in most rows; in the others some fell the other way.
    # One rounding more or fewer, or the norm's epsilon 1e-6, moves the median by 0.49 or more.
    assert np.median(near) <= 0.3
    assert np.max(near) <= 2


def test_a_sequence_has_the_same_bits_in_any_batch() -> None:
    wanted = base(MAIN)
    alone: list[list[Slot]] = [[(5, 254 + s)] for s in range(STEPS)]
    three: list[list[Slot]] = [[(6, 255 + s), (0, s), (2, 15 + s)] for s in range(STEPS)]
    runs = [
        (alone, run(MAIN, alone, page_seed=2, copies="eager")),
        # Another grid, another tiling, other pages, and threads in another order.
        (three, run(MAIN, three, page_seed=3, processors=132, max_length=900, order="random")),
        (three, run(MAIN, three, page_seed=4, tiling=(4, 2), order="down")),
    ]
    for steps, out in runs:
        for place, got in by_place(steps, out).items():
            np.testing.assert_array_equal(got, wanted[place])


def test_64_slots_of_two_kv_heads_are_right() -> None:
    """The largest batch, with the tiling that its plan chooses; a page's edges among its places."""
    case = Case("mixed", 64, False, heads=6, kv_heads=2)
    ids = np.random.default_rng(8).integers(0, case.config.vocab_size, (64, 34))
    known = refer(case, [ids])
    places: list[Slot] = [(i, i % ids.shape[1]) for i in range(64)]
    full = by_place([places], run(case, [places], known=known))
    assert len(full) == 64
    check_rounding(case, full, known)
    few = places[15:64:16]
    for place, got in by_place([few], run(case, [few], known=known, page_seed=2)).items():
        np.testing.assert_array_equal(got, full[place])


def test_a_replay_with_new_contents_is_right() -> None:
    """Sequences come, pause, go, change slots and cross a split; one step has none at all."""
    steps: list[list[Slot]] = [
        [(5, 254), (1, 14), None],
        [(5, 255), None, (1, 15)],
        [None, None, None],
        [(0, 0), (5, 256), (1, 16)],
        [(6, 255), (0, 1), (4, 253)],
        [(4, 254), (6, 256), None],
    ]
    out = run(MAIN, steps)
    for place, got in by_place(steps, out).items():
        np.testing.assert_array_equal(got, base(MAIN)[place])
    assert not out.tickets.any()


def test_a_step_launches_five_kernels_a_layer_and_three() -> None:
    for layers in (1, 2):
        config = replace(BASE, layers=layers)
        model = make_model(config, "Q4_0")
        out = decode(config, model.types, model.tensors, [np.arange(4)], [[(0, 0)], [(0, 1)]])
        assert (out.launches == LAUNCHES_A_LAYER * layers + OTHER_LAUNCHES).all()


def sampling(step: int, count: int, vocab: int) -> SamplingBatch:
    """Of each kind; contents change from step to step, histories grow."""
    random = np.random.default_rng(step)
    histories = [random.integers(0, vocab, 3 + step).astype(np.int32) for _ in range(count)]
    biases = random.integers(0, vocab, 2 * count).astype(np.int32)
    return replace(
        drawn_of_each_kind(count, random),
        history_ids=np.concatenate(histories),
        history_starts=np.arange(count + 1, dtype=np.int32) * (3 + step),
        history_prompts=np.full(count, 2, np.int32),
        bias_ids=biases,
        bias_values=random.normal(size=2 * count).astype(np.float32),
        bias_starts=np.arange(count + 1, dtype=np.int32) * 2,
        top_logprobs=np.full(count, 3, np.int32),
    )


def on_cpu(logits: Array, batch: SamplingBatch) -> Array:
    """Token ids of the CPU's own sampler."""
    width = -logits.shape[1] % 4
    arrays = {"logits": np.pad(logits, ((0, 0), (0, width)))}
    arrays |= {name: getattr(batch, name) for name in SamplingBatch.__slots__}
    out = PLAIN.run("sample_on_cpu", arrays, {"vocab": logits.shape[1], "top_width": 20})
    return out["token_ids"]


def test_tokens_are_the_cpu_s_and_feed_the_next_step() -> None:
    count, vocab = len(STARTS), MAIN.config.vocab_size
    batches = [sampling(step, count, vocab) for step in range(STEPS)]
    steps: list[list[Slot]] = [
        [(i, start + s) for i, start in enumerate(STARTS)] for s in range(STEPS)
    ]
    out = run(MAIN, steps, sampling=batches, feeds_itself=True)
    assert out.finite.all()
    for step, batch in enumerate(batches):
        drawn, logits = out.token_ids[step], out.logits[step]
        np.testing.assert_array_equal(drawn, on_cpu(logits, batch))
        np.testing.assert_array_equal(drawn, sampling_reference.sample(logits, batch).token_ids)
    assert len(np.unique(out.token_ids)) > 5
    # Each token went into the next step: given from outside, it leads to the same bits.
    sequences = [ids.copy() for ids in reference(MAIN).sequences]
    for step in range(1, STEPS):
        for i, start in enumerate(STARTS):
            sequences[i][start + step] = out.token_ids[step - 1, i]
    given = run(MAIN, steps, sequences=sequences)
    np.testing.assert_array_equal(given.logits, out.logits)


def test_a_step_under_address_sanitizer() -> None:
    steps: list[list[Slot]] = [[(0, 0), (5, 254), None], [(0, 1), (5, 255), None]]
    out = run(MAIN, steps, emulated=Emulated("asan"))
    for place, got in by_place(steps, out).items():
        np.testing.assert_array_equal(got, base(MAIN)[place])


def test_a_layer_s_launches_beside_one_another_race_for_nothing() -> None:
    """ThreadSanitizer on a step of one layer: QKV and attention beside it are 1,024 threads."""
    config = replace(BASE, layers=1, heads=1, hidden_size=64, ffn_size=64, vocab_size=48)
    model = make_model(config, "Q4_0")
    steps: list[list[Slot]] = [[(0, 0)], [(0, 1)]]
    how: dict[str, Any] = {"tiling": (4, 1), "processors": 1}
    args = (config, model.types, model.tensors, [np.arange(4)], steps)
    plain = decode(*args, **how)
    raced = decode(*args, **how, emulated=Emulated("tsan"), order="random", copies="eager")
    for step in range(len(steps)):
        np.testing.assert_array_equal(raced.logits[step, 0], plain.logits[step, 0])


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (replace(BASE, head_dim=32, rope_dims=32), "heads must have 64 or 128 dimensions"),
        (replace(BASE, heads=9), "1 to 8 query heads must share a KV head"),
        (replace(BASE, hidden_size=100), "the hidden size must be a multiple of 8"),
        (replace(BASE, ffn_size=100), "a layer's matrix is missing, has another shape"),
    ],
    ids=["head size", "group", "hidden size", "columns"],
)
def test_a_model_that_does_not_fit_is_refused_before_a_launch(
    config: LlamaConfig, why: str
) -> None:
    model = make_model(config, "BF16")
    with pytest.raises(Fault, match=f"unfit: {why}"):
        decode(config, model.types, model.tensors, [np.arange(4)], [[(0, 0)]])


def test_a_plan_beyond_64_slots_is_refused() -> None:
    model = make_model(BASE, "Q4_0")
    with pytest.raises(Fault, match="error 1"):
        decode(BASE, model.types, model.tensors, [np.arange(4)], [[(0, 0)] + [None] * 64])


@pytest.mark.parametrize("cols", [32, 96, 576])
@pytest.mark.parametrize("type_", WEIGHTS)
def test_an_embedding_is_the_row_as_dequantised_and_zeros_where_there_is_none(
    type_: str, cols: int
) -> None:
    random = np.random.default_rng(cols)
    rows = 37
    encoded = encode(random.normal(size=(rows, cols)).astype(np.float32), type_)
    ids = np.array([*range(rows), 0, -1, rows, np.iinfo(np.int32).min], np.int32)
    scalars = {"type": WEIGHTS.index(type_), "rows": rows, "cols": cols}
    norm = random.uniform(0.2, 2, cols).astype(np.float32)
    arrays: dict[str, Array] = {"weights": encoded, "token_ids": ids, "next": norm}
    out = PLAIN.run("embed", arrays, scalars, copies="eager")
    wanted = np.zeros((len(ids), cols), np.float32)
    wanted[: rows + 1] = dequantise(encoded, type_)[ids[: rows + 1]]
    np.testing.assert_array_equal(out["x"], wanted)
    scaled, squares = left_for_norm(out["x"], norm)
    np.testing.assert_array_equal(out["scaled"], scaled)
    # At most 9 roundings on a square's way; what pads the sums is not written.
    np.testing.assert_allclose(out["squares"], squares, rtol=9 * 2.0**-24)
