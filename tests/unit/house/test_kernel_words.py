"""Kernels say only what csrc/common/device.cuh gives them, so that both back ends understand."""

from __future__ import annotations

import re

import pytest

from support.tree import ROOT, project_files, text_of

KERNELS = sorted(
    path
    for path in project_files()
    if path.parts[:2] == ("csrc", "cuda") and path.suffix in (".cu", ".cuh", ".h", ".cpp")
)
COMMENT = re.compile(r"//.*|/\*[\s\S]*?\*/")
# What it is: how it looks. __restrict__ too: with it nvcc may take the read-only path by itself,
# unseen by the emulator's check of load_16.
RAW = {
    "a word of CUDA or of the compiler": r"\b__(?!builtin_)\w+",
    "a launch": r"<<<",
    "assembly": r"\basm\b",
    "an index of CUDA": r"\b(thread|block)Idx\b|\b(block|grid)Dim\b|\bwarpSize\b",
    "an atomic of CUDA": r"\batomic[A-Z]\w*",
    "a call of the CUDA runtime": r"\bcuda[A-Z]\w*|\bcu[A-Z]\w*\(",
    "a pragma but once": r"#\s*pragma\s+(?!once)",
    "code for one back end": r"SW_FIBERS|\bemulator::",
    "a header of CUDA or torch": r'#\s*include\s*[<"](cu|torch|ATen|c10|cooperative_groups|mma)',
}


def found(text: str) -> dict[str, list[str]]:
    bare = COMMENT.sub("", text)
    hits = {what: [m[0] for m in re.finditer(looks, bare)] for what, looks in RAW.items()}
    return {what: hit for what, hit in hits.items() if hit}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_a_kernel_has_no_raw_cuda(path: object) -> None:
    assert found((ROOT / str(path)).read_text()) == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("__shared__ float x[2];", "a word of CUDA or of the compiler"),
        ("y = __shfl_xor_sync(m, y, 1);", "a word of CUDA or of the compiler"),
        ("k<<<1, 32>>>(x);", "a launch"),
        ('asm volatile("bar.sync 0;");', "assembly"),
        ("int i = threadIdx.x;", "an index of CUDA"),
        ("atomicAdd(p, 1);", "an atomic of CUDA"),
        ("cudaMemsetAsync(p, 0, n, stream);", "a call of the CUDA runtime"),
        ("#pragma unroll 4", "a pragma but once"),
        ("#if defined(SW_FIBERS)", "code for one back end"),
        ("#include <cuda_bf16.h>", "a header of CUDA or torch"),
        ("#include <torch/extension.h>", "a header of CUDA or torch"),
    ],
)
def test_the_check_knows_what_raw_cuda_looks_like(text: str, what: str) -> None:
    assert what in found(text)
    assert found(f"#pragma once\nfloat* x;  // {text}") == {}


def test_there_are_kernels_to_check() -> None:
    assert KERNELS
    assert "device.cuh" in "".join(text_of(path) for path in KERNELS)
