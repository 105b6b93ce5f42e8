"""CudaRunner: a model on an NVIDIA GPU, with the face of `models.runner.Runner`.

A step is cut into passes (passes.py): prefills first, then decode steps of up to 64 sequences, each
one replay of a captured graph, sampling included. All passes are queued on one stream, and the only
wait is the one for what they drew. Nothing is allocated after `seal`, unless a step has more passes
than any before it, or wants its logits.

Bits: those of a sequence that decodes depend on its tokens, its cache and its parameters alone, in
any company and slot. The cache of prefilled positions is not so: its products are cuBLAS' on as
many rows as the step happens to have, so chunking, company and the prefix cache may move its last
bits, and a preempted sequence comes back by prefill. docs/gpu.md says what follows for replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from servewright_runtime.cuda.decode import Decode, sizes
from servewright_runtime.cuda.device import Device
from servewright_runtime.cuda.passes import Decoding, Part, Prefilling, passes
from servewright_runtime.cuda.prefill import FUSED_TOKENS, Prefill
from servewright_runtime.cuda.staging import MAX_BIASES, Host, Staging
from servewright_runtime.cuda.weights import Weights
from servewright_runtime.errors import StartError
from servewright_runtime.models.runner import (
    Float32s,
    Int32s,
    LlamaConfig,
    StepBatch,
    StepResult,
)

if TYPE_CHECKING:
    from servewright_runtime.config import KvPlan

# Result rows of a pass, where their results will lie, and their logits if they are wanted.
_Drawn = tuple[Int32s, Host, Float32s | None]


class CudaRunner:
    """A Llama model on the CUDA kernels. Load tensors, seal, then step.

    Device memory, all taken here: packed weights, KV pool, tables of RoPE, workspaces.
    """

    def __init__(
        self,
        config: LlamaConfig,
        types: Mapping[str, str],
        *,
        cache: Callable[[int], KvPlan],
        longest: int,
        max_batch: int,
        step_tokens: int,
        threads: int,
        kernels: ModuleType,
        device: Device,
        fused_tokens: int = FUSED_TOKENS,
    ) -> None:
        """Take the memory.

        types: the GGUF type of each tensor by its name.  cache: sizes the KV cache, given the bytes
        that it may take.  longest: tokens; `cache` allows no longer sequence.  max_batch,
        step_tokens: sequences and prefilled tokens that a pass is made for; a step may have more.
        threads: that pack weights.  fused_tokens: see `Prefill`.
        Raises ValueError where `kernels.unfit` gives a reason, StartError where the device has too
        little memory, and what `cache` raises.
        """
        if why := kernels.unfit(config, types):
            raise ValueError(why)
        self.config = config
        self.kernel = f"cuda ({device.name})"
        self._kernels = kernels
        self._device = device
        try:
            self._allocate(types, cache, longest, max_batch, step_tokens, threads, fused_tokens)
        except torch.OutOfMemoryError:
            raise StartError(
                f"{device.name} ran out of memory, which something else has taken meanwhile; "
                "give the model a device of its own."
            ) from None

    def _allocate(
        self,
        types: Mapping[str, str],
        cache: Callable[[int], KvPlan],
        longest: int,
        max_batch: int,
        step_tokens: int,
        threads: int,
        fused_tokens: int,
    ) -> None:
        kernels, device, config = self._kernels, self._device, self.config
        slots = min(sizes(max_batch)[-1], kernels.MAX_SLOTS)
        self._require(kernels.layout(config, types)[0], "the weights")
        self._weights = Weights(kernels, device, config, types, threads)
        tables = self._rope_tables(longest)
        model = kernels.Model(config, types, self._weights.data, *tables)
        workspaces = (
            model.plan(slots, longest, 1).workspace_bytes
            + kernels.sampling_workspace(config.vocab_size, slots)
            + Staging.device_bytes(slots, step_tokens, longest)
            + Prefill.device_bytes(config, step_tokens)
        )
        plan = cache(self._require(workspaces, "beside the weights the workspaces"))
        self.num_blocks, self._max_length = plan.num_blocks, plan.max_model_len
        self._prefill_tokens = step_tokens

        step = model.plan(slots, self._max_length, self.num_blocks)
        self._pool = torch.empty(step.pool_shape, dtype=torch.bfloat16, device=device.place)
        self._staging = Staging(
            kernels, device, slots=slots, tokens=step_tokens, max_length=self._max_length
        )
        self._decode = Decode(device, model, self._staging, self._pool, max_length=self._max_length)
        self._prefill = Prefill(
            kernels, device, config, self._weights, tables, tokens=step_tokens,
            fused_tokens=fused_tokens,
        )  # fmt: skip
        self._head = model.matrix("output.weight")
        self._norm = self._weights.norm("output_norm.weight")
        self._last = torch.empty(slots, config.hidden_size, device=device.place)
        size = kernels.sampling_workspace(config.vocab_size, slots)
        self._sampling = torch.empty(size, dtype=torch.uint8, device=device.place)

    @property
    def weights_bytes(self) -> int:
        """Bytes of packed weights loaded so far."""
        return self._weights.loaded_bytes

    def load(
        self, name: str, tensor_type: str, first_row: int, rows: npt.NDArray[np.uint8]
    ) -> None:
        """Pack rows [first_row, first_row + len(rows)) of a tensor and queue their upload.

        rows: [rows, row_bytes] uint8, as in the file.  Chunks come in any order, in multiples of 16
        rows but the last of a tensor. Raises ValueError, having written nothing, on an unknown
        name, a wrong shape or type, or rows that were loaded before.
        """
        self._weights.load(name, tensor_type, first_row, rows)

    def seal(self) -> None:
        """End loading. Raises ValueError that names a tensor with rows missing.

        Captures the steps, and prefills once in each way, so that no request waits for kernels or
        cuBLAS to load.
        """
        self._weights.seal()
        longest = min(self._prefill_tokens, self._max_length)
        ids, tables = self._staging.given["token_ids"], self._staging.given["page_table"]
        with self._device.entered():
            for tokens in (1, longest):  # of token 0, into page 0
                self._prefill.run(ids[:tokens], [Part(0, 0, tokens, 0)], tables, self._pool)
            self._decode.record()
            self._device.wait()

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch, append to the KV cache, draw tokens (see `models.runner.Runner.step`).

        The draw is that of models/sampling_reference.py.
        Raises ValueError that names the array, what was wanted and what came, before any write.
        """
        self._kernels.check_step(batch, self.config, self.num_blocks)
        self._check(batch)
        prefills, decodes = passes(batch, slots=self._staging.slots, tokens=self._prefill_tokens)
        drawn: list[_Drawn] = []
        self._staging.begin()
        with self._device.entered():
            for prefill in prefills:
                drawn += self._run_prefill(batch, prefill)
            for decode in decodes:
                drawn.append(self._run_decode(batch, decode))
            self._device.wait()
        return self._result(batch, drawn)

    def commit_ahead(self) -> bool:
        """All of the cache is allocated from the start."""
        return False

    def close(self) -> None:
        """Free weights and cache. No step may follow."""
        for name in ("_decode", "_prefill", "_head", "_norm", "_staging", "_pool", "_weights",
                     "_last", "_sampling"):  # fmt: skip
            self.__dict__.pop(name, None)

    def _run_prefill(self, batch: StepBatch, prefill: Prefilling) -> list[_Drawn]:
        """Queue a prefill and its draws, as many at once as there are slots."""
        staging, given = self._staging, self._staging.given
        host, slots = staging.host(), staging.slots
        at = 0
        for row, part in enumerate(prefill.parts):
            ids = batch.token_ids[part.first : part.first + part.tokens]
            host.given["token_ids"][at : at + part.tokens] = ids
            _put_pages(host, row, batch.block_tables[part.sequence])
            at += part.tokens
        staging.send(host, tables=len(prefill.parts))
        x = self._prefill.run(
            given["token_ids"][:at], prefill.parts, given["page_table"], self._pool
        )
        drawn: list[_Drawn] = []
        for first in range(0, len(prefill.draws), slots):
            rows, draws = prefill.rows[first : first + slots], prefill.draws[first : first + slots]
            host, count = staging.host(), len(rows)
            host.given["rows"][:count] = rows
            host.put_sampling(batch.sampling, draws, count)
            staging.send(host, tables=0)
            last = torch.index_select(x, 0, given["rows"][:count], out=self._last[:count])
            logits = self._decode.logits(slots)[:count]
            self._kernels.project_normed(
                self._head, last, self._norm, self.config.norm_eps, logits, self._device.stream
            )
            self._kernels.sample(
                logits, self.config.vocab_size, staging.sampling(count), self._sampling,
                self._device.stream,
            )  # fmt: skip
            staging.fetch(host)
            drawn.append((draws, host, self._logits(batch, slots, count)))
        return drawn

    def _run_decode(self, batch: StepBatch, decode: Decoding) -> _Drawn:
        """Queue a decode step."""
        count = len(decode.sequences)
        slots = self._decode.slots_for(count)
        host = self._staging.host()
        host.given["token_ids"][:count] = batch.token_ids[decode.tokens]
        host.given["token_ids"][count:slots] = 0
        host.given["lengths"][:count] = batch.context_starts[decode.sequences] + 1
        host.given["lengths"][count:slots] = 0
        _put_pages(host, slice(count), batch.block_tables[decode.sequences])
        host.put_sampling(batch.sampling, decode.draws, slots)
        self._decode.run(host, slots, count)
        return decode.draws, host, self._logits(batch, slots, count)

    def _logits(self, batch: StepBatch, slots: int, count: int) -> Float32s | None:
        if not batch.return_logits:
            return None
        logits = self._decode.logits(slots)[:count, : self.config.vocab_size]
        return np.array(logits.cpu().numpy())

    def _result(self, batch: StepBatch, drawn: list[_Drawn]) -> StepResult:
        samples = len(batch.sample_tokens)
        width = int(batch.sampling.top_logprobs.max(initial=0))
        result = StepResult(
            token_ids=np.empty(samples, np.int32),
            logprobs=np.zeros(samples, np.float32),
            top_ids=np.zeros((samples, width), np.int32),
            top_logprobs=np.zeros((samples, width), np.float32),
            finite=all(host.drawn["finite"][: len(rows)].all() for rows, host, _ in drawn),
            logits=(
                np.empty((samples, self.config.vocab_size), np.float32)
                if batch.return_logits
                else None
            ),
        )
        for rows, host, logits in drawn:
            count = len(rows)
            result.token_ids[rows] = host.drawn["token_ids"][:count]
            result.logprobs[rows] = host.drawn["token_logprobs"][:count]
            result.top_ids[rows] = host.drawn["top_ids"][:count, :width]
            result.top_logprobs[rows] = host.drawn["top_values"][:count, :width]
            if result.logits is not None and logits is not None:
                result.logits[rows] = logits
        return result

    def _check(self, batch: StepBatch) -> None:
        """What this runner bounds besides `check_step`."""
        sampling = batch.sampling
        for name, values, most in (
            ("context_starts", batch.context_starts + np.diff(batch.seq_starts), self._max_length),
            ("history_starts", np.diff(sampling.history_starts), self._max_length),
            ("bias_starts", np.diff(sampling.bias_starts), MAX_BIASES),
            ("top_logprobs", sampling.top_logprobs, self._kernels.MAX_TOP_LOGPROBS),
        ):
            if (longest := int(values.max(initial=0))) > most:
                raise ValueError(f"step: {name} asks for {longest}, of at most {most} a sequence")

    def _rope_tables(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[positions, head_dim / 2] float32 each."""
        cosines = np.empty((positions, self.config.head_dim // 2), np.float32)
        sines = np.empty_like(cosines)
        self._kernels.fill_rope(self.config, cosines, sines)
        place = self._device.place
        return torch.from_numpy(cosines).to(place), torch.from_numpy(sines).to(place)

    def _require(self, size: int, what: str) -> int:
        """Bytes left when `size` of the free ones are taken. Raises StartError if they are not."""
        free = self._device.free_bytes()
        if size >= free:
            raise StartError(
                f"{self._device.name} has {free} bytes of memory free, but {what} take {size}; "
                "lower engine.maxModelLen or engine.maxBatch, or choose a smaller model or a "
                "larger device."
            )
        return free - size


def _put_pages(host: Host, rows: int | slice, tables: Int32s) -> None:
    """Page tables, as far as they are kept; what lies behind a sequence's pages is never read."""
    to = host.given["page_table"][rows]
    width = min(to.shape[-1], tables.shape[-1])
    to[..., :width] = tables[..., :width]
