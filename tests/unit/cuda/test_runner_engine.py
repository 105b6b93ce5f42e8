"""The whole engine on the CUDA runner, emulated: random schedules over tiny model files.

What a reply may be is said by the float64 model: each greedy token is its best but for rounding,
and each logprob is its own but for rounding, in any company, chunked, with prefix hits, preempted.
Equal bits are promised for decoding alone (test_runner.py).
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

from servewright_runtime.config import KvPlan
from servewright_runtime.cuda import availability
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.observer import NullObserver
from servewright_runtime.engine.requests import Output, Request, SamplingParams
from servewright_runtime.errors import ConfigError
from servewright_runtime.models import registry
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.runner import BLOCK_TOKENS, LlamaConfig
from support.cuda_runner import use_test_device
from support.emulated_module import emulated_module
from support.native_model import decode as dequantise
from support.rounded_llama import RoundedLlama, rms
from support.schedules import Counts, Outcome, SteppedEngine, ended_well, run_randomly
from support.tiny import make_tiny_gguf, tiny_shape

MAX_LEN = 80
TYPES = ("Q4_0", "Q4_1", "Q8_0", "BF16")
SCHEDULES = 3  # of each type


@pytest.fixture
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU is the emulator."""
    use_test_device(monkeypatch)


def tiny(path: Path, tensor_type: str) -> Path:
    """A model that the kernels take: GQA, heads of 64."""
    return make_tiny_gguf(
        path,
        tensor_type=tensor_type,
        heads=4,
        kv_heads=2,
        head_dim=64,
        seed=7,
        **tiny_shape(tensor_type),
    )


def load(path: Path, num_blocks: int, *, max_batch: int = 4, step_tokens: int = 64) -> LoadedModel:
    def cache(config: LlamaConfig, limit: int) -> KvPlan:
        assert limit > 0
        return KvPlan(num_blocks, MAX_LEN)

    def never(config: LlamaConfig) -> int:
        raise AssertionError("the CPU's cache is not asked for")

    return registry.load(
        path,
        format=None,
        kernel="Auto",
        num_blocks=never,
        threads=1,
        progress=lambda done, total: None,
        gpu=registry.OnGpu(cache, MAX_LEN, max_batch, step_tokens),
    )


class Oracle:
    """The file's model in float64, and how far rounding moves its logits."""

    def __init__(self, path: Path) -> None:
        with GGUFFile(path) as file:
            self.config = read_config(file)
            weights = {
                name: dequantise(file.read_rows(info, 0, info.rows), info.type)
                for name, info in file.tensors.items()
            }
        self.exact = RoundedLlama(self.config, weights.__getitem__)

    def check(self, request: Request, outcome: Outcome, what: str) -> None:
        """Every token and logprob of a reply."""
        ids = np.array([[*request.prompt_ids, *outcome.tokens]])
        logits = self.exact.forward(ids).logits[0]
        moved = self.exact.forward(ids, "random").logits[0]
        # Of a single logit, whose rounding is now and then several deviations; dense weights are
        # rounded besides.
        margin = 8 * float(np.median(rms(moved - logits)))
        assert margin < logits.std(), "the bound would tell nothing"
        first = len(request.prompt_ids) - 1
        for index, (token, logprob, top) in enumerate(outcome.logprobs):
            row = logits[first + index]
            wanted = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert abs(logprob - wanted[token]) <= 2 * margin, f"{what}, token {index}"
            if request.sampling.temperature == 0:
                assert row.max() - row[token] <= 2 * margin, f"{what}, token {index}"
            for other, value in top:
                assert abs(value - wanted[other]) <= 2 * margin, f"{what}, token {index}"


def random_requests(rng: random.Random, vocab_size: int) -> list[Request]:
    """Requests of which many begin alike."""
    stem = [rng.randrange(vocab_size) for _ in range(48)]
    requests = []
    for index in range(rng.randint(3, 6)):
        tail = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 20))]
        sampling = SamplingParams(
            temperature=rng.choice([0.0, 0.0, 1.0]),
            top_k=rng.choice([0, 5]),
            seed=index,
            logprobs=True,
            top_logprobs=rng.choice([0, 3]),
            max_tokens=rng.randint(8, 24),
            ignore_eos=True,
        )
        prompt = stem[: rng.choice([0, 16, 33, 48])] + tail
        requests.append(Request(f"r{index}", tuple(prompt), sampling))
    return requests


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("tensor_type", TYPES)
def test_random_schedules_give_what_the_model_says(tmp_path: Path, tensor_type: str) -> None:
    path = tiny(tmp_path / "m.gguf", tensor_type)
    oracle, totals = Oracle(path), Counts()
    model = load(path, MAX_LEN // BLOCK_TOKENS + 1)
    assert model.runner.kernel == "cuda (emulated)"
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        requests = random_requests(rng, oracle.config.vocab_size)
        batch = rng.choice([3, 6])
        config = EngineConfig(
            name="m",
            max_model_len=MAX_LEN,
            max_batch=batch,
            max_step_tokens=batch + rng.choice([5, 30, 100]),
            mixed_prefill_tokens=rng.choice([3, 20]),
            max_queued=100,
            prefix_cache=seed % 3 != 2,
        )
        stepped = SteppedEngine(model, config, totals)
        run_randomly(stepped, requests, rng)
        for request in requests:
            outcome = stepped.outcomes[request.request_id]
            assert ended_well(outcome)
            room = MAX_LEN - len(request.prompt_ids)
            assert len(outcome.tokens) == min(request.sampling.max_tokens, room)
            oracle.check(request, outcome, f"schedule {seed}, {request.request_id}")
    model.close()
    assert totals.preempted > 0
    assert totals.prefix_hits > 0


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("tensor_type", ["Q8_0", "Q6_K"])  # the other is converted
def test_an_engine_with_its_own_thread_serves_and_frees_the_model(
    tmp_path: Path, tensor_type: str
) -> None:
    model = load(tiny(tmp_path / "m.gguf", tensor_type), 16)
    engine = Engine(model, EngineConfig("m", MAX_LEN, 4, 64, 64, 9, True), NullObserver())
    engine.start()
    ended, tokens = threading.Event(), []

    def sink(outputs: list[Output]) -> None:
        for output in outputs:
            tokens.extend(output.token_ids)
            if output.finish_reason is not None:
                ended.set()

    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    engine.submit([Request("r", (5, 6, 7), sampling)], sink)
    assert ended.wait(60)
    engine.stop()
    assert len(tokens) == 3
    assert not hasattr(model.runner, "_pool")


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tensor_types": {"blk.1.ffn_up.weight": "F16"}}, "blk.1.ffn_up"),
        ({"head_dim": 32}, "64 or 128"),
    ],
    ids=["a type", "a shape"],
)
def test_a_model_that_the_kernels_cannot_run_is_refused_and_never_run_on_the_cpu(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", **({"head_dim": 64} | changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="its kernels cannot run this model") as caught:
        load(path, 16)
    assert why in caught.value.message


def test_without_a_gpu_a_load_fails_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "unavailable", lambda: "No NVIDIA driver is loaded.")
    with pytest.raises(ConfigError) as caught:
        load(tiny(tmp_path / "m.gguf", "Q8_0"), 16)
    assert caught.value.exit_code == 2
    assert caught.value.message == (
        "spec.accelerator asks for a GPU, but none can be used here (No NVIDIA driver is loaded); "
        "mend that or remove spec.accelerator."
    )


def test_a_torch_that_cannot_start_the_device_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(availability, "_cuda", emulated_module())
    monkeypatch.setattr(availability, "_torch_problem", lambda: None)
    monkeypatch.setattr("servewright_runtime.cuda.device.Gpu", fail)
    with pytest.raises(ConfigError, match=r"torch cannot start it .*too old"):
        load(tiny(tmp_path / "m.gguf", "Q8_0"), 16)
