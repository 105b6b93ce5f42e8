"""Building `_cuda`: what is missing is said in a sentence, and what is built needs no driver."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.emulated import ROOT

# The extension where it is built, which is not in the place of the emulated one.
HAS_EXTENSION = importlib.util.find_spec("servewright_runtime._cuda") is not None


def build(tmp_path: Path, **environment: str) -> str:
    """What `setup.py build_ext` says as it refuses."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert not list(tmp_path.rglob("*.o"))  # nothing was compiled before
    return ended.stderr


def test_a_missing_nvcc_is_named(tmp_path: Path) -> None:
    said = build(tmp_path, SERVEWRIGHT_CUDA="1", NVCC="/no/nvcc")
    assert "SERVEWRIGHT_CUDA=1, but /no/nvcc is not found; install the CUDA toolkit 13" in said


@pytest.mark.parametrize(
    ("told", "why"),
    [("release 12.4, V12.4.131", "is of release 12.4"), ("a compiler", "is no nvcc")],
)
def test_another_nvcc_is_refused_with_its_release(tmp_path: Path, told: str, why: str) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {told}'\n")
    nvcc.chmod(0o755)
    assert f"{nvcc} {why}; install" in build(tmp_path, SERVEWRIGHT_CUDA="1", NVCC=str(nvcc))


def test_a_value_that_is_no_answer_is_refused(tmp_path: Path) -> None:
    assert "SERVEWRIGHT_CUDA must be 0 or 1, got 'yes'" in build(tmp_path, SERVEWRIGHT_CUDA="yes")


@pytest.mark.skipif(not HAS_EXTENSION, reason="needs _cuda: build it with SERVEWRIGHT_CUDA=1")
def test_the_extension_imports_without_a_driver_and_says_what_is_missing() -> None:
    code = "from servewright_runtime import _cuda; print(_cuda.device_problem(99))"
    # An empty library path and no visible device: as on a machine without one.
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.startswith(("No NVIDIA driver is found", "The NVIDIA driver"))
    assert ended.stdout.strip().endswith(".")
