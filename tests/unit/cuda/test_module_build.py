"""Building `_cuda`: what is missing is said in a sentence, and what is built needs no driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hack import nvcc

from support.emulated import ROOT
from support.emulated_module import emulated_module

# setup.py's build of `_cuda` and not of `_native`, which is here already.
BUILD = """\
import sys
import setuptools
from distutils.core import run_setup
made = run_setup("setup.py", ["--quiet", "build_ext", *sys.argv[1:]], stop_after="commandline")
made.ext_modules = [each for each in made.ext_modules if each.name.endswith("._cuda")]
made.run_commands()
"""


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


@pytest.fixture(scope="module")
def extension() -> Path:
    """What setup.py makes of its sources and of kernels that are compiled for one device only.

    Those are the objects that the budgets' test measures, laid where setup.py finds its own; all
    else it compiles as always, and again only what changed.
    """
    try:
        nvcc.find()
    except nvcc.Missing as missing:
        pytest.skip(str(missing))
    folder = ROOT / "build" / "cuda" / "module"
    (folder / "cuda").mkdir(parents=True, exist_ok=True)
    sources = sorted(nvcc.KERNELS.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for made in pool.map(partial(nvcc.compile_kernels, architecture="sm_90"), sources):
            shutil.copy(made.object, folder / "cuda" / f"cuda_{made.source.name}.o")
    subprocess.run(
        [sys.executable, "-c", BUILD, f"--build-temp={folder}", f"--build-lib={folder}"],
        cwd=ROOT,
        env={**os.environ, "SERVEWRIGHT_CUDA": "1"},
        check=True,
    )
    (found,) = folder.glob("servewright_runtime/_cuda.*.so")
    return found


def in_python(extension: Path, code: str) -> str:
    """What `code` prints with the extension as `cuda`, where no device is visible."""
    load = (
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('_cuda', {str(extension)!r})\n"
        "cuda = module_from_spec(spec)\n"
        "spec.loader.exec_module(cuda)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", load + code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_extension_imports_without_a_driver_and_says_what_is_missing(extension: Path) -> None:
    said = in_python(extension, "print(cuda.device_problem(99))")
    assert said.startswith(("No NVIDIA driver is found", "The NVIDIA driver"))
    assert said.endswith(".\n")


def test_the_extension_has_what_its_emulated_twin_has(extension: Path) -> None:
    names = in_python(extension, "print(cuda.EMULATED, *(n for n in dir(cuda) if n[0] != '_'))")
    twin = emulated_module()
    assert twin.EMULATED
    assert names.split() == ["False", *(name for name in dir(twin) if name[0] != "_")]


def test_the_extension_needs_no_library_of_cuda(extension: Path) -> None:
    told = subprocess.run(
        ["readelf", "--dynamic", extension], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(\w+)", told)
    assert set(needed) <= {"libc", "libm", "libgcc_s", "libstdc", "ld"}
