"""Builds `servewright_runtime._native` from csrc/. All metadata is in pyproject.toml.

The file of kernels is compiled once for each instruction set, with that set's flags and no others;
the rest is portable x86-64 and picks one at run time. Elsewhere nothing is built, and the runtime
says so (`native.unavailable()`). Environment:

  SERVEWRIGHT_NATIVE=0                     build no extension
  SERVEWRIGHT_WERROR=1                     warnings are errors
  SERVEWRIGHT_SANITIZE=address,undefined   a sanitizer build, for hack/sanitize.sh
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
VARIANTS = {
    "base": [],
    "avx2": ["-DSW_AVX2", *AVX2],
    "avx2x16": ["-DSW_AVX2X16", *AVX2],
    "avx512": ["-DSW_AVX512", *AVX2, *AVX512, "-mprefer-vector-width=512"],
}
COMMON = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# No contraction: a fused multiply-add stands where the source says so and nowhere else.
# GCC 12's own AVX-512 header trips -Wmaybe-uninitialized.
KERNELS = [
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-exceptions"),
    *("-fno-rtti", "-fno-tree-reassoc", "-Wno-maybe-uninitialized", "-Wno-ignored-attributes"),
]


def builds_extension() -> bool:
    is_supported = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    return is_supported and os.environ.get("SERVEWRIGHT_NATIVE") != "0"


def compiler() -> list[str]:
    command = os.environ.get("CXX", "g++").split()
    if shutil.which(command[0]) is None:
        raise SystemExit(
            f"setup.py: no C++ compiler ({command[0]}) found to build the kernels; "
            "on Debian or Ubuntu install the package g++, or set CXX."
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise SystemExit(
            f"setup.py: {header} is missing, which the kernels are built against; "
            "on Debian or Ubuntu install the package python3-dev."
        )
    return command


class BuildKernels(build_ext):
    """Compiles csrc/ with one command a file, in parallel, and links them."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cxx = compiler()
        flags = list(COMMON)
        sanitizers = os.environ.get("SERVEWRIGHT_SANITIZE", "")
        if sanitizers:
            flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1"]
            flags += ["-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
        if os.environ.get("SERVEWRIGHT_WERROR") == "1":
            flags.append("-Werror")
        includes = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
        objects = Path(self.build_temp).resolve() / ("sanitized" if sanitizers else "plain")
        objects.mkdir(parents=True, exist_ok=True)

        jobs: list[tuple[list[str], Path]] = []
        for source in map(Path, ext.sources):
            if source.name != "variant.cpp":
                target = objects / f"{source.stem}.o"
                jobs.append((["-O2", *flags, *includes, "-c", str(source)], target))
                continue
            for name, isa in VARIANTS.items():
                target = objects / f"kernels_{name}.o"
                jobs.append(([*KERNELS, *flags, *isa, "-c", str(source)], target))

        def is_stale(source: str, target: Path) -> bool:
            """Kernels need only what lies in cpu/ and common/, other files any header."""
            used = [p for p in headers if "model/" not in p and p.count("/") == 2]
            needed = [source, *(used if source.endswith("variant.cpp") else headers), "setup.py"]
            newest = max((ROOT / p).stat().st_mtime for p in needed)
            return not target.exists() or target.stat().st_mtime < newest

        def compile_one(job: tuple[list[str], Path]) -> None:
            arguments, target = job
            if self.force or is_stale(arguments[-1], target):
                subprocess.run([*cxx, *arguments, "-o", str(target)], check=True, cwd=ROOT)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, jobs))
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [*cxx, "-shared", "-pthread", "-Wl,--exclude-libs,ALL", "-Wl,-z,relro,-z,now"]
        link += [f"-fsanitize={sanitizers}"] if sanitizers else []
        link += [str(target) for _, target in jobs]
        subprocess.run([*link, "-o", str(output)], check=True, cwd=ROOT)


# csrc/cuda and csrc/emulator are compiled by tests alone: no runner uses them yet.
parts = [ROOT / "csrc", *(ROOT / "csrc" / part for part in ("common", "cpu", "model"))]
sources = sorted(str(p.relative_to(ROOT)) for part in parts for p in part.glob("*.cpp"))
headers = sorted(str(p.relative_to(ROOT)) for part in parts for p in part.glob("*.h"))
extension = Extension("servewright_runtime._native", sources, depends=[*sources, *headers])
setup(
    ext_modules=[extension] if builds_extension() else [],
    cmdclass={"build_ext": BuildKernels},
)
