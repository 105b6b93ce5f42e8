"""Same request, same bytes: the fused path's promise, by random schedules.

A request's tokens and logprobs are bit-equal alone on one thread, and in any company: batched,
chunked, with prefix hits, preempted, on one thread or two, greedy or drawn with filters and
penalties. Each CPU variant is held to it for itself.
"""

import hashlib
import random
import struct
from pathlib import Path

import pytest

from servewright_runtime import native
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.requests import Request, SamplingParams
from servewright_runtime.models import registry
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.runner import BLOCK_TOKENS, LlamaConfig
from support.schedules import Counts, Outcome, SteppedEngine, run_randomly
from support.tiny import make_tiny_gguf

SCHEDULES = 200  # shared out over tensor types, for each variant
TENSOR_TYPES = ("Q4_0", "Q4_1", "Q8_0", "BF16")
MAX_LEN = 80

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"fused kernels: {native.unavailable()}"
)


def load(path: Path, num_blocks: int, threads: int) -> LoadedModel:
    def blocks(_: LlamaConfig) -> int:
        return num_blocks

    return registry.load(
        path,
        format=None,
        kernel="Fused",
        num_blocks=blocks,
        threads=threads,
        progress=lambda done, total: None,
    )


def random_sampling(rng: random.Random) -> SamplingParams:
    greedy = rng.random() < 0.4
    return SamplingParams(
        temperature=0.0 if greedy else rng.choice([0.5, 1.0, 1.5]),
        top_p=rng.choice([1.0, 0.9, 0.5]),
        top_k=rng.choice([0, 1, 5, 40]),
        min_p=rng.choice([0.0, 0.05]),
        seed=rng.randrange(2**64),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.3]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        logit_bias=rng.choice([(), ((5, 2.0), (300, -100.0))]),
        logprobs=True,
        top_logprobs=rng.choice([0, 3]),
        max_tokens=rng.randint(1, 24),
        ignore_eos=True,
    )


def random_requests(rng: random.Random, vocab_size: int) -> list[Request]:
    stem = [rng.randrange(vocab_size) for _ in range(48)]
    requests = []
    for index in range(rng.randint(2, 6)):
        tail = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 20))]
        prompt = stem[: rng.choice([0, 16, 33, 48])] + tail
        requests.append(Request(f"r{index}", tuple(prompt), random_sampling(rng)))
    return requests


def fingerprint(outcome: Outcome) -> str:
    """Hash of all tokens and of the bits of all logprobs."""
    digest = hashlib.sha256()
    for token, logprob, top in outcome.logprobs:
        digest.update(struct.pack("<qd", token, logprob))
        for other, value in top:
            digest.update(struct.pack("<qd", other, value))
    return digest.hexdigest()


@pytest.mark.parametrize("variant", native.variants())
def test_a_reply_does_not_depend_on_company_chunks_cache_preemption_or_threads(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEWRIGHT_CPU", variant)
    totals = Counts()
    for number, tensor_type in enumerate(TENSOR_TYPES):
        path = make_tiny_gguf(tmp_path / f"{tensor_type}.gguf", seed=7, tensor_type=tensor_type)
        roomy = load(path, 64, threads=1)
        alone = EngineConfig("m", MAX_LEN, 1, MAX_LEN, 1, 100, prefix_cache=False)
        tight = {threads: load(path, MAX_LEN // BLOCK_TOKENS + 2, threads) for threads in (1, 2)}
        for seed in range(number, SCHEDULES, len(TENSOR_TYPES)):
            rng = random.Random(seed)
            requests = random_requests(rng, roomy.runner.config.vocab_size)
            expected = {}
            for request in requests:
                single = SteppedEngine(roomy, alone)
                single.submit(request)
                single.run()
                expected[request.request_id] = fingerprint(single.outcomes[request.request_id])
            batch = rng.choice([1, 3, 6])
            config = EngineConfig(
                name="m",
                max_model_len=MAX_LEN,
                max_batch=batch,
                max_step_tokens=batch + rng.choice([0, 5, 30, 100]),
                mixed_prefill_tokens=rng.choice([1, 10, 100]),
                max_queued=100,
                prefix_cache=rng.random() < 0.7,
            )
            stepped = SteppedEngine(tight[rng.choice([1, 2])], config, totals)
            run_randomly(stepped, requests, rng)
            got = {name: fingerprint(outcome) for name, outcome in stepped.outcomes.items()}
            assert got == expected, f"variant {variant}, {tensor_type}, schedule {seed}"
        for model in (roomy, *tight.values()):
            model.close()
    assert totals.preempted > 20
    assert totals.prefix_hits > 500
