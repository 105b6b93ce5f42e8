"""The scheduler under random schedules: every request gets what it would get alone."""

import random

import pytest

from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.observer import NullObserver, StepStats
from servewright_runtime.engine.requests import FinishReason, Request, SamplingParams
from servewright_runtime.models.runner import BLOCK_TOKENS, StepBatch
from support.paged_model import PagedModel, expected_tokens, loaded
from support.schedules import Counts, SteppedEngine, ended_well, run_randomly


def random_config(rng: random.Random) -> tuple[EngineConfig, int]:
    """A config and a number of blocks, often far too few for what will run."""
    max_len = rng.choice([40, 64, 100])
    max_batch = rng.choice([1, 2, 5, 12])
    config = EngineConfig(
        name="m",
        max_model_len=max_len,
        max_batch=max_batch,
        max_step_tokens=max_batch + rng.choice([0, 3, 16, 64]),
        mixed_prefill_tokens=rng.choice([1, 7, 64]),
        max_queued=1000,
        prefix_cache=rng.random() < 0.7,
    )
    return config, -(-max_len // BLOCK_TOKENS) + rng.choice([0, 1, 3, 20])


def random_requests(rng: random.Random, max_len: int) -> list[Request]:
    """Requests of which many begin alike."""
    stems = [[rng.randrange(200) for _ in range(48)] for _ in range(2)]
    requests = []
    for index in range(rng.randint(1, 14)):
        stem = rng.choice(stems)[: rng.choice([0, 16, 17, 32, 48])]
        tail = [rng.randrange(200) for _ in range(rng.randint(1, 30))]
        sampling = SamplingParams(seed=rng.choice([0, index]), max_tokens=rng.randint(1, 40))
        requests.append(Request(f"r{index}", tuple((stem + tail)[: max_len - 1]), sampling))
    return requests


def test_random_schedules_change_nothing_and_leak_nothing() -> None:
    totals = Counts()
    for seed in range(300):
        rng = random.Random(seed)
        config, num_blocks = random_config(rng)
        requests = random_requests(rng, config.max_model_len)
        stepped = SteppedEngine(loaded(PagedModel(num_blocks)), config, totals)
        run_randomly(stepped, requests, rng, cancel=0.1 if seed % 3 == 0 else 0.0)
        for request in requests:
            outcome = stepped.outcomes[request.request_id]
            assert outcome.last is not None
            assert outcome.last.usage is not None
            assert outcome.last.usage.completion_tokens == len(outcome.tokens)
            room = config.max_model_len - len(request.prompt_ids)
            count = min(request.sampling.max_tokens, room)
            alone = expected_tokens(request.prompt_ids, count, seed=request.sampling.seed)
            if ended_well(outcome):
                assert outcome.tokens == alone, f"seed {seed}, {request.request_id}"
            else:
                assert outcome.last.finish_reason is FinishReason.CANCELLED
                assert outcome.tokens == alone[: len(outcome.tokens)]
        assert stepped.engine.stats().kv_blocks_used == 0
    assert totals.preempted > 100, "the schedules were not tight enough to test preemption"
    assert totals.prefix_hits > 1000, "the prompts were not alike enough to test prefix hits"


def test_requests_end_in_the_order_of_arrival_when_they_are_alike() -> None:
    config = EngineConfig("m", 64, 2, 2 + 16, 16, 100, prefix_cache=False)
    stepped = SteppedEngine(loaded(PagedModel(4)), config)
    names = [f"r{i}" for i in range(12)]
    for index, name in enumerate(names):
        prompt = tuple(range(index, index + 20))
        stepped.submit(Request(name, prompt, SamplingParams(max_tokens=20)))
    ended: list[str] = []
    while stepped.alive:
        stepped.step()
        ended += [n for n in names if n not in ended and n not in stepped.alive]
    assert ended == names


def test_a_long_prompt_does_not_stop_those_that_decode() -> None:
    drawn: list[int] = []
    model = PagedModel(64, on_step=lambda batch: drawn.append(len(batch.sample_tokens)))
    stepped = SteppedEngine(loaded(model), EngineConfig("m", 600, 4, 20, 16, 10, prefix_cache=True))
    stepped.submit(Request("short", (1, 2, 3), SamplingParams(max_tokens=40)))
    stepped.step()
    stepped.submit(Request("long", tuple(range(200)) * 2, SamplingParams(max_tokens=1)))
    while "long" in stepped.alive:
        stepped.step()
        assert drawn[-1] >= 1, "a step in which nobody got a token"
    assert len(stepped.outcomes["short"].tokens) > 20


def test_a_step_that_decodes_prefills_little_and_one_that_does_not_prefills_much() -> None:
    steps: list[tuple[int, int]] = []  # tokens, and sequences that drew one
    model = PagedModel(64, on_step=lambda b: steps.append((len(b.token_ids), len(b.sample_tokens))))
    config = EngineConfig("m", 200, 4, 100, 16, 10, prefix_cache=False)
    stepped = SteppedEngine(loaded(model), config)
    stepped.submit(Request("first", tuple(range(120)), SamplingParams(max_tokens=40)))
    stepped.step()
    stepped.step()
    for name in ("second", "third"):
        stepped.submit(Request(name, tuple(range(30)), SamplingParams(max_tokens=40)))
    for _ in range(4):
        stepped.step()
    # The second's 30 take two steps, and what is left of the later one begins the third's.
    assert steps == [(100, 0), (20, 1), (1 + 16, 1), (1 + 14 + 2, 2), (2 + 16, 2), (2 + 12, 3)]


def test_requests_that_came_together_leave_each_other_s_step() -> None:
    """So that each one's successor is prefilled alone and at once."""
    first_tokens: list[int] = []

    class Counts(NullObserver):
        def on_step(self, stats: StepStats) -> None:
            first_tokens.append(len(stats.first_token_s))

    config = EngineConfig("m", 200, 8, 100, 20, 10, prefix_cache=False)
    stepped = SteppedEngine(loaded(PagedModel(200)), config, Counts())
    names = iter(range(1000))

    def submit() -> None:
        name = next(names)
        prompt = tuple(range(name, name + 20))
        stepped.submit(Request(f"r{name}", prompt, SamplingParams(max_tokens=30)))

    for _ in range(8):
        submit()
    for _ in range(100):
        stepped.step()
        for _ in range(8 - len(stepped.alive)):
            submit()
    assert first_tokens[0] == 5
    assert max(first_tokens[1:]) == 1


def test_a_second_request_with_the_same_beginning_computes_only_the_rest() -> None:
    computed: list[int] = []

    def count(batch: StepBatch) -> None:
        computed.append(len(batch.token_ids))

    model = PagedModel(16, on_step=count)
    stepped = SteppedEngine(
        loaded(model),
        EngineConfig("m", 100, 4, 100, 16, 10, prefix_cache=True),
    )
    for name in ("first", "second"):
        stepped.submit(Request(name, tuple(range(50)), SamplingParams(max_tokens=1)))
        stepped.run()
    assert computed == [50, 50 - 3 * BLOCK_TOKENS]
    last = stepped.outcomes["second"].last
    assert last is not None
    assert last.usage is not None
    assert last.usage.cached_tokens == 3 * BLOCK_TOKENS


@pytest.mark.parametrize("prompt_tokens", [15, 16, 17, 31, 32, 33])
def test_a_whole_prompt_in_the_cache_still_computes_its_last_token(prompt_tokens: int) -> None:
    stepped = SteppedEngine(
        loaded(PagedModel(16)),
        EngineConfig("m", 100, 4, 100, 16, 10, prefix_cache=True),
    )
    prompt = tuple(range(prompt_tokens))
    for name in ("first", "second"):
        stepped.submit(Request(name, prompt, SamplingParams(max_tokens=3)))
        stepped.run()
        assert stepped.outcomes[name].tokens == expected_tokens(prompt, 3)
