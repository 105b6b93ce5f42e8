"""Compiles the CUDA kernels for whoever looks at the result: PTX, machine code, ptxas' report.

Results are kept under build/cuda by a digest of everything that went in.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
RELEASE = 13
# -fmad=false: sums are fused where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")


class Missing(Exception):
    """A tool is not here; the text says which and how to get it."""


@dataclass(frozen=True)
class Compiled:
    """Of one source for one architecture, e.g. sm_80."""

    source: Path
    architecture: str
    ptx: str
    report: str  # what `ptxas -v` says
    cubin: Path
    object: Path  # cubin and host code, for `nvcc -shared`


def find() -> str:
    """The path of nvcc 13: $NVCC, or from PATH, or of /usr/local/cuda."""
    found = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(found).exists():
        raise Missing(f"needs nvcc {RELEASE}: on PATH, or in $NVCC (docs/kernels.md)")
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.", told)
    if not release or int(release[1]) != RELEASE:
        raise Missing(f"needs nvcc {RELEASE}: {found} is {release[0] if release else 'another'}")
    return found


def disassembler() -> str:
    """The path of nvdisasm, from the package nvidia-cuda-nvdisasm or from PATH."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        paths = [str(file.locate()) for file in files if file.name == "nvdisasm"]
    except importlib.metadata.PackageNotFoundError:
        paths = []
    found = next(iter(paths), None) or shutil.which("nvdisasm")
    if not found:
        raise Missing(f"needs nvcc {RELEASE}: and nvdisasm, which `pip install -e .[dev]` brings")
    return found


def compile_kernels(source: Path, architecture: str, definitions: Sequence[str] = ()) -> Compiled:
    """Compile one .cu file. Raises subprocess.CalledProcessError with what nvcc says."""
    nvcc = find()
    arguments = [*FLAGS, *(f"-D{definition}" for definition in definitions)]
    folder = ROOT / "build" / "cuda" / _digest(source, architecture, [nvcc, *arguments])
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _compile(nvcc, arguments, source, architecture, Path(made))
            try:
                Path(made).rename(folder)
                Path(made).mkdir()  # what the context manager removes
            except OSError:
                assert folder.exists()  # another process was faster
    return Compiled(
        source,
        architecture,
        (folder / "kernels.ptx").read_text(),
        (folder / "report.txt").read_text(),
        folder / "kernels.cubin",
        folder / "kernels.o",
    )


def disassemble(compiled: Compiled) -> str:
    """The machine code as nvdisasm prints it."""
    kept = compiled.cubin.with_suffix(".sass")
    if not kept.exists():
        command = [disassembler(), "-c", str(compiled.cubin)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(told)
        part.rename(kept)
    return kept.read_text()


def _compile(
    nvcc: str, arguments: list[str], source: Path, architecture: str, folder: Path
) -> None:
    number = architecture.removeprefix("sm_")
    common = [nvcc, *arguments, "-I", str(ROOT / "csrc")]
    with tempfile.TemporaryDirectory() as kept:
        done = subprocess.run(
            [
                *common,
                *("-gencode", f"arch=compute_{number},code=sm_{number}", "-Xptxas", "-v"),
                *("-c", "--keep", "--keep-dir", kept),
                *("-o", str(folder / "kernels.o"), str(source)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"nvcc {source.name}: {done.stderr or done.stdout}")
        (folder / "report.txt").write_text(done.stderr + done.stdout)
        for suffix in (".ptx", ".cubin"):
            shutil.copy(Path(kept, source.stem).with_suffix(suffix), folder / f"kernels{suffix}")


def _digest(source: Path, architecture: str, arguments: list[str]) -> str:
    digest = hashlib.sha256("\0".join([architecture, *arguments]).encode())
    headers = {
        path
        for folder in {KERNELS, ROOT / "csrc" / "common", source.parent}
        for path in folder.iterdir()
        if path.suffix in (".h", ".cuh")
    }
    for path in [source, *sorted(headers)]:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
