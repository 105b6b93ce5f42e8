"""The build keeps its promises: ISA objects are closed, host code is portable, no torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def setup_variants() -> dict[str, list[str]]:
    """Flags of each variant, read from setup.py without running its setup()."""
    source = (ROOT / "setup.py").read_text()
    namespace: dict[str, object] = {"__file__": str(ROOT / "setup.py")}
    exec(source[: source.index("def builds_extension")], namespace)  # noqa: S102 - our own file
    variants, kernels, common = (namespace[n] for n in ("VARIANTS", "KERNELS", "COMMON"))
    assert isinstance(variants, dict)
    assert isinstance(kernels, list)
    assert isinstance(common, list)
    return {name: [*kernels, *common, *flags] for name, flags in variants.items()}


@pytest.mark.parametrize("variant", setup_variants())
def test_objects_of_an_instruction_set_share_no_symbol(variant: str, tmp_path: Path) -> None:
    """A weak symbol compiled for AVX-512 could replace the portable one at link time. Compiled
    without optimisation: inlining must not be what hides it."""
    target = tmp_path / "kernels.o"
    flags = [flag for flag in setup_variants()[variant] if flag not in ("-O3", "-g1")]
    source = CSRC / "cpu" / "variant.cpp"
    command = [os.environ.get("CXX", "g++"), *flags, "-O1", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    names = subprocess.run(["nm", "-P", str(target)], check=True, capture_output=True, text=True)
    symbols = [line.split()[:2] for line in names.stdout.splitlines()]
    defined = {name: kind for name, kind in symbols if kind != "U"}
    exported = [name for name, kind in defined.items() if kind.isupper()]
    assert len(exported) == 1, exported
    assert f"kernels_{variant}" in exported[0]
    assert not [name for name, kind in defined.items() if kind in "WwVvu"]
    wanted = {name for name, kind in symbols if kind == "U"} - {"_GLOBAL_OFFSET_TABLE_"}
    assert wanted <= {"memcpy", "memset", "memmove"}, wanted


def test_instruction_set_code_includes_no_standard_library() -> None:
    allowed = {"immintrin.h", "stdint.h", "stddef.h", "string.h"}
    files = [p for p in (CSRC / "cpu").iterdir() if p.stem != "dispatch"]
    for path in [*files, CSRC / "common" / "kernels.h"]:
        for name in INCLUDE.findall(path.read_text()):
            assert name in allowed or name.endswith(".h"), f"{path.name} includes {name}"
            if "/" not in name and not (path.parent / name).exists():
                assert name in allowed, f"{path.name} includes {name}"


def test_no_source_knows_torch_or_openmp() -> None:
    for path in [*CSRC.rglob("*.cpp"), *CSRC.rglob("*.h"), ROOT / "setup.py"]:
        text = path.read_text()
        assert not re.search(r"torch/|at::|-fopenmp|#pragma omp", text), path.name


def test_native_path_imports_no_torch() -> None:
    code = "import servewright_runtime.native, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_compiler_is_named_with_its_package(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", str(tmp_path)]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "no C++ compiler (no-such-compiler) found" in ended.stderr
    assert "install the package g++" in ended.stderr
