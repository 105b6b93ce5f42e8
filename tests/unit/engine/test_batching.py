"""Steps as arrays: what is used again from the step before is what would be laid out anew."""

import dataclasses
import random
from collections.abc import Sequence as Seq

import numpy as np
import pytest

from servewright_runtime.engine.batching import Batcher
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.requests import Request, SamplingParams
from servewright_runtime.engine.scheduler import Chunk
from servewright_runtime.models.runner import StepBatch
from support.paged_model import PagedModel, loaded
from support.schedules import Counts, SteppedEngine, run_randomly


class CheckedBatcher(Batcher):
    """Compares each step with the same one laid out by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.steps = 0

    def build(self, chunks: Seq[Chunk]) -> StepBatch:
        before = self._decode
        batch, alone = super().build(chunks), Batcher().build(chunks)
        self.steps += 1
        self.kept += batch is before
        for name in ("token_ids", "seq_starts", "context_starts", "sample_tokens"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(alone, name), name)
        for field in dataclasses.fields(batch.sampling):
            got, wanted = getattr(batch.sampling, field.name), getattr(alone.sampling, field.name)
            np.testing.assert_array_equal(got, wanted, field.name)
            assert got.dtype == wanted.dtype
        for row, chunk in zip(batch.block_tables, chunks, strict=True):
            blocks = chunk.sequence.blocks
            assert row[: len(blocks)].tolist() == blocks.tolist()
            assert (row[len(blocks) :] == -1).all()
        return batch


def request(rng: random.Random, index: int) -> Request:
    sampling = SamplingParams(
        temperature=rng.choice([0.0, 0.7]),
        seed=index,
        frequency_penalty=rng.choice([0.0, 0.0, 0.0, 0.5]),
        logit_bias=rng.choice([(), ((3, 1.0),)]),
        max_tokens=rng.randint(1, 150),
        ignore_eos=True,
    )
    prompt = tuple(rng.randrange(200) for _ in range(rng.randint(1, 40)))
    return Request(f"r{index}", prompt, sampling)


def test_random_schedules_give_the_arrays_that_a_step_alone_has() -> None:
    totals, kept, steps = Counts(), 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        config = EngineConfig("m", 200, rng.choice([1, 3, 6]), 40, 16, 100, prefix_cache=True)
        stepped = SteppedEngine(loaded(PagedModel(rng.choice([13, 20, 80]))), config, totals)
        batcher = stepped.engine._batcher = CheckedBatcher()
        run_randomly(stepped, [request(rng, i) for i in range(8)], rng, cancel=0.02)
        kept, steps = kept + batcher.kept, steps + batcher.steps
    assert totals.preempted > 20, "too roomy for sequences to lose their blocks"
    assert steps // 4 < kept < steps, "both ways must be taken"


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_a_step_with_penalties_is_laid_out_anew(penalty: float) -> None:
    config = EngineConfig("m", 200, 1, 40, 16, 10, prefix_cache=False)
    stepped = SteppedEngine(loaded(PagedModel(20)), config)
    batcher = stepped.engine._batcher = CheckedBatcher()
    sampling = SamplingParams(frequency_penalty=penalty, max_tokens=32, ignore_eos=True)
    stepped.submit(Request("r", (1, 2, 3), sampling))
    stepped.run()
    assert (batcher.kept == 0) is (penalty > 0)
