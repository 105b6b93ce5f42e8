"""From a path to a LoadedModel: which format a file has, and which runner fits it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from servewright_runtime import native
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.models.bpe import build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.gguf_header import MAGIC
from servewright_runtime.models.llama import read_config, tensor_shapes
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.reference import DEQUANTISABLE, TorchRunner
from servewright_runtime.models.requantise import requantise, served_type
from servewright_runtime.models.runner import LlamaConfig, Runner

if TYPE_CHECKING:
    from servewright_runtime.config import KvPlan

log = logging.getLogger(__name__)

Kernel: TypeAlias = Literal["Auto", "Fused", "Reference"]

FORMATS = ("gguf",)

# Rows are handed to the runner in pieces of this size: what loading holds beyond the weights.
CHUNK_BYTES = 8 << 20
# The native runner packs 32 rows together.
CHUNK_ROWS = 32


class Loading(Protocol):
    """What a runner has besides `Runner` until it is sealed."""

    config: LlamaConfig

    def load(
        self, name: str, tensor_type: str, first_row: int, rows: npt.NDArray[np.uint8]
    ) -> None: ...

    def seal(self) -> None: ...


class _LoadingRunner(Runner, Loading, Protocol):
    pass


@dataclass(frozen=True, slots=True)
class OnGpu:
    """A model asked for on a GPU, and what its runner is sized by."""

    cache: Callable[[LlamaConfig, int], KvPlan]  # given the bytes that the KV cache may take
    max_model_len: int | None  # tokens; None: what the model was made for
    max_batch: int  # sequences
    step_tokens: int  # of a prefill


def detect_format(path: Path) -> str:
    """The format of the file at `path`, by its first bytes. Raises ConfigError if it is unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a model file."
        ) from None
    if start == MAGIC:
        return "gguf"
    found = f"starts with {start!r}, which is no known model format" if start else "is empty"
    raise ConfigError(f"{path}: {found}; formats that work: {', '.join(FORMATS)}.")


def load(
    path: Path,
    *,
    format: str | None,
    kernel: Kernel,
    num_blocks: Callable[[LlamaConfig], int],
    threads: int,
    progress: Callable[[int, int], None],
    gpu: OnGpu | None = None,
) -> LoadedModel:
    """Load the model at `path`, ready to run.

    format: what the manifest says, or None to look at the file. num_blocks: KV blocks for the
    model, asked once its header is read. progress: called with bytes loaded and bytes in all.
    gpu: run it there, whatever `kernel` and `num_blocks` say.
    Raises ConfigError where file, format, kernel or machine do not fit.
    """
    found = detect_format(path)
    if format is not None and format != found:
        raise ConfigError(
            f"{path}: model.format is {format}, but the file is {found}; "
            "correct model.format or leave it out."
        )
    with GGUFFile(path) as file:
        config = read_config(file)
        tokenizer = build_tokenizer(file, config.vocab_size)
        try:
            runner = _make_any_runner(file, config, kernel, num_blocks, threads, gpu)
        except BaseException:
            if tokenizer.chat_template is not None:
                tokenizer.chat_template.close()
            raise
        model = LoadedModel(runner=runner, tokenizer=tokenizer, format=found, bytes=file.size)
        try:
            load_tensors(file, runner, progress)
        except BaseException:
            model.close()
            raise
        return model


def _make_any_runner(
    file: GGUFFile,
    config: LlamaConfig,
    kernel: Kernel,
    num_blocks: Callable[[LlamaConfig], int],
    threads: int,
    gpu: OnGpu | None,
) -> _LoadingRunner:
    if gpu is not None:
        return _make_gpu_runner(file, config, gpu, threads)
    blocks = num_blocks(config)
    try:
        return _make_runner(file, config, kernel, blocks, threads)
    except MemoryError:
        raise StartError(
            f"{file.path}: {blocks} KV blocks and the weights do not fit in this process's "
            "memory; lower engine.kvCache or choose a smaller model."
        ) from None


def _make_runner(
    file: GGUFFile, config: LlamaConfig, kernel: Kernel, num_blocks: int, threads: int
) -> _LoadingRunner:
    if kernel != "Reference":
        obstacle = _fused_obstacle(file, config)
        if obstacle is None:
            return native.NativeRunner(config, num_blocks=num_blocks, threads=threads)
        if kernel == "Fused":
            raise ConfigError(
                f"{file.path}: engine.kernel is Fused, but {obstacle}; "
                "set engine.kernel to Auto or Reference, or choose a file that fits."
            )
        log.warning("reference kernel chosen", extra={"path": str(file.path), "why": obstacle})
    for tensor in file.tensors.values():
        if tensor.type not in DEQUANTISABLE:
            raise ConfigError(
                f"{file.path}: the tensor {tensor.name} has the type {tensor.type}, which no "
                "kernel reads; choose a file of another quantisation, such as Q8_0 or Q4_0."
            )
    return TorchRunner(config, num_blocks=num_blocks, threads=threads)


def _make_gpu_runner(
    file: GGUFFile, config: LlamaConfig, gpu: OnGpu, threads: int
) -> _LoadingRunner:
    missing = availability.unavailable()
    if missing is not None:
        raise ConfigError(
            f"spec.accelerator asks for a GPU, but none can be used here ({missing.rstrip('.')}); "
            "mend that or remove spec.accelerator."
        )
    types = {name: served_type(tensor.type) for name, tensor in file.tensors.items()}
    why = availability.unfit(config, types)
    if why is not None:
        raise ConfigError(
            f"{file.path}: spec.accelerator asks for a GPU, but its kernels cannot run this model "
            f"({why.rstrip('.')}); choose a file that fits or remove spec.accelerator."
        )
    # Both import torch, which no model on the CPU needs.
    from servewright_runtime.cuda.device import Gpu
    from servewright_runtime.cuda.runner import CudaRunner

    try:
        device = Gpu()
    except RuntimeError as error:  # as a driver's version that the kernels take and torch does not
        raise ConfigError(
            f"spec.accelerator asks for a GPU, but torch cannot start it ({error}); install a "
            "torch that fits the driver or remove spec.accelerator."
        ) from None
    return CudaRunner(
        config,
        types,
        cache=lambda limit: gpu.cache(config, limit),
        longest=min(gpu.max_model_len or config.context_length, config.context_length),
        max_batch=gpu.max_batch,
        step_tokens=gpu.step_tokens,
        threads=threads,
        kernels=availability.kernels(),
        device=device,
    )


def _fused_obstacle(file: GGUFFile, config: LlamaConfig) -> str | None:
    """Why the fused kernels cannot run this file here, as the end of a sentence."""
    reason = native.unavailable()
    if reason is not None:
        return f"the fused kernels cannot run here ({reason.rstrip('.')})"
    for tensor in file.tensors.values():
        if served_type(tensor.type) not in native.NATIVE_TYPES:
            return (
                f"the tensor {tensor.name} has the type {tensor.type}, "
                "which they neither read nor convert"
            )
    reason = native.unfit(config)
    return None if reason is None else f"they cannot run this model ({reason.rstrip('.')})"


def load_tensors(file: GGUFFile, runner: Loading, progress: Callable[[int, int], None]) -> None:
    """Stream all tensors into `runner` and seal it.

    The reference reads every type; fused kernels get those that they lack as others, see
    `requantise`.
    """
    converted: Counter[str] = Counter()
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    done = 0
    progress(done, total)
    # As a step reads them, for so they lie in memory: where one ends, the CPU's prefetchers run on
    # into the next. Files keep a layer together, so a disk hardly jumps.
    for name, _ in tensor_shapes(runner.config):
        tensor = file.tensors[name]
        kind, chunk_bytes = tensor.type, CHUNK_BYTES
        if not isinstance(runner, TorchRunner) and served_type(kind) != kind:
            kind = served_type(kind)
            converted[f"{tensor.type} to {kind}"] += 1
            chunk_bytes //= 16  # what comes between takes some times as much
        for first_row, rows in file.row_chunks(tensor, chunk_bytes, CHUNK_ROWS):
            runner.load(name, kind, first_row, requantise(rows, tensor.type, kind))
            done += rows.nbytes
            progress(done, total)
    runner.seal()
    if converted:
        log.info("tensors converted", extra={"path": str(file.path), "types": dict(converted)})
