"""Which format a file has, which runner it gets, and what loading costs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servewright_runtime import native
from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.models import registry, requantise
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.reference import DEQUANTISABLE
from servewright_runtime.models.runner import LlamaConfig
from support.steps import Piece, make_batch
from support.tiny import make_large_gguf, make_tiny_gguf, tiny_shape

needs_native = pytest.mark.skipif(
    native.unavailable() is not None, reason="the fused kernels do not run here"
)


def load(path: Path, kernel: registry.Kernel = "Auto", **changes: Any) -> LoadedModel:
    def ignore(done: int, total: int) -> None:
        pass

    def blocks(config: LlamaConfig) -> int:
        return 8

    arguments: dict[str, Any] = {
        "format": None,
        "num_blocks": blocks,
        "threads": 1,
        "progress": ignore,
        **changes,
    }
    return registry.load(path, kernel=kernel, **arguments)


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        pytest.param("Fused", "", marks=needs_native),
        pytest.param("Auto", "", marks=needs_native),
        ("Reference", "reference"),
    ],
)
def test_a_loaded_model_draws_a_token(tmp_path: Path, kernel: registry.Kernel, wanted: str) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf")
    model = load(path, kernel)
    assert model.format == "gguf"
    assert model.bytes == path.stat().st_size
    assert model.runner.kernel.startswith(wanted or native.chosen_variant())
    result = model.runner.step(make_batch([Piece([5, 6, 7], 0, [3])], sample=[2]))
    assert result.finite
    assert 0 <= result.token_ids[0] < 384
    model.close()


@needs_native
def test_types_that_the_kernels_lack_are_converted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = {"output.weight": "Q6_K", "blk.0.ffn_up.weight": "Q5_0"}
    path = make_tiny_gguf(
        tmp_path / "m.gguf",
        tensor_type="Q4_K",
        tensor_types=mixed,
        tied=False,
        **tiny_shape("Q4_K"),
    )
    with caplog.at_level(logging.INFO):
        model = load(path, "Fused")
    [told] = [record for record in caplog.records if record.message == "tensors converted"]
    assert told.__dict__["types"] == {"Q4_K to Q4_1": 14, "Q5_0 to Q8_0": 1, "Q6_K to Q8_0": 1}
    assert isinstance(model.runner, native.NativeRunner)
    model.close()


def test_auto_takes_the_reference_for_shapes_the_kernels_lack_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type="F32", head_dim=24)
    with caplog.at_level(logging.WARNING):
        model = load(path)
    assert model.runner.kernel.startswith("reference")
    assert len(caplog.records) == 1
    model.close()


@needs_native
def test_fused_refuses_a_shape_the_kernels_lack_with_the_cure(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type="F32", head_dim=24)
    with pytest.raises(ConfigError) as caught:
        load(path, "Fused")
    assert "head_dim a multiple of 16 up to 256, got 24" in caught.value.message
    assert "set engine.kernel to Auto or Reference" in caught.value.message


@pytest.mark.parametrize("kernel", [pytest.param("Fused", marks=needs_native), "Auto"])
def test_a_type_that_nothing_reads_is_refused_by_its_tensor(
    tmp_path: Path, kernel: registry.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No writer makes a matrix of such a type, so one is forgotten.
    for module in (registry, requantise):
        monkeypatch.setattr(module, "DEQUANTISABLE", DEQUANTISABLE - {"Q5_0"})
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_types={"blk.1.ffn_up.weight": "Q5_0"})
    with pytest.raises(ConfigError, match=r"blk\.1\.ffn_up\.weight has the type Q5_0, which"):
        load(path, kernel)


def test_a_format_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=r"model\.format is onnx, but the file is gguf"):
        load(path, format="onnx")


@pytest.mark.parametrize("content", [b"", b"GG", b"\x80\x04pickle", b"PK\x03\x04"])
def test_an_unknown_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"(is empty|no known model format); formats that work: gguf"
    ):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("kernel", [pytest.param("Fused", marks=needs_native), "Reference"])
def test_a_cache_that_no_memory_holds_is_told_with_the_cure(
    tmp_path: Path, kernel: registry.Kernel
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", layers=8, hidden=256, heads=4, kv_heads=4)
    with pytest.raises(StartError, match=r"do not fit .* lower engine\.kvCache"):
        load(path, kernel, num_blocks=lambda config: 2**31 - 1)  # 256 TiB and more


def test_the_blocks_are_asked_with_the_header_and_progress_ends_at_the_total(
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, int]] = []
    asked: list[LlamaConfig] = []

    def blocks(config: LlamaConfig) -> int:
        asked.append(config)
        return 4

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    model = load(make_tiny_gguf(tmp_path / "m.gguf"), num_blocks=blocks, progress=progress)
    assert [config.layers for config in asked] == [2]
    assert model.runner.num_blocks == 4
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)
    model.close()


def test_an_error_while_loading_ends_what_was_started(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(make_tiny_gguf(tmp_path / "m.gguf"), progress=fail)


MEASURE = """
import sys
from pathlib import Path
from servewright_runtime.models import registry

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

before = peak()
model = registry.load(Path(sys.argv[1]), format=None, kernel="Fused",
                      num_blocks=lambda config: 8, threads=1, progress=lambda done, total: None)
print(peak() - before, model.runner.weights_bytes, "torch" in sys.modules)
model.close()
"""


@needs_native
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    path = make_large_gguf(tmp_path / "m.gguf", 120 << 20)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], check=True, capture_output=True, text=True
    )
    rise, weights, has_torch = result.stdout.split()
    assert has_torch == "False"
    assert int(weights) > 100 << 20
    assert int(rise) <= 1.2 * int(weights)
