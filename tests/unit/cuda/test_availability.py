"""What the CUDA kernels lack here, said in one sentence each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError


def built(monkeypatch: pytest.MonkeyPatch, problem: str = "") -> object:
    """As if the extension were built, and a device had this problem; returns what stands for it."""
    module = SimpleNamespace(device_problem=lambda device: problem)
    monkeypatch.setattr(availability, "_cuda", module)
    return module


def torch_of(monkeypatch: pytest.MonkeyPatch, folder: Path, cuda: str | None) -> None:
    """As if the torch here were a build for that CUDA."""
    (folder / "version.py").write_text(f"__version__ = '2.13.0'\ncuda = {cuda!r}\n")
    spec = SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


def test_an_installation_without_the_extension_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "_cuda", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(availability, "_DRIVER", "libc.so.6")
    assert availability.unavailable() == (
        "The CUDA kernels are not built in this installation; install it again with "
        "SERVEWRIGHT_CUDA=1 and nvcc 13 present, or in a pod use the image that has them "
        "(the chart's runtime.cudaImage)."
    )
    monkeypatch.setattr(availability, "_DRIVER", "libnone.so.1")
    assert str(availability.unavailable()).endswith(
        "; an NVIDIA driver (libnone.so.1) is missing here too."
    )
    with pytest.raises(ConfigError, match="not built"):
        availability.kernels()


def test_an_extension_that_cannot_be_loaded_is_told_in_the_loaders_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "_cuda", None)
    monkeypatch.setattr(availability, "_why_not_loaded", "GLIBC_2.38 not found")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    why = availability.unavailable()
    assert why == "The CUDA kernels are built and cannot be loaded: GLIBC_2.38 not found."


def test_a_problem_of_the_device_comes_before_one_of_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built(monkeypatch, "No NVIDIA driver is loaded.")
    torch_of(monkeypatch, tmp_path, None)
    assert availability.unavailable() == "No NVIDIA driver is loaded."


def test_a_torch_without_cuda_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built(monkeypatch)
    torch_of(monkeypatch, tmp_path, None)
    why = availability.unavailable()
    assert why is not None
    assert "torch 2.13.0 is built without CUDA" in why


def test_no_torch_at_all_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    why = availability.unavailable()
    assert why is not None
    assert "pip install 'servewright[reference]'" in why


def test_a_usable_device_lacks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = built(monkeypatch)
    torch_of(monkeypatch, tmp_path, "13.0")
    assert availability.unavailable() is None
    assert availability.kernels() is module


def test_asking_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from servewright_runtime.cuda import availability; availability.unavailable();"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"
