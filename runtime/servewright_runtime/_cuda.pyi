"""Types of the extension module of the CUDA half (csrc/cuda_module/bindings.cpp).

Built only where SERVEWRIGHT_CUDA=1. The tests build the same bindings over the emulator as
`_cuda_emulated` (tests/support/emulated_module.py): there tensors lie in the CPU's memory, streams
are ignored and a launch ends before it returns.

Tensors cross by DLPack, read where they lie and never copied: C-contiguous, aligned to 16 bytes,
on the device of the module, all of one call on the same device. `Tensor` is anything with
`__dlpack__`; in the emulated module a numpy array too, with uint16 for bf16. uint64 may come as
int64 of the same bits. What a call only reads or writes is used until the stream has passed it:
keep such tensors until then, as with any op. What `Matrix`, `Model`, `Sampling` and `Step` take
they keep alive themselves.

A stream is the int of a cudaStream_t (torch: `stream.cuda_stream`). Ops launch and return: no
allocation, no synchronisation, so each may be captured in a graph once it has run before. They
release the GIL while they launch.

Errors: ValueError names the argument, what was wanted and what came, before any launch; DeviceError
has CUDA's own words. Values inside device memory (lengths, pages, ids) are not checked: see
`check_step`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import LlamaConfig, StepBatch

class Tensor(Protocol):
    def __dlpack__(self, *, stream: int | None = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...

class DeviceError(RuntimeError):
    """CUDA refused: the op, the error's name and CUDA's description of it."""

EMULATED: bool  # tensors lie in the CPU's memory
WEIGHT_TYPES: tuple[str, ...]  # "BF16", "Q8_0", "Q4_0", "Q4_1": of matrices; norms are "F32"
PAGE_POSITIONS: int  # 16, of a KV page
PACK_ROWS: int  # 16: a packed matrix is whole in tiles of so many rows
MAX_SLOTS: int  # 64, sequences of a decode step
MAX_TOP_LOGPROBS: int  # 20, alternatives of a drawn token

# ---- The host's half: these need no device and no driver. ----

def device_problem(device: int) -> str:
    """Why the kernels cannot run on CUDA device number `device`, one sentence; '' if they can.

    It names what is missing: the driver, a newer one, a device at all, this one, or its compute
    capability (8.0 at least). Of the emulated module always ''.
    """

def unfit(config: LlamaConfig, types: Mapping[str, str]) -> str:
    """Why the kernels cannot run a model, one sentence that names the tensor; '' if they can.

    types: the GGUF type of every tensor by its GGUF name ("blk.0.attn_q.weight"). A missing one, an
    unknown one and a type outside WEIGHT_TYPES (norms: F32) are reasons too.
    """

def layout(config: LlamaConfig, types: Mapping[str, str]) -> tuple[int, dict[str, tuple[int, int]]]:
    """(bytes in all, {name: (offset, bytes)}): where `Model` looks for each packed tensor.

    Offsets are multiples of 16. Q, K and V of one layer and type lie one right behind the other,
    and are one launch. A tied head and `rope_freqs.weight` have no place of their own.
    Raises ValueError where `unfit` gives a reason.
    """

def row_bytes(tensor_type: str, cols: int) -> int:
    """Bytes of a GGUF row."""

def packed_bytes(tensor_type: str, rows: int, cols: int) -> int:
    """Bytes of a packed matrix; for a multiple of PACK_ROWS also where row `rows` begins."""

def pack(
    tensor_type: str,
    cols: int,
    rows: npt.NDArray[np.uint8],
    out: npt.NDArray[np.uint8],
    threads: int = 1,
) -> None:
    """Repack GGUF rows for the kernels, in host memory. Releases the GIL.

    rows: [rows, row_bytes], may be read-only.  out: [packed_bytes(tensor_type, rows, cols)],
    C-contiguous; fully written.  A matrix may be packed in pieces: each but the last a multiple of
    PACK_ROWS rows, to where packed_bytes() says.  threads: at most so many work.
    """

def fill_rope(
    config: LlamaConfig, cosines: npt.NDArray[np.float32], sines: npt.NDArray[np.float32]
) -> None:
    """Fill [positions, head_dim / 2] tables, in host memory, for positions 0 up."""

def check_step(batch: StepBatch, config: LlamaConfig, num_blocks: int) -> None:
    """Raise ValueError as the CPU's step does, for any shape, dtype, id or index out of range."""

# ---- On the device ----

class Matrix:
    """A packed weight matrix in device memory, which it keeps alive."""

    def __init__(self, tensor_type: str, rows: int, cols: int, data: Tensor) -> None:
        """data: uint8 [packed_bytes(tensor_type, rows, cols)]."""
    @property
    def type(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

class Sampling:
    """Parameters and results of `rows` draws in device memory, kept alive: addresses for a graph.

    arrays: by the names of `SamplingBatch`, with its shapes and dtypes (history_ids, bias_ids and
    bias_values of any length: what the starts allow), and the results `token_ids` int32 [rows],
    `finite` int32 [rows], `token_logprobs` float32 [rows], `top_ids` int32 and `top_values` float32
    [rows, top_width]; top_width is at most MAX_TOP_LOGPROBS and may be 0. The caller has checked
    the values (`check_step`): starts ascend within the arrays, top_logprobs is at most top_width.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def top_width(self) -> int: ...

class Model:
    """A Llama model's weights on one device, kept alive."""

    def __init__(
        self,
        config: LlamaConfig,
        types: Mapping[str, str],
        weights: Tensor,
        cosines: Tensor,
        sines: Tensor,
    ) -> None:
        """weights: uint8 [layout()[0]], filled as `layout` says: packed matrices, float32 norms.

        cosines, sines: float32 [positions, head_dim / 2], filled by `fill_rope`. No sequence may
        be longer than `positions`.
        """
    def matrix(self, name: str) -> Matrix:
        """By GGUF name; "output.weight" is the embedding where the head is tied."""
    def plan(self, slots: int, max_length: int, pages: int) -> Step:
        """A decode step of `slots` sequences of at most `max_length` tokens, the new one counted.

        slots: 1 to MAX_SLOTS.  pages: of the pool.
        """

class Step:
    """One decode step: a new token for each of `slots` sequences, sampling included.

    Plans of one model may share pool and workspace, steps one after another.
    """

    @property
    def slots(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def pool_shape(self) -> tuple[int, int, int, int, int, int]:
        """Of the bf16 pool, [layers, pages, K and V, kv_heads, PAGE_POSITIONS, head_dim]."""
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def tickets_bytes(self) -> int:
        """The workspace's first bytes: 0 before the first step, and again after each."""
    @property
    def logits_offset(self) -> int:
        """Where in the workspace the step leaves its logits, float32 [slots, logits_stride]."""
    @property
    def logits_stride(self) -> int: ...
    @property
    def launches(self) -> int:
        """Of kernels in a step: 5 a layer and 3; more where Q, K and V have different types."""
    def bind(
        self,
        *,
        pool: Tensor,
        workspace: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        page_table: Tensor,
        sampling: Sampling,
    ) -> None:
        """Say where contents lie; addresses stay the same for every launch that follows.

        pool: bf16 pool_shape, of any content.  workspace: uint8, workspace_bytes or more.
        token_ids: int32 [slots]; may be the token_ids that `sampling` writes.  lengths: int32
        [slots], the new token counted; 0 for an empty slot.  page_table: int32 [slots, width],
        width * PAGE_POSITIONS at least max_length.  sampling: of `slots` rows.
        """
    def launch(self, stream: int) -> None:
        """Raises DeviceError; ValueError before `bind`."""

# ---- Single ops. tokens may be any number where no other bound is named. ----

def embed(matrix: Matrix, token_ids: Tensor, out: Tensor, stream: int) -> None:
    """out [tokens, cols] float32: rows token_ids int32 [tokens], zeros where there is none."""

def project_normed(
    matrix: Matrix, x: Tensor, norm: Tensor, eps: float, out: Tensor, stream: int
) -> None:
    """out[token, :rows] = matrix @ rms_norm(x, norm, eps), all float32.

    x: [tokens, cols].  norm: [cols].  out: [tokens, rows or more].
    """

def project_residual(matrix: Matrix, inp: Tensor, x: Tensor, stream: int) -> None:
    """x += matrix @ inp.  inp: bf16 [tokens, cols].  x: float32 [tokens, rows]."""

def gate_up(
    gate: Matrix, up: Matrix, x: Tensor, norm: Tensor, eps: float, out: Tensor, stream: int
) -> None:
    """out = silu(gate y) * (up y), bf16 [tokens, rows]; y = rms_norm(x). Both of one type."""

def attention_workspace(
    heads: int, kv_heads: int, head_dim: int, max_length: int, tokens: int
) -> int:
    """Bytes of the `partials` of `attention`."""

def attention(
    qkv: Tensor,
    cosines: Tensor,
    sines: Tensor,
    pool: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    tickets: Tensor,
    partials: Tensor,
    out: Tensor,
    max_length: int,
    interleaved: bool,
    stream: int,
) -> None:
    """One new token a sequence: RoPE, append to the pool, attention.

    qkv: float32 [tokens, (heads + 2 kv_heads) head_dim], tokens at most MAX_SLOTS.  pool: bf16 of a
    layer, [pages, 2, kv_heads, PAGE_POSITIONS, head_dim].  page_table: int32 [tokens, width].
    lengths: int32 [tokens], the new token counted, none above max_length; 0 for an empty slot.
    cosines, sines: as of `Model`, max_length positions or more.  tickets: int32 [tokens *
    kv_heads or more], 0 before the first launch, and again after each.  partials: uint8
    [attention_workspace(...) or more].  out: bf16 [tokens, heads, head_dim].
    """

def sampling_workspace(vocab: int, rows: int) -> int:
    """Bytes of the workspace of `sample`."""

def sample(logits: Tensor, vocab: int, sampling: Sampling, workspace: Tensor, stream: int) -> None:
    """Draw a token a row, as models/sampling_reference.py defines it.

    logits: float32 [sampling.rows, stride], stride a multiple of 4 of at least `vocab`.
    workspace: uint8 [sampling_workspace(vocab, rows) or more], of any content.
    """

def mlp_workspace(widths: Sequence[int], tokens: int) -> int:
    """Bytes of the workspace of `mlp`; widths: inputs, then the outputs of each layer."""

def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    out: Tensor,
    workspace: Tensor,
    stream: int,
) -> None:
    """out[token] = a dense network of x[token], all float32; one launch for 64 layers.

    x: [tokens, inputs].  weights: [outputs, inputs] each, widths 1 to 4096.  biases: [outputs].
    activations: of ops.ACTIVATIONS.  workspace: uint8 [mlp_workspace(...) or more]; its first 256
    bytes are 0 before the first launch with it, and again after each.
    """

def dequantise(matrix: Matrix, out: Tensor, stream: int) -> None:
    """out: bf16 [rows, cols], the weights rounded to nearest."""

def rope_append(
    qkv: Tensor,
    cosines: Tensor,
    sines: Tensor,
    pool: Tensor,
    pages: Tensor,
    first_position: int,
    q_rotated: Tensor,
    interleaved: bool,
    stream: int,
) -> None:
    """RoPE on Q and K of one sequence's chunk; K and V appended to its pages.

    qkv: float32 or bf16 [tokens, (heads + 2 kv_heads) head_dim].  cosines, sines: as of `Model`.
    pool: bf16 of the layer, [pages, 2, kv_heads, PAGE_POSITIONS, head_dim].  pages: int32 [pages of
    the sequence].  q_rotated: bf16 [tokens, heads, head_dim], written for `prefill_attention`.
    """

def prefill_attention(
    q_rotated: Tensor, pool: Tensor, pages: Tensor, first_position: int, out: Tensor, stream: int
) -> None:
    """Causal attention of the chunk over the sequence's pages.

    out: bf16 [tokens, heads * head_dim].
    """

def residual_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor | None, stream: int
) -> None:
    """x += delta; out = rms_norm(x, weight, eps).

    x: float32 [tokens, hidden].  delta: float32 or bf16, as x.  weight: float32 [hidden].
    out: bf16, as x. hidden is a multiple of 8.
    """

def silu_mul(inp: Tensor, out: Tensor, stream: int) -> None:
    """out = silu(inp[:, :ffn]) * inp[:, ffn:].

    inp: float32 or bf16 [tokens, 2 ffn], gate then up.  out: bf16 [tokens, ffn].
    """
