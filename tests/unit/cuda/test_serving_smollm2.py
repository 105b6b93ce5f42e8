"""SmolLM2 from a manifest to its answers on the CUDA runner, emulated, beside the CPU's runners.

A replica is served in this process and asked over HTTP. What its engine asked of the runner is
written down, and the CPU's runners get the same steps: so they are teacher-forced, on a dense
prefill, a fused one beside a decode, and decodes of one and of two sequences.

The emulator takes some 4 s of one core for a step, be it of one token or of sixty.
"""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from servewright_runtime.config import ReplicaModel, resolve
from servewright_runtime.cuda.prefill import FUSED_TOKENS
from servewright_runtime.hardware import detect
from servewright_runtime.models import sampling_reference
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.runner import Runner, StepBatch, StepResult
from servewright_runtime.serve.host import Host
from servewright_runtime.serve.loading import Loaded, load_all
from support.cuda_runner import use_test_device
from support.emulated import Array
from support.manifests import make_service
from support.native_model import decode as dequantise
from support.rounded_llama import DensePrefill, RoundedLlama, bounded, centred, rms
from support.serving import until
from support.smollm2 import INT8_RMS_BOUND, smollm2_path

# Of 69 tokens; the model is sure of what follows.
LONG = (
    "The alphabet has twenty-six letters: a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, "
    "t, u, v, w, x, y and z. They are: a, b, c,"
)
SHORT = "The capital of France is"
DECODED = 8  # steps of the long text behind its prefill
TIMEOUT_S = 600  # of a step's whole company, on a machine that others use too
COPIES = 2  # of the model with random rounding
# What the schema takes besides: a short context keeps the prefill at the start short.
ENGINE = {"maxModelLen": 96, "maxBatch": 2, "threads": 1, "kvCache": "16Mi"}


class Written:
    """A runner that keeps what it was asked and what it gave, logits included."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.steps: list[tuple[StepBatch, StepResult]] = []
        self.before: Callable[[StepBatch], object] = lambda batch: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def step(self, batch: StepBatch) -> StepResult:
        self.before(batch)
        asked = replace(copy.deepcopy(batch), return_logits=True)  # its arrays are used again
        self.steps.append((asked, self._runner.step(asked)))
        return self.steps[-1][1]


@dataclass(frozen=True)
class Served:
    long: dict[str, Any]  # answers' choices
    short: dict[str, Any]
    steps: list[tuple[StepBatch, StepResult]]
    kernel: str


@dataclass
class Text:
    """What the steps ran of one sequence."""

    tokens: list[int] = field(default_factory=list)
    prefilled: int = 0
    rows: list[int] = field(default_factory=list)  # positions whose logits are wanted
    logits: list[Array] = field(default_factory=list)  # of each, [vocab]
    drawn: list[int] = field(default_factory=list)


def model_on(**spec: Any) -> ReplicaModel:
    changes = {f"spec.{name}": value for name, value in spec.items()}
    service = make_service(
        {
            "spec.model.source": f"file://{smollm2_path()}",
            "spec.engine": ENGINE | spec.pop("engine", {}),
            "spec.access.mode": "Open",
            "spec.probe": {"prompt": "1, 2, 3, 4,", "timeoutSeconds": TIMEOUT_S},
        }
        | changes
    )
    return resolve(
        service, revision="r", path=Path(smollm2_path()), digest=None, keys_dir=None,
        hardware=detect(),
    )  # fmt: skip


async def serve(model: ReplicaModel) -> Served:
    """Load, probe and serve; the short text comes while the long one decodes."""
    written: list[Written] = []
    decodes, may_decode = threading.Event(), threading.Event()

    def hold(batch: StepBatch) -> None:
        """Keeps the first decode until the other text waits."""
        if len(batch.token_ids) == 1:
            decodes.set()
            assert may_decode.wait(TIMEOUT_S)

    def load(models: Sequence[ReplicaModel], progress: Callable[[float], None]) -> list[Loaded]:
        (one,) = load_all(models, progress)
        written.append(Written(one.loaded.runner))
        return [replace(one, loaded=replace(one.loaded, runner=written[0]))]

    host = Host(lambda event, **fields: None, load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/completions"
        try:
            await host.serve([model], listener)
            async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
                ask = partial(_complete, client, url, model.name)
                (runner,) = written
                runner.before = hold
                long = asyncio.create_task(ask(LONG, 1 + DECODED, temperature=0))
                await until(decodes.is_set, timeout_s=TIMEOUT_S)
                short = asyncio.create_task(ask(SHORT, 3, temperature=0.8, seed=7))
                await until(lambda: host.state()["waiting"] == 1)
                may_decode.set()
                answers = await long, await short
            return Served(*answers, runner.steps, runner.kernel)
        finally:
            may_decode.set()
            await host.close()


async def _complete(
    client: httpx.AsyncClient, url: str, model: str, prompt: str, tokens: int, **sampling: Any
) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "logprobs": 0, **sampling}
    answer = await client.post(url, json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return dict(choice)


def texts(steps: Sequence[tuple[StepBatch, StepResult]]) -> list[Text]:
    """The sequences of the steps, in order of arrival."""
    found: list[Text] = []
    alive: dict[int, Text] = {}  # by first block
    for batch, result in steps:
        assert result.logits is not None
        owner: list[tuple[Text, int]] = []  # and position, of each token
        bounds = zip(batch.seq_starts, batch.seq_starts[1:], strict=False)
        for row, (first, end) in enumerate(bounds):
            at = int(batch.context_starts[row])
            if at == 0:
                found.append(Text(prefilled=int(end - first)))
                alive[int(batch.block_tables[row, 0])] = found[-1]
            text = alive[int(batch.block_tables[row, 0])]
            assert len(text.tokens) == at
            text.tokens += batch.token_ids[first:end].tolist()
            owner += [(text, at + i) for i in range(end - first)]
        for place, logits, token in zip(
            batch.sample_tokens, result.logits, result.token_ids, strict=True
        ):
            text, position = owner[place]
            text.rows.append(position)
            text.logits.append(logits)
            text.drawn.append(int(token))
    return found


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """On the device."""
    with pytest.MonkeyPatch.context() as patched:
        use_test_device(patched)
        yield asyncio.run(serve(model_on(accelerator={"type": "nvidia"})))


@pytest.fixture(scope="module")
def on_device(served: Served) -> list[Text]:
    return texts(served.steps)


@pytest.fixture(scope="module")
def spreads(on_device: list[Text]) -> list[Array]:
    """How far rounding moves the logits of each text's rows, rms: [rows]."""
    with GGUFFile(smollm2_path()) as file:
        config = read_config(file)
        weights = {
            name: dequantise(file.read_rows(info, 0, info.rows), info.type).astype(np.float32)
            for name, info in file.tensors.items()
        }

    def weight(name: str) -> Array:
        return weights[name].astype(np.float64)

    probe, long, short = on_device
    dense = DensePrefill(config, weight, long.prefilled)
    spread = bounded(dense, np.array([long.tokens]), copies=COPIES, is_centred=True).spread
    found = [rms(spread[0, long.rows])]
    # Behind a text's end stands what it never looks at.
    width = max(len(probe.tokens), len(short.tokens))
    ids = np.array([text.tokens + [0] * (width - len(text.tokens)) for text in (probe, short)])
    spread = bounded(RoundedLlama(config, weight), ids, copies=COPIES, is_centred=True).spread
    return [rms(spread[0, probe.rows]), *found, rms(spread[1, short.rows])]


def replayed(served: Served, kernel: str) -> list[Text]:
    """The same steps on the CPU."""
    (one,) = load_all([model_on(engine={"kernel": kernel})], lambda fraction: None)
    steps = [(batch, one.loaded.runner.step(batch)) for batch, _ in served.steps]
    one.loaded.close()
    return texts(steps)


@pytest.fixture(scope="module")
def exact(served: Served) -> list[Text]:
    """Float32, by torch."""
    return replayed(served, "Reference")


def errors(found: list[Text], wanted: list[Text]) -> Array:
    """Of all rows, rms without a shift that all logits share."""
    pairs = zip(found, wanted, strict=True)
    return np.concatenate(
        [rms(centred(np.subtract(a.logits, b.logits, dtype=np.float64))) for a, b in pairs]
    )


def test_the_engine_asked_for_all_kinds_of_steps(served: Served) -> None:
    kinds = [np.diff(batch.seq_starts).tolist() for batch, _ in served.steps]
    probe, long, *rest = kinds
    assert long[0] > FUSED_TOKENS > probe[0] > 1
    assert rest[0] == [1]
    assert rest[1][0] == 1
    assert 1 < rest[1][1] <= FUSED_TOKENS
    assert rest[2:] == [[1, 1]] * 2 + [[1]] * (DECODED - 4)


def test_logits_are_off_by_no_more_than_rounding_explains(
    on_device: list[Text], exact: list[Text], spreads: list[Array]
) -> None:
    own = np.concatenate(spreads)
    found = errors(on_device, exact) / np.maximum(own, np.median(own))
    print(f"{found.max():.2f} spreads at most, {np.sqrt((found**2).mean()):.2f} rms;", end=" ")
    print(f"a spread is {np.median(own):.3f}")
    assert found.max() <= 3
    assert np.sqrt((found**2).mean()) <= 1.2


def test_logits_are_the_cpu_engine_s_within_both_bounds(
    served: Served, on_device: list[Text], spreads: list[Array]
) -> None:
    own = np.concatenate(spreads)
    found = errors(on_device, replayed(served, "Fused"))
    print(f"rms {np.median(found):.3f}, worst {found.max():.3f}; own spread {np.median(own):.3f}")
    assert np.median(found) <= np.hypot(INT8_RMS_BOUND[0], 1.5 * np.median(own))
    assert (found <= np.hypot(INT8_RMS_BOUND[1], 3 * own)).all()


def test_draws_are_those_of_the_same_logits_by_definition(served: Served) -> None:
    for batch, result in served.steps:
        assert result.logits is not None
        wanted = sampling_reference.sample(result.logits, batch.sampling)
        np.testing.assert_array_equal(result.token_ids, wanted.token_ids)


def test_a_greedy_answer_is_the_cpu_engine_s(
    served: Served, exact: list[Text], spreads: list[Array]
) -> None:
    on_cpu = asyncio.run(serve(model_on(engine={"kernel": "Fused"})))
    assert served.kernel.startswith("cuda (")
    assert "cuda" not in on_cpu.kernel
    # A step may turn where the margin is less than five times the rms of both errors: see
    # tests/unit/parity/test_smollm2.py.
    bound = 5 * np.hypot(INT8_RMS_BOUND[0], 1.5 * np.median(np.concatenate(spreads)))
    top = np.partition(np.stack(exact[1].logits), -2, axis=-1)[:, -2:]
    margins = top[:, 1] - top[:, 0]
    print(f"{served.long['text']!r}, margins from {margins.min():.2f}; {served.short['text']!r}")
    assert margins.min() > bound, "the text is none that the model is sure of"
    assert served.long == on_cpu.long | {"logprobs": served.long["logprobs"]}
