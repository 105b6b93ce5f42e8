"""The Llama model in plain torch float32: the oracle of the tests and the fallback of the kernels.

Written to be read beside the paper's formulas. Every tensor is dequantised when it is loaded, so
the weights take 4 bytes an element: 4 times a Q8_0 file, 7 times a Q4_0 one. torch picks its
matrix kernels by the number of rows, so unlike the fused kernels' this runner's last bits depend
on the batch.

torch is imported where a runner is made, never by importing this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.llama import tensor_shapes
from servewright_runtime.models.runner import (
    BLOCK_TOKENS,
    LlamaConfig,
    StepBatch,
    StepResult,
)
from servewright_runtime.models.sampling_reference import sample

if TYPE_CHECKING:
    from torch import Tensor

# Types whose rows `gguf` turns into float32.
DEQUANTISABLE = frozenset({"F32", "F16"} | {kind.name for kind in quants._type_traits})


class TorchRunner:
    """A `Runner` of float32 weights and a float32 paged KV cache.

    Made empty; `load` brings the rows of each tensor, `seal` checks that all came.
    Raises ConfigError where torch is not installed, MemoryError where the model does not fit.
    """

    def __init__(self, config: LlamaConfig, *, num_blocks: int, threads: int) -> None:
        try:
            import torch
        except ImportError:
            raise ConfigError(
                "engine.kernel Reference needs torch, which is not installed; "
                "run `pip install 'servewright[reference]'`."
            ) from None
        torch.set_num_threads(threads)
        self.config = config
        self.num_blocks = num_blocks
        self.kernel = f"reference (torch {torch.__version__.partition('+')[0]})"
        self._torch = torch
        self._weights: dict[str, Tensor] = {}
        self._missing: dict[str, int] = {}  # rows that have not come yet
        # [layers, positions, kv_heads, head_dim] float32. numpy's zeros take no memory until they
        # are written, torch's do.
        kv_shape = (config.layers, num_blocks * BLOCK_TOKENS, config.kv_heads, config.head_dim)
        try:
            for name, shape in tensor_shapes(config):
                self._weights[name] = torch.empty(shape[::-1])  # [rows, cols] or [cols] float32
                self._missing[name] = 1 if len(shape) == 1 else shape[1]
            self._keys = torch.from_numpy(np.zeros(kv_shape, np.float32))
            self._values = torch.from_numpy(np.zeros(kv_shape, np.float32))
        except RuntimeError as error:  # so torch calls a lack of memory
            raise MemoryError(str(error)) from None
        self.weights_bytes = sum(tensor.nbytes for tensor in self._weights.values())
        self._rope_step = self._rope_frequencies()

    def load(
        self, name: str, tensor_type: str, first_row: int, rows: npt.NDArray[np.uint8]
    ) -> None:
        """Take rows [first_row, first_row + rows) of a tensor, as the file has them (raw bytes).

        rows: [rows, row_bytes] uint8. Raises ValueError on an unknown name or a wrong shape.
        """
        if name not in self._weights:
            raise ValueError(f"the model has no tensor {name}")
        values = quants.dequantize(rows, GGMLQuantizationType[tensor_type]).astype(np.float32)
        weight = self._weights[name]
        target = weight.view(-1, weight.shape[-1])[first_row : first_row + len(values)]
        if target.shape != values.shape:
            raise ValueError(
                f"{name}: rows {first_row} to {first_row + len(values)} of {values.shape[1]} "
                f"do not fit in {tuple(weight.shape)}"
            )
        target.copy_(self._torch.from_numpy(values))
        self._missing[name] -= len(values)

    def seal(self) -> None:
        """Check that every tensor is whole. Raises ValueError naming one that is not."""
        for name, rows in self._missing.items():
            if rows:
                raise ValueError(f"{name}: {rows} rows have not been loaded")

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch, append to the KV cache, draw tokens. See `Runner.step`."""
        self._check(batch)
        with self._torch.inference_mode():
            logits = self._logits(batch).numpy()  # [samples, vocab] float32
        drawn = sample(logits, batch.sampling)
        return StepResult(
            token_ids=drawn.token_ids,
            logprobs=drawn.logprobs,
            top_ids=drawn.top_ids,
            top_logprobs=drawn.top_logprobs,
            finite=bool(np.isfinite(logits).all()),
            logits=logits if batch.return_logits else None,
        )

    def commit_ahead(self) -> bool:
        """All of the cache is allocated from the start."""
        return False

    def close(self) -> None:
        """Free weights and cache."""
        self._weights.clear()
        self._keys = self._values = self._torch.empty(0)

    def _logits(self, batch: StepBatch) -> Tensor:
        torch, weights = self._torch, self._weights
        linear = torch.nn.functional.linear
        positions, slots = self._places(batch)
        cos, sin = self._rotation(positions)

        x = weights["token_embd.weight"][torch.from_numpy(batch.token_ids)]  # [tokens, hidden]
        for layer in range(self.config.layers):
            w = {role: weights[f"blk.{layer}.{role}.weight"] for role in _LAYER_ROLES}
            h = self._rms_norm(x, w["attn_norm"])
            query = self._rotate(self._split_heads(linear(h, w["attn_q"])), cos, sin)
            self._keys[layer, slots] = self._rotate(
                self._split_heads(linear(h, w["attn_k"])), cos, sin
            )
            self._values[layer, slots] = self._split_heads(linear(h, w["attn_v"]))
            x = x + linear(self._attention(layer, query, batch), w["attn_output"])
            h = self._rms_norm(x, w["ffn_norm"])
            gate = torch.nn.functional.silu(linear(h, w["ffn_gate"]))
            x = x + linear(gate * linear(h, w["ffn_up"]), w["ffn_down"])

        x = x[torch.from_numpy(batch.sample_tokens)]  # [samples, hidden]
        x = self._rms_norm(x, weights["output_norm.weight"])
        head = "token_embd.weight" if self.config.tied_head else "output.weight"
        logits: Tensor = linear(x, weights[head])
        return logits

    def _places(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Position in its sequence and slot in the KV cache of each token: two of [tokens]."""
        positions, slots = [], []
        for row in range(len(batch.context_starts)):
            start = int(batch.context_starts[row])
            end = start + int(batch.seq_starts[row + 1] - batch.seq_starts[row])
            positions.append(self._torch.arange(start, end))
            slots.append(self._slots(batch, row, end)[start:])
        if not positions:
            return self._torch.empty(0), self._torch.empty(0, dtype=self._torch.int64)
        return self._torch.cat(positions), self._torch.cat(slots)

    def _slots(self, batch: StepBatch, row: int, end: int) -> Tensor:
        """Slots of a sequence's positions 0 to `end`: [end] int64."""
        position = np.arange(end)
        blocks = batch.block_tables[row, position // BLOCK_TOKENS].astype(np.int64)
        return self._torch.from_numpy(blocks * BLOCK_TOKENS + position % BLOCK_TOKENS)

    def _attention(self, layer: int, query: Tensor, batch: StepBatch) -> Tensor:
        """softmax(q k / sqrt(d)) v over each token's own past: [tokens, heads * head_dim].

        query: [tokens, heads, head_dim]. Keys and values of the batch are in the cache already.
        """
        config = self.config
        out = self._torch.empty(query.shape[0], config.heads * config.head_dim)
        for row in range(len(batch.context_starts)):
            first, last = int(batch.seq_starts[row]), int(batch.seq_starts[row + 1])
            past = int(batch.context_starts[row])
            end = past + last - first
            slots = self._slots(batch, row, end)
            group = config.heads // config.kv_heads  # query heads that share a key head
            k = self._keys[layer, slots].repeat_interleave(group, dim=1)  # [end, heads, dim]
            v = self._values[layer, slots].repeat_interleave(group, dim=1)
            scores = self._torch.einsum("thd,phd->htp", query[first:last], k)
            scores *= config.head_dim**-0.5
            future = self._torch.ones(last - first, end).triu(past + 1).bool()
            scores = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
            out[first:last] = self._torch.einsum("htp,phd->thd", scores, v).flatten(1)
        return out

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt() * weight

    def _split_heads(self, x: Tensor) -> Tensor:
        dim = self.config.head_dim
        return x.view(len(x), x.shape[1] // dim, dim)  # [tokens, heads, head_dim]

    def _rope_frequencies(self) -> Tensor:
        """Radians that each pair turns for one position: [rope_dims / 2] float64."""
        config = self.config
        pairs = self._torch.arange(0, config.rope_dims, 2, dtype=self._torch.float64)
        frequencies = config.rope_base ** (-pairs / config.rope_dims) * config.rope_scale
        if config.rope_factors is not None:
            frequencies /= self._torch.tensor(config.rope_factors, dtype=self._torch.float64)
        return frequencies

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's pairs: two of [tokens, 1, rope_dims / 2] float32."""
        # In double: at position 8192 a float32 angle is off by 2.4e-4.
        angles = (positions.double()[:, None] * self._rope_step)[:, None, :]
        return angles.cos().float(), angles.sin().float()

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn adjacent pairs (2i, 2i + 1) of the leading dimensions. x: [tokens, heads, dim]."""
        dims = self.config.rope_dims
        even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
        turned = self._torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return self._torch.cat((turned.flatten(-2), x[..., dims:]), dim=-1)

    def _check(self, batch: StepBatch) -> None:
        tokens, sequences = len(batch.token_ids), len(batch.context_starts)
        lengths = np.diff(batch.seq_starts)
        ends = batch.context_starts + lengths if len(lengths) == sequences else None
        if ends is None or batch.seq_starts[0] != 0 or batch.seq_starts[-1] != tokens:
            raise ValueError(f"seq_starts do not cut {tokens} tokens into {sequences} sequences")
        if (lengths < 1).any() or (batch.context_starts < 0).any():
            raise ValueError("a sequence has no tokens, or starts before its first position")
        if ((batch.token_ids < 0) | (batch.token_ids >= self.config.vocab_size)).any():
            raise ValueError(f"a token id is not in 0 to {self.config.vocab_size - 1}")
        for row in range(sequences):
            blocks = batch.block_tables[row, : -(-int(ends[row]) // BLOCK_TOKENS)]
            if len(blocks) * BLOCK_TOKENS < ends[row]:
                raise ValueError(f"sequence {row} has {len(blocks)} blocks for {ends[row]} tokens")
            if ((blocks < 0) | (blocks >= self.num_blocks)).any():
                raise ValueError(f"sequence {row} has a block outside 0 to {self.num_blocks - 1}")
        if ((batch.sample_tokens < 0) | (batch.sample_tokens >= tokens)).any():
            raise ValueError(f"a sampled token is not in 0 to {tokens - 1}")


_LAYER_ROLES = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
