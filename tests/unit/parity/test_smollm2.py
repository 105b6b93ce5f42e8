"""The real SmolLM2-135M-Instruct against `transformers` on the same dequantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from servewright_runtime import native
from servewright_runtime.models import registry
from servewright_runtime.models.bpe import build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.runner import BLOCK_TOKENS, Runner
from support.hf_llama import hf_llama
from support.smollm2 import INT8_MARGIN_BOUND, INT8_RMS_BOUND, smollm2_path
from support.steps import Piece, forced_logits, make_batch

QUESTIONS = (
    "What is the capital of France?",
    "Count from 1 to 20.",
    "Name the days of the week in order.",
    "What is 12 times 12?",
    "Who wrote Hamlet?",
    "Say the alphabet.",
    "What does DNA stand for?",
    "List the months of the year.",
    "How many legs does a spider have?",
    "What colour is the sky on a clear day?",
    "Translate 'good morning' into Spanish.",
    "def fibonacci(n):",
    "What is the chemical symbol for water?",
    "Name the planets of the solar system.",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "What is photosynthesis?",
    "How far is the Moon from the Earth?",
    "Write a Python function that adds two numbers.",
    "日本の首都はどこですか？",
    "Tell me a joke 🙂",
)
NEW_TOKENS = 16
THREADS = 1  # torch's own pool waits in a spin, which a shared machine punishes

# Logits of this model spread by 7.8 (standard deviation) and reach 35.
#
# Reference: float32 rounding alone. 30 layers of 9 operations, each off by some 2e-6 of its
# output, add up as their root: 3e-5 of the spread. Measured: 9e-5 at most in 25 million logits.
FLOAT32_BOUND = 1e-3


@dataclass(frozen=True)
class Forced:
    """Prompts with a greedy answer each, and the logits of `transformers` along the answers."""

    sequences: list[list[int]]
    prompts: list[int]  # tokens of each sequence that are prompt
    logits: npt.NDArray[np.float32]  # [steps of all answers, vocab]

    def margins(self) -> npt.NDArray[np.float32]:
        """Highest less second highest logit, [steps]."""
        top = np.partition(self.logits, -2, axis=-1)[:, -2:]
        margins: npt.NDArray[np.float32] = top[:, 1] - top[:, 0]
        return margins


@pytest.fixture(scope="module")
def path() -> Path:
    return smollm2_path()


@pytest.fixture(scope="module")
def reference(path: Path) -> Iterator[Runner]:
    model = registry.load(
        path,
        format=None,
        kernel="Reference",
        num_blocks=lambda config: 200,
        threads=THREADS,
        progress=lambda done, total: None,
    )
    yield model.runner
    model.close()


@pytest.fixture(scope="module")
def forced(path: Path, reference: Runner) -> Forced:
    with GGUFFile(path) as file:
        tokenizer = build_tokenizer(file, read_config(file).vocab_size)
    template = tokenizer.chat_template
    assert template is not None
    sequences, prompts = [], []
    for question in QUESTIONS:
        text = template.render([{"role": "user", "content": question}], add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special=True, parse_special=True)
        answer = _greedy(reference, ids, tokenizer.eos_ids)
        sequences.append(ids + answer)
        prompts.append(len(ids))
    template.close()

    model = hf_llama(path)
    # Padded at the right, where a causal model does not look.
    width = max(map(len, sequences))
    padded = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    with torch.inference_mode():
        hidden = model.model(padded).last_hidden_state
        logits = [
            model.lm_head(hidden[row, prompt - 1 : len(sequence)])
            for row, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True))
        ]
    return Forced(sequences, prompts, torch.cat(logits).numpy())


def _greedy(runner: Runner, prompt: list[int], eos_ids: frozenset[int]) -> list[int]:
    """Up to NEW_TOKENS greedy tokens, decoded one by one; the end token is not among them."""
    answer: list[int] = []
    blocks = list(range(-(-(len(prompt) + NEW_TOKENS) // BLOCK_TOKENS)))
    tokens, context = prompt, 0
    while len(answer) < NEW_TOKENS:
        batch = make_batch([Piece(tokens, context, blocks)], sample=[len(tokens) - 1], logits=False)
        token = int(runner.step(batch).token_ids[0])
        if token in eos_ids:
            break
        answer.append(token)
        context += len(tokens)
        tokens = [token]
    return answer


def test_the_reference_agrees_at_every_step(reference: Runner, forced: Forced) -> None:
    got = _prefilled(reference, forced)
    assert np.abs(got - forced.logits).max() <= FLOAT32_BOUND


def test_the_reference_writes_the_same_greedy_text(forced: Forced) -> None:
    # The answers are the reference runner's own, decoded token by token.
    chosen = np.concatenate([s[p:] for s, p in zip(forced.sequences, forced.prompts, strict=True)])
    rows = _answer_rows(forced)
    decided = forced.margins()[rows] > FLOAT32_BOUND
    assert decided.mean() >= 0.75
    assert (forced.logits[rows].argmax(-1) == chosen)[decided].all()


@pytest.mark.parametrize("variant", native.variants())
def test_the_fused_kernels_agree_at_every_step(path: Path, forced: Forced, variant: str) -> None:
    with GGUFFile(path) as file:
        config = read_config(file)
        runner = native.NativeRunner(config, num_blocks=200, threads=2, variant=variant)
        registry.load_tensors(file, runner, lambda done, total: None)
    # The best variant decodes step by step; the others show in prefill that they compute the same.
    if variant == native.variants()[0]:
        got = np.concatenate(forced_logits(runner, forced.sequences, forced.prompts))
    else:
        got = _prefilled(runner, forced)
    runner.close()
    error = got - forced.logits
    error -= error.mean(-1, keepdims=True)
    rms = np.sqrt(np.square(error).mean(-1))
    assert np.median(rms) <= INT8_RMS_BOUND[0]
    assert rms.max() <= INT8_RMS_BOUND[1]

    turned = got.argmax(-1) != forced.logits.argmax(-1)
    decided = forced.margins() > INT8_MARGIN_BOUND
    at_most = forced.margins()[turned].max(initial=0)
    print(f"{variant}: rms {np.median(rms):.3f}, worst step {rms.max():.3f};", end=" ")
    print(f"{turned.mean():.1%} turned, margin {at_most:.2f} at most; {decided.mean():.1%} decided")
    assert decided.mean() >= 0.75
    assert not turned[decided].any()


def _answer_rows(forced: Forced) -> npt.NDArray[np.int64]:
    """Rows of `forced.logits` after which the answer has a token (all but each one's last)."""
    rows, at = [], 0
    for sequence, prompt in zip(forced.sequences, forced.prompts, strict=True):
        steps = len(sequence) - prompt + 1
        rows.append(np.arange(at, at + steps - 1))
        at += steps
    return np.concatenate(rows)


def _prefilled(runner: Runner, forced: Forced) -> npt.NDArray[np.float32]:
    """Logits along the answers, each sequence in a step of its own: [steps of all, vocab]."""
    found = []
    for sequence, prompt in zip(forced.sequences, forced.prompts, strict=True):
        blocks = list(range(-(-len(sequence) // BLOCK_TOKENS)))
        sample = range(prompt - 1, len(sequence))
        result = runner.step(make_batch([Piece(sequence, 0, blocks)], sample=sample))
        assert result.logits is not None
        found.append(result.logits)
    return np.concatenate(found)
