"""The fused CPU kernels: one call runs a whole mixed batch through all layers, sampling included.

`NativeRunner` is a `models.runner.Runner`. Weights stay quantised as the file holds them, repacked
row by row for the vectors of this CPU; activations meet quantised weights as int8 with a scale for
32 values, and K and V are float16. So logits differ from a float32 reference by about 0.1 % of
their spread with float weights, and by some percent with quantised ones. A token's result has the
same bits whatever else is in the batch, however its prompt was chunked and on any number of
threads; variants differ from each other where a value lies between two int8.

Nothing here imports torch, and importing this module works where the kernels cannot run:
`unavailable()` says why.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.runner import LlamaConfig, SamplingBatch, StepBatch, StepResult

if TYPE_CHECKING:
    from servewright_runtime import _native
else:
    try:
        from servewright_runtime import _native
    except ImportError:
        _native = None

# GGUF tensor types that the kernels take as they are.
NATIVE_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"})

# Never chosen by itself: the 16-lane logic on pairs of AVX2 vectors, for tests without AVX-512.
_TEST_ONLY = frozenset({"avx2x16"})


def unavailable() -> str | None:
    """One sentence why the fused kernels cannot run here, or None if they can."""
    if _native is not None:
        return None
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return (
            f"The fused kernels run on Linux on x86-64 and this is {sys.platform} on "
            f"{platform.machine()}; set engine.kernel to Reference."
        )
    return (
        "The fused kernels are not built in this installation; install it again with a C++ "
        "compiler (g++) present, or set engine.kernel to Reference."
    )


def unfit(config: LlamaConfig) -> str | None:
    """Why the kernels cannot run this model though they run here, one sentence, or None."""
    return _native.unfit(config) or None


def variants() -> tuple[str, ...]:
    """Kernels that this CPU can run, best first; `avx2x16` is for tests. Empty if unavailable."""
    if _native is None:
        return ()
    return tuple(name for name, is_runnable in _native.variants() if is_runnable)


def chosen_variant() -> str:
    """The kernels that run: the best, or what SERVEWRIGHT_CPU names.

    Raises ConfigError if the kernels are unavailable, or those named are unknown or not runnable.
    """
    why = unavailable()
    if why is not None:
        raise ConfigError(why)
    wanted = os.environ.get("SERVEWRIGHT_CPU")
    if not wanted:
        return next(name for name in variants() if name not in _TEST_ONLY)
    known = [name for name, _ in _native.variants()]
    if wanted not in known:
        raise ConfigError(f"SERVEWRIGHT_CPU must be one of {', '.join(known)}, got {wanted!r}.")
    if wanted not in variants():
        raise ConfigError(
            f"SERVEWRIGHT_CPU is {wanted}, whose instructions this CPU lacks; "
            f"unset it or choose one of {', '.join(variants())}."
        )
    return wanted


class NativeRunner:
    """A Llama model on the fused kernels. Load tensors, seal, then step.

    Memory: the packed weights (the size of the file's tensors), committed as they are loaded, and
    the KV cache of `num_blocks` blocks, committed as blocks are first written, and up to 256 MiB
    ahead of that by `commit_ahead`.
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, threads: int, variant: str | None = None
    ) -> None:
        """Reserve memory. `threads` includes the caller's; `variant` defaults to chosen_variant().

        Raises ValueError where `unfit(config)` gives a reason or a number is out of range,
        MemoryError if the address space is refused, ConfigError as chosen_variant() does.
        """
        self.config = config
        self.num_blocks = num_blocks
        self.kernel = variant if variant is not None else chosen_variant()
        self._runner = _native.Runner(config, num_blocks, threads, self.kernel)

    @property
    def weights_bytes(self) -> int:
        """Bytes of packed weights loaded so far."""
        return self._runner.weights_bytes

    def load(
        self, name: str, tensor_type: str, first_row: int, rows: npt.NDArray[np.uint8]
    ) -> None:
        """Pack rows [first_row, first_row + len(rows)) of a tensor, straight from `rows`.

        name: as in a GGUF file, "blk.0.attn_q.weight".  tensor_type: of NATIVE_TYPES; norms and
        rope factors are one row of F32.  rows: [rows, row_bytes] uint8, as in the file.
        Chunks come in any order, in multiples of 32 rows but the last of a tensor.
        Raises ValueError, having written nothing, on an unknown name, a wrong shape or type, or
        rows that were loaded before. Releases the GIL while packing.
        """
        self._runner.load(name, tensor_type, first_row, rows)

    def seal(self) -> None:
        """End loading. Raises ValueError that names tensors with rows missing."""
        self._runner.seal()

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch, append to the KV cache, draw tokens (see `models.runner.Runner.step`).

        Steps of one runner run one after the other; runners of a process share one pool of threads.
        The draw is that of models/sampling_reference.py.
        Raises ValueError that names the array, what was wanted and what came, before any write.
        """
        ids, logprobs, top_ids, top_logprobs, finite, logits = self._runner.step(batch)
        return StepResult(ids, logprobs, top_ids, top_logprobs, finite, logits)

    def commit_ahead(self) -> bool:
        """Commit the next 2 MiB of the KV cache; see Runner. Releases the GIL."""
        return self._runner.commit_ahead()

    def close(self) -> None:
        """Free weights and cache. No step may follow."""
        self._runner.close()


class DenseNetwork(Protocol):
    """Dense layers, ready to run."""

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[..., inputs] to [..., outputs]."""


def dense_network(
    weights: Sequence[npt.NDArray[Any]],
    biases: Sequence[npt.NDArray[np.float32] | None],
    activations: Sequence[str],
    *,
    threads: int,
    variant: str | None = None,
) -> DenseNetwork:
    """Dense layers with a copy of their weights, as `ops.Mlp` has them; uint16: bfloat16's bits."""
    kernel = variant if variant is not None else chosen_variant()
    return _native.Network(kernel, weights, biases, activations, threads)


def run_dense(
    x: npt.NDArray[np.float32],
    weights: Sequence[npt.NDArray[Any]],
    biases: Sequence[npt.NDArray[np.float32] | None],
    activations: Sequence[str],
    *,
    threads: int,
    variant: str | None = None,
) -> npt.NDArray[np.float32]:
    """The same in one call, on the caller's weights."""
    kernel = variant if variant is not None else chosen_variant()
    return _native.run_network(kernel, x, weights, biases, activations, threads)


def pack(
    tensor_type: str, rows: npt.NDArray[np.uint8], cols: int, *, variant: str | None = None
) -> npt.NDArray[np.uint8]:
    """GGUF rows, [rows, row_bytes], for project_packed: [groups, group_bytes] of the variant."""
    kernel = variant if variant is not None else chosen_variant()
    return _native.pack(kernel, tensor_type, rows, cols)


def project_packed(
    x: npt.NDArray[np.float32],
    packed: npt.NDArray[np.uint8],
    tensor_type: str,
    rows: int,
    *,
    norm: npt.NDArray[np.float32] | None = None,
    eps: float = 1e-5,
    threads: int = 1,
    variant: str | None = None,
) -> npt.NDArray[np.float32]:
    """x [tokens, cols] times the packed weights' rows: [tokens, rows], as csrc/cpu/projections.h.

    norm: [cols], x is first scaled to unit RMS and by it. A token has the same bits in any batch.
    """
    kernel = variant if variant is not None else chosen_variant()
    return _native.project_packed(kernel, tensor_type, packed, rows, x, norm, eps, threads)


def dequantise_packed(
    packed: npt.NDArray[np.uint8],
    tensor_type: str,
    rows: int,
    cols: int,
    *,
    variant: str | None = None,
) -> npt.NDArray[np.float32]:
    """What pack() made of rows, as float32 [rows, cols]; exact, but that Q4_1 is d q + m rounded.

    Raises ValueError where `packed` is not what pack() makes here of such rows.
    """
    kernel = variant if variant is not None else chosen_variant()
    return _native.dequantise_packed(kernel, tensor_type, packed, rows, cols)


def attend(
    qkv: npt.NDArray[np.float32],
    pool: npt.NDArray[np.float16],
    page_table: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
    cosines: npt.NDArray[np.float32],
    sines: npt.NDArray[np.float32],
    heads: int,
    *,
    interleaved: bool = True,
    threads: int = 1,
    variant: str | None = None,
) -> npt.NDArray[np.float32]:
    """RoPE of q and k, k and v into the pool, causal attention: [tokens, heads * head_dim].

    Arrays as csrc/attend.h has them; as many tokens a sequence as qkv has for each of `lengths`.
    A token has the same bits in any batch and any chunk. Releases the GIL.
    Raises ValueError that names the array and the value, before any write.
    """
    kernel = variant if variant is not None else chosen_variant()
    return _native.attend(
        kernel, qkv, pool, page_table, lengths, cosines, sines, heads, interleaved, threads
    )


def sample(
    logits: npt.NDArray[np.float32],
    sampling: SamplingBatch,
    *,
    threads: int = 1,
    variant: str | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """A token for each row of logits [rows, vocab], and whether all of the row is finite.

    The draw is that of models/sampling_reference.py; a row that is not finite gets its highest
    number. Raises ValueError that names the column and the value.
    """
    kernel = variant if variant is not None else chosen_variant()
    return _native.sample(kernel, logits, sampling, threads)
