"""tests/gpu: it refuses without a device, and what it checks and times tells right from wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hack import roofline
from torch import Tensor

from gpu import op_numbers, prove, timings
from gpu.checks import Check, Ops
from servewright_runtime.cuda import availability, device
from support.cuda_runner import EmulatedDevice
from support.emulated import Array
from support.emulated_module import emulated_module
from support.native_model import SMALL
from support.tree import ROOT

TINY = replace(
    SMALL, hidden_size=64, layers=1, heads=1, kv_heads=1, head_dim=64, rope_dims=64, ffn_size=64,
    vocab_size=64, context_length=64,
)  # fmt: skip


def test_without_a_device_it_refuses_in_one_sentence() -> None:
    if availability.unavailable() is None:
        pytest.skip("needs a machine without a CUDA device")
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu" / "prove.py"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Nothing is proved without a CUDA device: ")
    assert result.stderr.count("\n") == 1


def test_every_op_is_right_on_the_emulator() -> None:
    found = list(op_numbers.checks(emulated_module(), EmulatedDevice(), op_numbers.SMALL))
    assert [check for check in found if not check.is_right] == []
    for op in op_numbers.OPS:
        assert any(check.name.startswith(op) for check in found), op
    assert len(prove.numbers_table(found).splitlines()) == 2 + len(op_numbers.OPS)


def test_an_op_that_writes_nothing_or_something_else_is_wrong() -> None:
    class Broken(Ops):
        """Results come back a little off, each otherwise than the one before."""

        scale = np.float32(1.02)

        def get(self, tensor: Tensor) -> Array:
            self.scale = 2 - self.scale
            return np.asarray(super().get(tensor) * self.scale)

    class Idle(Ops):
        """What an op was to write is still poison."""

        def get(self, tensor: Tensor) -> Array:
            return np.asarray(super().get(tensor) * np.float32(np.nan))

    assert not Check("NaN", float("nan")).is_right
    assert not Check("off", 1.5).is_right
    for kind in (Broken, Idle):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("gpu.op_numbers.Ops", kind)
            found = list(op_numbers.checks(emulated_module(), EmulatedDevice(), op_numbers.SMALL))
        assert [check for check in found if check.is_right] == [], kind


def test_attention_whose_splits_are_not_merged_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sequences of more than one block find it out."""
    kernels = emulated_module()

    class Unmerged:
        def __getattr__(self, name: str) -> Any:
            return getattr(kernels, name)

        def attention(self, *args: Any) -> None:
            *given, tickets, partials, out, longest, interleaved, stream = args
            # As if somebody had come already: the merge happens before all are there.
            tickets.fill_(1)
            kernels.attention(*given, tickets, partials, out, longest, interleaved, stream)

    small = replace(op_numbers.SMALL, projections=((16, 64),), vocabularies=(), networks=())
    found = list(op_numbers.checks(Unmerged(), EmulatedDevice(), small))  # type: ignore[arg-type]
    wrong = {check.name.partition(",")[0] for check in found if not check.is_right}
    assert wrong == {"attention", "attention again"} | {"torch.paged_attention"}


@pytest.fixture
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What prove() takes is quick and emulated; the list holds the status of the runner's tests."""
    status = [0]
    monkeypatch.setattr(availability, "unavailable", lambda: None)
    monkeypatch.setattr(availability, "kernels", emulated_module)
    monkeypatch.setattr(device, "Gpu", EmulatedDevice)
    monkeypatch.setattr(op_numbers, "checks", lambda *_: iter([Check("mlp of 1", 0.5)]))
    monkeypatch.setattr(prove, "run_runner_tests", lambda: status[0])
    step = timings.Timed("Q4_0", "step", 1, 1e-3, 1e9, None)
    monkeypatch.setattr(timings, "steps", lambda *_: iter([step]))
    monkeypatch.setattr(timings, "copy_rate", lambda _: 3e12)
    return status


def test_the_results_tell_commit_and_copy_rate(emulated_gpu: list[int], tmp_path: Path) -> None:
    out = tmp_path / "prove.json"
    assert prove.main(["--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document["commit"] == prove.commit()
    assert document["copy_bytes_per_s"] == 3e12
    assert document["numbers"] == {"mlp of 1": 0.5}
    assert [each["what"] for each in document["times"]] == ["step"]


def test_nothing_is_timed_and_nothing_passes_where_a_number_or_a_test_is_wrong(
    emulated_gpu: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "prove.json"
    emulated_gpu[0] = 1
    assert prove.main(["--out", str(out)]) == 1
    assert json.loads(out.read_text())["times"] == []
    emulated_gpu[0] = 0
    monkeypatch.setattr(op_numbers, "checks", lambda *_: iter([Check("mlp of 1", 1.5)]))
    assert prove.main(["--out", str(out)]) == 1
    assert json.loads(out.read_text())["copy_bytes_per_s"] is None


def test_the_sanitizer_is_missed_in_one_sentence_and_heard_in_each_tool(
    emulated_gpu: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prove.main(["--sanitize", "--numbers"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("Nothing is sanitized without compute-sanitizer, which is not on PATH;")

    program = tmp_path / "compute-sanitizer"
    log = tmp_path / "log"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*" >> {log}\n'
        'case "$*" in *initcheck*"$FAILS"*) exit ${FAILS:-0};; esac\n'
    )
    program.chmod(0o755)
    assert prove.main(["--sanitize", "--numbers"]) == 0
    calls = log.read_text().splitlines()
    assert [call.split()[2] for call in calls] == list(prove.TOOLS)
    assert all(call.startswith("1 --tool ") for call in calls)
    assert all(call.endswith("prove.py --small") for call in calls)
    monkeypatch.setenv("FAILS", "1")
    assert prove.main(["--sanitize", "--numbers"]) == 1
    assert "initcheck found what stands above" in capfd.readouterr().err


def test_timed_sequences_share_no_page() -> None:
    for slots in timings.SLOTS:
        batch = timings.batch(timings.LLAMA_8B, slots)
        assert batch.block_tables.shape == (slots, 64)
        assert len(np.unique(batch.block_tables)) == batch.block_tables.size


@pytest.mark.parametrize("weights", timings.TYPES)
def test_a_timed_step_counts_the_bytes_that_the_prediction_counts(weights: str) -> None:
    counted = timings.step_bytes(emulated_module(), timings.LLAMA_8B, weights, 1)
    predicted = sum(each.times * each.floor for each in roofline.launches(weights))
    # Outputs and sampling are 14 MB more; K and V are 134 MB, 0.9 % of BF16's bytes.
    assert 0 < predicted - counted < 0.11 * roofline.LAYERS * 2 * 2 * 128 * 8 * 1024
    each_slot = timings.step_bytes(emulated_module(), timings.LLAMA_8B, weights, 2) - counted
    assert each_slot == 1024 * 32 * 2 * 2 * 8 * 128


def test_the_times_are_taken() -> None:
    found = list(
        timings.steps(emulated_module(), EmulatedDevice(), TINY, types=["Q4_0"], replays=1)
    )
    assert [(each.what, each.slots) for each in found] == [
        *(("step", slots) for slots in timings.SLOTS), ("prefill of 32", 1),
    ]  # fmt: skip
    assert all(each.seconds > 0 for each in found)
    rate = timings.copy_rate(EmulatedDevice(), 1 << 20)
    assert rate > 0
    assert len(timings.table(found, rate).splitlines()) == 4 + len(found)


def test_cublas_product_takes_what_the_runner_gives_it() -> None:
    """The one thing of a GPU that torch can check without one: shapes and types, on `meta`."""

    def multiply(cols: int, out: torch.dtype) -> None:
        gpu = object.__new__(device.Gpu)  # no device is opened
        given = torch.empty(70, cols, dtype=torch.bfloat16, device="meta")
        weights = torch.empty(48, 32, dtype=torch.bfloat16, device="meta")
        gpu.multiply(given, weights, torch.empty(70, 48, dtype=out, device="meta"))

    multiply(32, torch.float32)
    with pytest.raises(RuntimeError, match="same reduction dim"):
        multiply(33, torch.float32)
    with pytest.raises(RuntimeError, match="out tensor to have dtype"):
        multiply(32, torch.bfloat16)
