"""The CUDA runner, whole, on the emulator: numbers, bits, draws, passes, refusals.

Numbers: small random models against float64 on the same weights. A logit's bound is how far
rounding to bf16 by chance moves it (support/rounded_llama.py), that of dense weights included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from servewright_runtime.cuda.staging import MAX_BIASES
from servewright_runtime.errors import StartError
from servewright_runtime.models import sampling_reference
from servewright_runtime.models.runner import BLOCK_TOKENS, LlamaConfig, SamplingBatch
from support.cuda_runner import CountedDevice, make_runner
from support.emulated import Array
from support.native_model import SMALL, Model, logits_of, make_model
from support.native_model import decode as dequantise
from support.rounded_llama import RoundedLlama, rms
from support.steps import Piece, drawn_of_each_kind, forced_logits, make_batch

BASE = replace(
    SMALL,
    hidden_size=96,  # no multiple of a column tile
    heads=3,
    kv_heads=1,
    head_dim=64,
    rope_dims=64,
    ffn_size=96,
)
MIXED = {  # Q, K and V of two types, quantised down beside float head
    "attn_q": "Q4_1", "attn_k": "Q4_1", "attn_v": "Q8_0", "attn_output": "Q4_0",
    "ffn_gate": "Q4_1", "ffn_up": "Q4_1", "ffn_down": "Q8_0", "output": "BF16",
    "token_embd": "Q4_1",
}  # fmt: skip
PROMPTS = (33, 18, 5)
LENGTHS = (37, 23, 8)
COPIES = 8  # of the model with random rounding
ALWAYS, NEVER = 1 << 20, 0  # tokens up to which a prefill takes the fused projections


@dataclass(frozen=True)
class Case:
    types: str  # of all matrices, or "mixed"
    head_dim: int = 64
    heads: int = 3
    tied: bool = False

    @property
    def config(self) -> LlamaConfig:
        dim = self.head_dim
        return replace(BASE, head_dim=dim, rope_dims=dim, heads=self.heads, tied_head=self.tied)

    @property
    def model(self) -> Model:
        return make_model(self.config, MIXED if self.types == "mixed" else self.types)

    @property
    def sequences(self) -> list[list[int]]:
        random = np.random.default_rng(7)
        return [random.integers(0, self.config.vocab_size, n).tolist() for n in LENGTHS]

    def __str__(self) -> str:
        return f"{self.types}-{self.head_dim}-{self.heads}"


MAIN = Case("mixed")
CASES = [MAIN, Case("BF16", 128, 1, True), Case("Q8_0", 64, 2), Case("Q4_0", 128, 2), Case("Q4_1")]


@cache
def reference(case: Case, has_dense_weights: bool) -> list[tuple[Array, Array]]:
    """Of each sequence, logits without rounding and how rounding moves them: [tokens, vocab]."""
    model = case.model
    exact = {n: dequantise(rows, model.types[n]) for n, rows in model.tensors.items()}
    found = []
    for tokens in case.sequences:
        ids = np.array([tokens])
        wanted = RoundedLlama(case.config, exact.__getitem__).forward(ids).logits[0]
        squares = np.zeros_like(wanted)
        for seed in range(COPIES):
            weights = dict(exact)
            if has_dense_weights:
                random = np.random.default_rng(seed)
                for name, values in exact.items():
                    if model.types[name] not in ("F32", "BF16"):
                        unit = np.ldexp(1.0, np.frexp(values)[1] - 8)
                        weights[name] = values + unit * random.uniform(-0.5, 0.5, values.shape)
            moved = RoundedLlama(case.config, weights.__getitem__)
            squares += (moved.forward(ids, "random", seed=seed).logits[0] - wanted) ** 2
        found.append((wanted, np.sqrt(squares / COPIES)))
    return found


@pytest.mark.parametrize("fused_tokens", [ALWAYS, NEVER], ids=["fused", "dense"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_off_by_no_more_than_rounding_explains(case: Case, fused_tokens: int) -> None:
    device = CountedDevice()
    runner = make_runner(case.model, fused_tokens=fused_tokens, device=device)
    found = forced_logits(runner, case.sequences, PROMPTS)
    runner.close()
    assert (device.products > 0) == (fused_tokens == NEVER)
    errors = []
    for got, prompt, (wanted, spread) in zip(
        found, PROMPTS, reference(case, fused_tokens == NEVER), strict=True
    ):
        off = np.subtract(got, wanted[prompt - 1 :], dtype=np.float64)
        errors += (rms(off) / rms(spread[prompt - 1 :])).tolist()
    print(f"{case}: rows {np.max(errors):.2f}, rms {np.sqrt(np.mean(np.square(errors))):.2f}")
    assert np.max(errors) <= 3
    assert np.sqrt(np.mean(np.square(errors))) <= 1.5


Plan = Sequence[Sequence[tuple[int, int]]]  # steps of (sequence, tokens)


def logits_after(
    plan: Plan, case: Case = MAIN, *, fused_tokens: int = ALWAYS, seed: int = 0
) -> dict[tuple[int, int], Array]:
    """Logits by (sequence, position) of a runner that takes these steps, on pages of its own."""
    runner = make_runner(case.model, fused_tokens=fused_tokens)
    order = np.random.default_rng(seed).permutation(runner.num_blocks).tolist()
    blocks = [[order.pop() for _ in range(-(-len(s) // 16))] for s in case.sequences]
    done, found = [0] * len(blocks), {}
    for step in plan:
        pieces, places = [], []
        for index, count in step:
            at = done[index]
            pieces.append(Piece(case.sequences[index][at : at + count], at, blocks[index]))
            places += [(index, at + i) for i in range(count)]
            done[index] += count
        for place, row in zip(places, logits_of(runner.step(make_batch(pieces))), strict=True):
            found[place] = row.copy()
    runner.close()
    return found


def test_a_decoding_sequence_has_the_same_bits_in_any_company() -> None:
    prompts: Plan = [[(0, 33)], [(1, 18)], [(2, 5)]]
    alone = logits_after([*prompts, *([(i, 1)] for i in range(3) for _ in range(3))])
    together = logits_after([*prompts, *([[(2, 1), (0, 1), (1, 1)]] * 3)], seed=1)
    beside = logits_after(
        [[(0, 33)], [(1, 18)], [(0, 1), (1, 1), (2, 5)], [(2, 1), (1, 1)]], seed=2
    )
    for index, prompt in enumerate(PROMPTS):
        for position in range(prompt, prompt + 3):
            np.testing.assert_array_equal(
                alone[index, position], together[index, position], str((index, position))
            )
    for place, row in beside.items():
        np.testing.assert_array_equal(row, alone[place], str(place))


def test_a_fused_prefill_has_the_same_bits_however_it_is_cut() -> None:
    whole = logits_after([[(0, 33)], [(1, 18)]])
    cut = logits_after([[(0, 2), (1, 7)], [(0, 14)], [(0, 17), (1, 11)]], seed=1)
    for place, row in whole.items():
        np.testing.assert_array_equal(row, cut[place], str(place))


def test_a_dense_prefill_is_within_rounding_however_it_is_cut() -> None:
    whole = logits_after([[(0, 33)], [(1, 18)]], fused_tokens=NEVER)
    cut = logits_after([[(0, 2), (1, 7)], [(0, 14)], [(0, 17), (1, 11)]], fused_tokens=NEVER)
    known = reference(MAIN, True)
    for (index, position), row in whole.items():
        off = rms(np.subtract(row, cut[index, position], dtype=np.float64)) / rms(
            known[index][1][position]
        )
        assert off <= 3, (index, position)


def test_more_sequences_tokens_and_draws_than_a_pass_holds_are_cut() -> None:
    """Nine decodes for four slots, a prompt of three passes, and draws of all tokens."""
    case = MAIN
    model, random = case.model, np.random.default_rng(3)
    device = CountedDevice()
    runner = make_runner(model, device=device, max_batch=4, step_tokens=16)
    ids = [random.integers(0, case.config.vocab_size, 3).tolist() for _ in range(9)]
    runner.step(make_batch([Piece(row[:2], 0, [i]) for i, row in enumerate(ids)]))
    before = device.replayed
    tail = [Piece(row[2:], 2, [i]) for i, row in enumerate(ids)]
    long = Piece(case.sequences[0], 0, [40, 30, 20])
    together = logits_of(runner.step(make_batch([*tail[:4], long, *tail[4:]])))
    assert device.replayed - before == 3
    for i, piece in enumerate(tail):
        alone = logits_of(runner.step(make_batch([piece])))
        np.testing.assert_array_equal(alone[0], together[i if i < 4 else i + len(long.tokens)])
    wanted = logits_after([[(0, len(long.tokens))]])
    for position in range(len(long.tokens)):
        np.testing.assert_array_equal(together[4 + position], wanted[0, position])
    runner.close()


def sampling(count: int, vocab: int) -> SamplingBatch:
    """Of each kind; some rows with histories and biases."""
    random = np.random.default_rng(5)
    lengths = np.array([0, 9, 3, 0, 17, 0, 5])[:count]
    biases = np.array([2, 0, 0, 1, 3, 0, 0])[:count]
    return replace(
        drawn_of_each_kind(count, random),
        history_ids=random.integers(0, vocab, lengths.sum()).astype(np.int32),
        history_starts=np.cumsum([0, *lengths], dtype=np.int32),
        history_prompts=(lengths // 2).astype(np.int32),
        bias_ids=random.integers(0, vocab, biases.sum()).astype(np.int32),
        bias_values=random.normal(size=biases.sum()).astype(np.float32) * 3,
        bias_starts=np.cumsum([0, *biases], dtype=np.int32),
        logprobs=np.array([1, 0, 1, 1, 1, 0, 1], np.uint8)[:count],
        top_logprobs=np.array([3, 0, 0, 20, 1, 0, 2], np.int32)[:count],
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5, 1, 4, 3]])
def test_draws_of_a_mixed_batch_are_the_reference_s_in_the_batch_s_order(order: list[int]) -> None:
    config = MAIN.config
    runner = make_runner(MAIN.model)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 40).tolist()
    known = [Piece(tokens[i : i + 6], 0, [2 * i, 2 * i + 1]) for i in range(4)]
    runner.step(make_batch(known, sample=[]))
    # Three prompts between four that decode; a prompt draws from its last token.
    pieces = [
        *(Piece([tokens[9 + i]], 6, [2 * i, 2 * i + 1]) for i in range(4)),
        *(Piece(tokens[i : i + 7], 0, [2 * i, 2 * i + 1]) for i in range(4, 7)),
    ]
    pieces = [pieces[i] for i in order]
    ends = np.cumsum([len(piece.tokens) for piece in pieces]) - 1
    batch = make_batch(pieces, sample=ends.tolist())
    batch = replace(batch, sampling=sampling(len(pieces), config.vocab_size))
    result = runner.step(batch)
    wanted = sampling_reference.sample(logits_of(result), batch.sampling)
    np.testing.assert_array_equal(result.token_ids, wanted.token_ids)
    np.testing.assert_array_equal(result.top_ids.shape, wanted.top_ids.shape)
    for row in range(len(pieces)):
        if batch.sampling.logprobs[row]:
            assert result.logprobs[row] == pytest.approx(wanted.logprobs[row], abs=1e-5)
        best = batch.sampling.top_logprobs[row]
        np.testing.assert_array_equal(result.top_ids[row, :best], wanted.top_ids[row, :best])
        np.testing.assert_allclose(
            result.top_logprobs[row, :best], wanted.top_logprobs[row, :best], atol=1e-5
        )
    quiet = runner.step(replace(batch, return_logits=False))
    np.testing.assert_array_equal(quiet.token_ids, result.token_ids)
    assert quiet.logits is None
    runner.close()


def test_a_step_waits_once_and_makes_no_buffer_that_the_one_before_had() -> None:
    device = CountedDevice()
    runner = make_runner(MAIN.model, device=device)
    pieces = [Piece([1, 2, 3], 0, [0]), Piece([4], 0, [1]), Piece([5], 0, [2])]
    batch = make_batch(pieces, sample=[2, 3, 4], logits=False)
    runner.step(batch)
    waits, buffers, replays = device.waits, device.buffers, device.replayed
    for _ in range(3):
        runner.step(batch)
    assert (device.waits, device.buffers) == (waits + 3, buffers)
    assert device.replayed == replays + 3
    assert device.recorded == 3  # for 1, 2 and 4 slots
    runner.close()


def test_logits_that_are_not_finite_are_told() -> None:
    model = make_model(MAIN.config, MIXED)
    tensors = dict(model.tensors)
    broken = np.full((1, 96), np.nan, np.float32)
    tensors["output_norm.weight"] = broken.view(np.uint8)
    runner = make_runner(replace(model, tensors=tensors))
    assert not runner.step(make_batch([Piece([1, 2], 0, [0])])).finite
    assert not runner.step(make_batch([Piece([1], 2, [0])])).finite
    runner.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[object]:
    made = make_runner(make_model(BASE, "Q4_0"), max_length=64)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("pieces", "columns", "why"),
    [
        ([Piece([77], 0, [0])], {}, r"token_ids\[0\] must be in 0\.\.76, got 77"),
        ([Piece([1], 0, [64])], {}, r"block_tables\[0\] must be in 0\.\.63, got 64"),
        ([Piece([1], 64, [0, 1, 2, 3, 4])], {}, "context_starts asks for 65, of at most 64"),
        (
            [Piece([1], 0, [0])],
            {"top_logprobs": np.array([21], np.int32)},
            "top_logprobs asks for 21, of at most 20",
        ),
        (
            [Piece([1], 0, [0])],
            {
                "bias_ids": np.zeros(MAX_BIASES + 1, np.int32),
                "bias_values": np.zeros(MAX_BIASES + 1, np.float32),
                "bias_starts": np.array([0, MAX_BIASES + 1], np.int32),
            },
            f"bias_starts asks for {MAX_BIASES + 1}, of at most {MAX_BIASES}",
        ),
    ],
    ids=["token", "block", "length", "top logprobs", "biases"],
)
def test_a_step_out_of_range_is_refused(
    runner: object, pieces: list[Piece], columns: dict[str, Array], why: str
) -> None:
    batch = make_batch(pieces)
    batch = replace(batch, sampling=replace(batch.sampling, **columns))
    with pytest.raises(ValueError, match=why):
        runner.step(batch)  # type: ignore[attr-defined]


def test_loading_refuses_what_does_not_fit_and_names_what_is_missing() -> None:
    model = make_model(BASE, "Q8_0")
    runner = make_runner(replace(model, tensors={}), seal=False)
    name = "blk.0.attn_q.weight"
    rows = model.tensors[name]
    for arguments, why in (
        (("blk.9.attn_q.weight", "Q8_0", 0, rows), "the model has no tensor blk.9.attn_q.weight"),
        ((name, "Q4_0", 0, rows), "must be Q8_0, got Q4_0"),
        ((name, "Q8_0", 0, rows[:, :-1]), r"rows must be uint8 \[rows, 102\], got uint8"),
        ((name, "Q8_0", 0, rows[:17]), "multiples of 16"),
        ((name, "Q8_0", 8, rows[:16]), "multiples of 16"),
        ((name, "Q8_0", 16, rows), "got 16 to 208"),
    ):
        with pytest.raises(ValueError, match=why):
            runner.load(*arguments)
    assert runner.weights_bytes == 0
    runner.load(name, "Q8_0", 32, rows[32:])
    with pytest.raises(ValueError, match="rows of 16 to 64 have been loaded before"):
        runner.load(name, "Q8_0", 16, rows[16:64])
    runner.load(name, "Q8_0", 0, rows[:32])
    with pytest.raises(ValueError, match="have not been loaded"):
        runner.seal()
    runner.close()


def test_the_cache_may_take_what_weights_and_workspaces_leave() -> None:
    model = make_model(BASE, "BF16")
    asked: list[int] = []
    for free in (1 << 30, (1 << 30) + 4096):
        runner = make_runner(model, device=CountedDevice(free), on_cache=asked.append, seal=False)
        runner.close()
    assert asked[1] - asked[0] == 4096
    assert 0 < asked[0] < 1 << 30


def test_too_little_memory_is_told_with_the_numbers_and_the_cure() -> None:
    model = make_model(BASE, "BF16")
    with pytest.raises(StartError, match=r"1000 bytes of memory free, but the weights take \d+"):
        make_runner(model, device=CountedDevice(1000))
    with pytest.raises(StartError, match=r"beside the weights the workspaces take \d+; lower"):
        make_runner(model, device=CountedDevice(500_000))


def test_the_pool_takes_the_bytes_that_the_engine_s_plan_counts_with() -> None:
    runner = make_runner(make_model(BASE, "BF16"), num_blocks=8, seal=False)
    assert runner._pool.nbytes == BASE.kv_bytes_per_token * BLOCK_TOKENS * 8
    runner.close()
