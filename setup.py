"""Builds `servewright_runtime._native` and `_cuda` from csrc/. All metadata is in pyproject.toml.

The file of kernels is compiled once for each instruction set, with that set's flags and no others;
the rest is portable x86-64 and picks one at run time. Elsewhere nothing is built, and the runtime
says so (`native.unavailable()`). The CUDA kernels are built by nvcc where that is asked for; the
machine needs neither a GPU nor a driver. Environment:

  SERVEWRIGHT_NATIVE=0                     build no extension
  SERVEWRIGHT_CUDA=1                       build `_cuda` too; nvcc 13 from $NVCC, PATH or
                                           /usr/local/cuda
  SERVEWRIGHT_WERROR=1                     warnings are errors
  SERVEWRIGHT_SANITIZE=address,undefined   a sanitizer build, for hack/sanitize.sh
"""

import os
import platform
import re
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
    # Its tile instructions stand in assembly: older compilers' words for them lose stores.
    "amx": ["-DSW_AVX512", "-DSW_AMX", *AVX2, *AVX512, "-mprefer-vector-width=512"],
}
COMMON = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# No contraction: a fused multiply-add stands where the source says so and nowhere else.
# GCC 12's own AVX-512 header trips -Wmaybe-uninitialized and -Wuninitialized.
KERNELS = [
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-exceptions"),
    *("-fno-rtti", "-fno-tree-reassoc", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),
    "-Wno-ignored-attributes",
]
# The release that the kernels are checked with (hack/nvcc.py); earlier ones are refused.
NVCC_RELEASE = 13
# -fmad=false: no contraction here either. PTX of the last for devices to come.
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-cudart", "static"]
NVCC += ["-gencode", "arch=compute_80,code=sm_80"]
NVCC += ["-gencode", "arch=compute_90,code=[sm_90,compute_90]"]


def builds_extension() -> bool:
    is_supported = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    return is_supported and os.environ.get("SERVEWRIGHT_NATIVE") != "0"


def builds_cuda() -> bool:
    asked = os.environ.get("SERVEWRIGHT_CUDA", "0")
    if asked not in ("0", "1"):
        raise SystemExit(f"setup.py: SERVEWRIGHT_CUDA must be 0 or 1, got {asked!r}.")
    if asked == "1" and not builds_extension():
        raise SystemExit(
            "setup.py: SERVEWRIGHT_CUDA=1 needs Linux on x86-64 and SERVEWRIGHT_NATIVE not 0."
        )
    return asked == "1"


def find_nvcc() -> str:
    """The path of nvcc, of NVCC_RELEASE or later."""
    found = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    how = f"install the CUDA toolkit {NVCC_RELEASE} or set NVCC to its nvcc"
    if shutil.which(found) is None:
        raise SystemExit(f"setup.py: SERVEWRIGHT_CUDA=1, but {found} is not found; {how}.")
    told = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", told)
    if release is None or int(release[1]) < NVCC_RELEASE:
        came = f"of release {release[1]}.{release[2]}" if release else "no nvcc"
        raise SystemExit(f"setup.py: SERVEWRIGHT_CUDA=1, but {found} is {came}; {how}.")
    return found


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
        if ext.name.endswith("._cuda"):
            self.build_cuda(ext)
        else:
            self.build_native(ext)

    def build_native(self, ext: Extension) -> None:
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

        commands = [
            ([*cxx, *arguments], target)
            for arguments, target in jobs
            if self.force or is_stale(arguments[-1], target)
        ]
        link = [*cxx, "-shared", "-pthread", "-Wl,--exclude-libs,ALL", "-Wl,-z,relro,-z,now"]
        link += [f"-fsanitize={sanitizers}"] if sanitizers else []
        self.compile_and_link(ext, commands, [*link, *(str(target) for _, target in jobs)])

    def build_cuda(self, ext: Extension) -> None:
        """nvcc compiles what knows CUDA, and links; g++ the host's half."""
        import pybind11

        cxx, nvcc = compiler(), find_nvcc()
        flags, host = list(COMMON), ["-fPIC", "-fvisibility=hidden"]
        if os.environ.get("SERVEWRIGHT_WERROR") == "1":
            flags.append("-Werror")
        includes = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
        objects = Path(self.build_temp).resolve() / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        with_nvcc = [nvcc, "-ccbin", cxx[0], *NVCC, "-Xcompiler", ",".join(host)]

        newest = max((ROOT / p).stat().st_mtime for p in [*ext.depends, "setup.py"])
        commands: list[tuple[list[str], Path]] = []
        targets: list[str] = []
        for source in map(Path, ext.sources):
            target = objects / ("_".join(source.parts[1:]) + ".o")
            targets.append(str(target))
            if not self.force and target.exists() and target.stat().st_mtime >= newest:
                continue
            if source.suffix == ".cu":
                command = [*with_nvcc, "-c", str(source)]
            elif source.stem == "runtime_cuda":  # nvcc knows where its headers are
                python = [f"-I{include.removeprefix('-isystem')}" for include in includes]
                command = [*with_nvcc, *python, "-c", str(source)]
            else:
                command = [*cxx, "-O2", *flags, *includes, "-c", str(source)]
            commands.append((command, target))
        link = [nvcc, "-ccbin", cxx[0], "-shared", "-cudart", "static", "-Xcompiler", "-pthread"]
        link += ["-Xlinker", "--exclude-libs=ALL", "-Xlinker", "-z,relro,-z,now"]
        self.compile_and_link(ext, commands, [*link, *targets])

    def compile_and_link(
        self, ext: Extension, commands: list[tuple[list[str], Path]], link: list[str]
    ) -> None:
        def compile_one(job: tuple[list[str], Path]) -> None:
            command, target = job
            subprocess.run([*command, "-o", str(target)], check=True, cwd=ROOT)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, commands))
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*link, "-o", str(output)], check=True, cwd=ROOT)


parts = [ROOT / "csrc", *(ROOT / "csrc" / part for part in ("common", "cpu", "model"))]
sources = sorted(str(p.relative_to(ROOT)) for part in parts for p in part.glob("*.cpp"))
headers = sorted(str(p.relative_to(ROOT)) for part in parts for p in part.glob("*.h"))
native = Extension("servewright_runtime._native", sources, depends=[*sources, *headers])


def cuda() -> Extension:
    """The kernels, their bindings, and what these share with the native module."""
    folders = [ROOT / "csrc" / part for part in ("cuda", "cuda_module")]
    files = [p for folder in folders for p in folder.iterdir()]
    files += [ROOT / "csrc" / name for name in ("arrays.cpp", "records.cpp")]
    files += [ROOT / "csrc" / "model" / name for name in ("config.cpp", "step.cpp")]
    compiled = [p for p in files if p.suffix in (".cu", ".cpp") and p.stem != "runtime_fibers"]
    read = [p for p in files if p.suffix in (".h", ".cuh")]
    read += [*(ROOT / "csrc" / "common").iterdir(), *(ROOT / p for p in headers)]
    names = [sorted(str(p.relative_to(ROOT)) for p in group) for group in (compiled, read)]
    return Extension("servewright_runtime._cuda", names[0], depends=[*names[0], *names[1]])


extensions = [native] if builds_extension() else []
if builds_cuda():
    find_nvcc()  # before anything is compiled
    extensions.append(cuda())
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
