"""Types of the extension module (csrc/bindings.cpp). Use it through native.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import LlamaConfig, SamplingBatch, StepBatch

_Float32s = npt.NDArray[np.float32]
_Int32s = npt.NDArray[np.int32]
_Bytes = npt.NDArray[np.uint8]

def variants() -> list[tuple[str, bool]]: ...
def unfit(config: LlamaConfig) -> str: ...

class Runner:
    def __init__(
        self, config: LlamaConfig, num_blocks: int, threads: int, variant: str
    ) -> None: ...
    def load(self, name: str, tensor_type: str, first_row: int, rows: _Bytes) -> None: ...
    def seal(self) -> None: ...
    def step(
        self, batch: StepBatch
    ) -> tuple[_Int32s, _Float32s, _Int32s, _Float32s, bool, _Float32s | None]: ...
    def commit_ahead(self) -> bool: ...
    def close(self) -> None: ...
    @property
    def weights_bytes(self) -> int: ...

class Network:
    def __init__(
        self,
        variant: str,
        weights: Sequence[npt.NDArray[Any]],
        biases: Sequence[_Float32s | None],
        activations: Sequence[str],
        threads: int,
    ) -> None: ...
    def run(self, x: _Float32s) -> _Float32s: ...

def run_network(
    variant: str,
    x: _Float32s,
    weights: Sequence[npt.NDArray[Any]],
    biases: Sequence[_Float32s | None],
    activations: Sequence[str],
    threads: int,
) -> _Float32s: ...
def pack(variant: str, tensor_type: str, rows: _Bytes, cols: int) -> _Bytes: ...
def project_packed(
    variant: str,
    tensor_type: str,
    packed: _Bytes,
    rows: int,
    x: _Float32s,
    norm: _Float32s | None,
    eps: float,
    threads: int,
) -> _Float32s: ...
def dequantise_packed(
    variant: str, tensor_type: str, packed: _Bytes, rows: int, cols: int
) -> _Float32s: ...
def attend(
    variant: str,
    qkv: _Float32s,
    pool: npt.NDArray[np.float16],
    page_table: _Int32s,
    lengths: _Int32s,
    cosines: _Float32s,
    sines: _Float32s,
    heads: int,
    interleaved: bool,
    threads: int,
) -> _Float32s: ...
def sample(
    variant: str, logits: _Float32s, sampling: SamplingBatch, threads: int
) -> tuple[_Int32s, npt.NDArray[np.bool_]]: ...
def project(variant: str, tensor_type: str, rows: _Bytes, x: _Float32s) -> _Float32s: ...
def dequantise(variant: str, tensor_type: str, rows: _Bytes, cols: int) -> _Float32s: ...
def quantise(
    variant: str, x: _Float32s, weight: _Float32s | None, eps: float
) -> tuple[npt.NDArray[np.int8], _Float32s, _Int32s, _Float32s, _Int32s]: ...
def exponentials(variant: str, x: _Float32s, temperature: float) -> npt.NDArray[np.float64]: ...
def scan(variant: str, x: _Float32s) -> tuple[float, int, bool]: ...
def uniform(seed: int, draw: int) -> float: ...
