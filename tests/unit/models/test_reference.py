"""The torch runner's own rules: what it refuses, and that a missing torch has a cure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from servewright_runtime.models.reference import TorchRunner
from servewright_runtime.models.registry import load_tensors
from support.steps import Piece, forced_logits, make_batch
from support.tiny import make_tiny_gguf


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchRunner]:
    path = make_tiny_gguf(tmp_path_factory.mktemp("reference") / "m.gguf")
    made = empty_runner(path)
    with GGUFFile(path) as file:
        load_tensors(file, made, lambda done, total: None)
    yield made
    made.close()


def empty_runner(path: Path, num_blocks: int = 16) -> TorchRunner:
    with GGUFFile(path) as file:
        return TorchRunner(read_config(file), num_blocks=num_blocks, threads=1)


@pytest.mark.usefixtures("runner")  # which has imported torch
def test_a_cache_takes_no_memory_before_it_is_used(tmp_path: Path) -> None:
    process = psutil.Process()
    path = make_tiny_gguf(tmp_path / "m.gguf")
    before = process.memory_info().rss
    made = empty_runner(path, num_blocks=65536)
    size = 65536 * 2 * made.config.kv_bytes_per_token * 16  # float32
    assert size >= 256 << 20
    assert process.memory_info().rss - before < size / 4
    made.close()


GOOD = Piece([1, 2, 3], 0, [4])


@pytest.mark.parametrize(
    ("piece", "wanted"),
    [
        (replace(GOOD, tokens=[1, 384]), "token id"),
        (replace(GOOD, tokens=[-1]), "token id"),
        (replace(GOOD, tokens=[]), "no tokens"),
        (replace(GOOD, context=-1), "before its first"),
        (replace(GOOD, context=14), "1 blocks for 17 tokens"),
        (replace(GOOD, blocks=[16]), "block outside"),
        (replace(GOOD, blocks=[-1]), "block outside"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(
    runner: TorchRunner, piece: Piece, wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        runner.step(make_batch([GOOD, piece], sample=[0]))


def test_a_sampled_token_outside_the_batch_is_refused(runner: TorchRunner) -> None:
    with pytest.raises(ValueError, match="a sampled token"):
        runner.step(make_batch([GOOD], sample=[3]))


def test_an_empty_batch_draws_nothing(runner: TorchRunner) -> None:
    result = runner.step(make_batch([]))
    assert result.token_ids.shape == (0,)
    assert result.finite


def test_a_prompt_in_chunks_equals_the_whole(runner: TorchRunner) -> None:
    tokens = list(range(40, 77))
    [chunked] = forced_logits(runner, [tokens], [36])
    whole = runner.step(make_batch([Piece(tokens, 0, [9, 2, 5])], sample=[35, 36])).logits
    assert whole is not None
    # float32 sums in another order: 1e-6 of the highest logit each.
    assert np.abs(chunked - whole).max() <= 1e-5 * np.abs(whole).max()


def test_rows_that_have_not_come_are_named(tmp_path: Path) -> None:
    runner = empty_runner(make_tiny_gguf(tmp_path / "m.gguf"))
    with pytest.raises(ValueError, match=r"token_embd\.weight: 384 rows have not been loaded"):
        runner.seal()


def test_rows_of_an_unknown_tensor_or_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    runner = empty_runner(make_tiny_gguf(tmp_path / "m.gguf"))
    with pytest.raises(ValueError, match="no tensor made_up"):
        runner.load("made_up", "F32", 0, np.zeros((1, 256), np.uint8))
    with pytest.raises(ValueError, match="do not fit"):
        runner.load("output_norm.weight", "F32", 0, np.zeros((1, 128), np.uint8))


def test_a_missing_torch_is_an_error_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'servewright\[reference\]'"):
        empty_runner(path)


def test_importing_the_loaders_imports_no_torch() -> None:
    code = (
        "import sys; import servewright_runtime.models.registry; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
