"""The extension `_cuda` over the fiber emulator: the very same bindings, tensors of the CPU.

Built under build/emulated/ as the ops of support/emulated.py are, object by object. A fault of a
kernel ends the process, with its text on standard error.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pybind11

from support.emulated import (
    BUILT,
    COMMON,
    EMULATOR,
    ROOT,
    compile_objects,
    compiler,
    digest_of,
    make_whole,
)

NAME = "_cuda_emulated"
CSRC = ROOT / "csrc"
WITH_PYTHON = (CSRC, CSRC / "cuda_module")  # folders whose sources include pybind11


def sources() -> list[Path]:
    """All that setup.py builds into `_cuda`, with the emulator in the place of the runtime."""
    kernels = [p for p in (CSRC / "cuda").iterdir() if p.suffix in (".cu", ".cpp")]
    bindings = [p for p in (CSRC / "cuda_module").glob("*.cpp") if p.stem != "runtime_cuda"]
    shared = [CSRC / name for name in ("arrays.cpp", "records.cpp")]
    shared += [CSRC / "model" / name for name in ("config.cpp", "step.cpp")]
    return sorted([*EMULATOR, *kernels, *bindings, *shared])


def build() -> Path:
    """The built extension. Skips the test where the emulator cannot run."""
    python = [sysconfig.get_path("include"), pybind11.get_include()]
    python = [f"-isystem{folder}" for folder in python]
    version = pybind11.__version__.replace(".", "_")
    python.append(f"-DSW_PYBIND11_{version}")  # its headers are not read
    flags = [*COMMON, "-O2"]
    objects = compile_objects(
        [(path, [*flags, *python] if path.parent in WITH_PYTHON else flags) for path in sources()]
    )
    link = [*compiler(), "-shared", "-pthread", "-Wl,--exclude-libs,ALL"]
    link += map(str, objects)
    digest = digest_of("\n".join(link))
    target = BUILT / f"{NAME}-{digest}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    make_whole(target, link)
    return target


@cache
def emulated_module() -> Any:
    """The module, with the face of runtime/servewright_runtime/_cuda.pyi."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(build()))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[NAME] = module
    return module
