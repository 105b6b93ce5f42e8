"""Kernels of csrc/cuda on the CPU: builds them over the fiber emulator and runs one op a process.

Each file tests/support/emulator_NAME.cpp registers ops (SW_OP) and names the sources it needs; it
becomes one executable a flavour. Objects lie under build/emulated/, named by a digest of all that
went into them, so only what changed is compiled again: as many at a time as there are cores, and
each by one process only, however many want it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "emulated"
EMULATOR = sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))
DRIVER = ROOT / "tests" / "support" / "emulator_driver.cpp"

Flavour = Literal["plain", "asan", "tsan"]
Order = Literal["up", "down", "random"]
Copies = Literal["lazy", "eager"]
Array = npt.NDArray[Any]

ORDERS: tuple[Order, ...] = ("up", "down", "random")
COPIES: tuple[Copies, ...] = ("lazy", "eager")

COMMON = ["-std=c++17", "-g1", "-ffp-contract=off", "-DSW_FIBERS", "-Wall", "-Wextra"]
# As the extension of support/emulated_module.py wants it, so that its objects serve here too.
COMMON += ["-fPIC", "-fvisibility=hidden"]
if os.environ.get("SERVEWRIGHT_WERROR") == "1":
    COMMON.append("-Werror")
_SANITIZE = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
_OPTIMISE = {"plain": "-O2", "asan": "-O1", "tsan": "-O1"}
_NAMES = {"plain": [], "asan": ["-DSW_ASAN"], "tsan": ["-DSW_TSAN"]}
_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=71",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    "TSAN_OPTIONS": "exitcode=72:report_thread_leaks=0:report_signal_unsafe=0",
}
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_SOURCES = re.compile(r"^// Sources:(.*)$", re.MULTILINE)
_OP = re.compile(r"^SW_OP\((\w+)\)", re.MULTILINE)


class Fault(Exception):
    """The kernel did something no device would forgive; the text says what and where."""


class Emulated:
    """Ops built in one flavour. `defines` go to the compiler, to plant bugs or change shapes."""

    def __init__(self, flavour: Flavour = "plain", defines: Sequence[str] = ()) -> None:
        self.flavour = flavour
        self.defines = tuple(defines)

    def run(
        self,
        op: str,
        arrays: Mapping[str, Array] | None = None,
        scalars: Mapping[str, int | float] | None = None,
        *,
        order: Order = "up",
        copies: Copies = "lazy",
        seed: int = 1,
        time_limit_s: int = 120,
    ) -> dict[str, Array]:
        """The arrays that the op changed or made. bf16 arrays are uint16.

        Raises Fault when the op crashes, deadlocks, or a sanitizer reports.
        """
        driver = self.build(op)
        values: dict[str, Array] = {"op": np.frombuffer(op.encode(), np.uint8)}
        for name, array in (arrays or {}).items():
            values[name] = np.ascontiguousarray(array).reshape(np.shape(array))
        for name, scalar in (scalars or {}).items():
            values[name] = np.array(scalar, np.float64 if isinstance(scalar, float) else np.int64)
        with tempfile.TemporaryDirectory() as folder:
            request, answer = Path(folder, "request"), Path(folder, "answer")
            request.write_bytes(_packed(values))
            command = [str(driver), str(request), str(answer)]
            command += [order, copies, str(seed), str(time_limit_s)]
            if self.flavour == "tsan":  # its shadow memory wants the usual addresses
                command = ["setarch", platform.machine(), "-R", *command]
            try:
                ended = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env={**os.environ, **_ENVIRONMENT},
                    timeout=time_limit_s + 30,
                )
            except subprocess.TimeoutExpired as expired:  # ThreadSanitizer may hold the alarm back
                raise Fault(f"{op}: the time limit of {time_limit_s} s is over") from expired
            if ended.returncode != 0:
                raise Fault(ended.stderr.strip() or f"{op} ended with {ended.returncode}")
            return _unpacked(answer.read_bytes())

    def build(self, op: str) -> Path:
        """The executable that has the op, built where needed."""
        registered = _file_of(op)
        named = _SOURCES.search(registered.read_text())
        sources = [ROOT / name for name in named[1].split()] if named else []
        # The emulator first: where it and a kernel share an inline function, the linker then takes
        # the one without instrumentation.
        objects = compile_objects(
            [(path, self._host_flags()) for path in [*EMULATOR, DRIVER]]
            + [(path, self._kernel_flags()) for path in [registered, *sources]]
        )
        link = [*compiler(), *_SANITIZE[self.flavour]]
        digest = digest_of("\n".join(map(str, [*link, *objects])))
        target = BUILT / f"{registered.stem}-{self.flavour}-{digest}"
        make_whole(target, [*link, *map(str, objects)])
        return target

    def _host_flags(self) -> list[str]:
        return [*COMMON, "-O2", *_NAMES[self.flavour]]

    def _kernel_flags(self) -> list[str]:
        defines = [f"-D{name}" for name in self.defines]
        how = [_OPTIMISE[self.flavour], *_SANITIZE[self.flavour], *_NAMES[self.flavour]]
        return [*COMMON, *how, *defines]


def to_bfloat16(x: Array) -> npt.NDArray[np.uint16]:
    """Nearest, ties to even; NaN not handled."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def compiler() -> list[str]:
    """$CXX, or g++; of several, 12: its ThreadSanitizer sees races among the most fibers."""
    return [os.environ.get("CXX") or shutil.which("g++-12") or "g++"]


@cache
def _version() -> str:
    if platform.machine() != "x86_64":
        pytest.skip("the emulator's switch of fibers is written for x86-64 only")
    command = [*compiler(), "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _file_of(op: str) -> Path:
    for path in sorted(Path(__file__).parent.glob("emulator_*.cpp")):
        if op in _OP.findall(path.read_text()):
            return path
    raise KeyError(f"no file tests/support/emulator_*.cpp has SW_OP({op})")


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_includes(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """The file and all it includes by quotes, recursively."""
    path = path.resolve()
    if path not in seen and path.exists():
        seen[path] = path.read_text()
        for name in _INCLUDE.findall(seen[path]):
            _with_includes(path.parent / name, seen)
    return seen


def compile_objects(sources: Sequence[tuple[Path, list[str]]]) -> list[Path]:
    """The objects of sources with their flags, under build/emulated/, compiled where needed."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda job: _compile_object(*job), sources))


def _compile_object(source: Path, flags: list[str]) -> Path:
    texts = _with_includes(source, {})
    # A file that never asks for a flavour's name is the same object in each.
    asked = "\n".join(texts.values())
    names = [flag for name in _NAMES.values() for flag in name if flag[2:] not in asked]
    command = [*compiler(), *(flag for flag in flags if flag not in names)]
    digest = digest_of("\n".join([_version(), *command, *map(str, texts), *texts.values()]))
    target = BUILT / f"{source.stem}-{digest}.o"
    make_whole(target, [*command, "-c", "-x", "c++", str(source)])
    return target


def make_whole(target: Path, command: list[str]) -> None:
    """Runs a compiler unless the target is there, which appears whole or not at all.

    A second process that wants it waits for the first.
    """
    if target.exists():
        return
    BUILT.mkdir(parents=True, exist_ok=True)
    lock = BUILT / f"{target.name}.lock"
    with lock.open("w") as held, tempfile.TemporaryDirectory(dir=BUILT) as folder:
        fcntl.flock(held, fcntl.LOCK_EX)
        if target.exists():
            return
        part = Path(folder, target.name)
        ended = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
        if ended.returncode != 0:
            raise Fault(f"{' '.join(command)}\n{ended.stderr}")
        part.replace(target)
        lock.unlink()


def _packed(values: Mapping[str, Array]) -> bytes:
    parts = [struct.pack("<I", len(values))]
    for name, array in values.items():
        for text in (name, array.dtype.name):
            parts += [struct.pack("<I", len(text)), text.encode()]
        parts += [struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape), array.tobytes()]
    return b"".join(parts)


def _unpacked(data: bytes) -> dict[str, Array]:
    at = 4

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        at += struct.calcsize(layout)
        return struct.unpack_from(layout, data, at - struct.calcsize(layout))

    values = {}
    for _ in range(struct.unpack_from("<I", data)[0]):
        name, dtype = (take(f"<{take('<I')[0]}s")[0].decode() for _ in range(2))
        shape = take(f"<{take('<I')[0]}q")
        array: Array = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
        at += array.nbytes
        values[name] = array
    return values
