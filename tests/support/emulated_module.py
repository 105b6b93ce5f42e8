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
    compile_object,
    compiler,
    digest_of,
    make_whole,
)

NAME = "_cuda_emulated"
CSRC = ROOT / "csrc"


def sources() -> list[Path]:
    """All that setup.py builds into `_cuda`, with the emulator in the place of the runtime."""
    kernels = [p for p in (CSRC / "cuda").iterdir() if p.suffix in (".cu", ".cpp")]
    bindings = [p for p in (CSRC / "cuda_module").glob("*.cpp") if p.stem != "runtime_cuda"]
    shared = [CSRC / name for name in ("arrays.cpp", "records.cpp")]
    shared += [CSRC / "model" / name for name in ("config.cpp", "step.cpp")]
    return sorted([*EMULATOR, *kernels, *bindings, *shared])


def build() -> Path:
    """The built extension. Skips the test where the emulator cannot run."""
    includes = [sysconfig.get_path("include"), pybind11.get_include()]
    flags = [*COMMON, "-O2", "-fPIC", "-fvisibility=hidden", *(f"-isystem{i}" for i in includes)]
    flags += [f"-DSW_PYBIND11_{pybind11.__version__.replace('.', '_')}"]  # its headers are not read
    objects = [str(compile_object(source, flags)) for source in sources()]
    link = [*compiler(), "-shared", "-pthread", "-Wl,--exclude-libs,ALL"]
    digest = digest_of("\n".join([*link, *objects]))
    target = BUILT / f"{NAME}-{digest}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    if not target.exists():
        make_whole(target, [*link, *objects])
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
