"""A random Llama model loaded through the bindings of the CUDA half, on the emulator.

`ModuleSteps` answers as the emulated driver's op `decode` does (support/decode_steps.py), so that
the very same steps run through either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from servewright_runtime.models.runner import LlamaConfig
from support.emulated import Array
from support.emulated_module import emulated_module

CHUNK_ROWS = 32


def packed_weights(
    config: LlamaConfig, types: Mapping[str, str], tensors: Mapping[str, Array]
) -> Array:
    """All tensors where `layout` says, packed in chunks, last rows first; the gaps hold 0xFF."""
    module = emulated_module()
    total, places = module.layout(config, types)
    weights = np.full(total, 0xFF, np.uint8)
    for name, (offset, size) in places.items():
        rows = np.ascontiguousarray(tensors[name])
        if types[name] == "F32":
            weights[offset : offset + size] = rows.reshape(-1).view(np.uint8)
            continue
        cols = config.hidden_size
        if name.endswith("attn_output.weight"):
            cols = config.heads * config.head_dim
        elif name.endswith("ffn_down.weight"):
            cols = config.ffn_size
        for first in reversed(range(0, len(rows), CHUNK_ROWS)):
            chunk = rows[first : first + CHUNK_ROWS]
            at = offset + module.packed_bytes(types[name], first, cols)
            end = at + module.packed_bytes(types[name], len(chunk), cols)
            module.pack(types[name], cols, chunk, weights[at:end])
    return weights


def rope_tables(config: LlamaConfig, positions: int) -> tuple[Array, Array]:
    shape = (positions, config.head_dim // 2)
    cosines, sines = np.empty(shape, np.float32), np.empty(shape, np.float32)
    emulated_module().fill_rope(config, cosines, sines)
    return cosines, sines


def load_model(
    config: LlamaConfig,
    types: Mapping[str, str],
    tensors: Mapping[str, Array],
    positions: int,
) -> Any:
    """A `_cuda.Model`."""
    weights = packed_weights(config, types, tensors)
    return emulated_module().Model(config, types, weights, *rope_tables(config, positions))


class ModuleSteps:
    """`run` as of support/emulated.py's Emulated, for the op decode alone."""

    def __init__(
        self, config: LlamaConfig, types: Mapping[str, str], tensors: Mapping[str, Array]
    ) -> None:
        self.config, self.types, self.tensors = config, types, tensors

    def run(
        self, op: str, arrays: Mapping[str, Array], scalars: Mapping[str, Any]
    ) -> dict[str, Array]:
        assert op == "decode"
        module = emulated_module()
        max_length = scalars["max_length"]
        model = load_model(self.config, self.types, self.tensors, max_length)
        steps, slots, _ = arrays["page_table"].shape
        step = model.plan(slots, max_length, scalars["pages"])
        pool = arrays.get("pool", np.full(step.pool_shape, 0xFFFF, np.uint16)).copy()
        workspace = np.full(step.workspace_bytes, 0xFF, np.uint8)
        workspace[: step.tickets_bytes] = 0

        names = ("token_ids", "lengths", "page_table")
        now = {name: arrays[name][0].copy() for name in names}
        columns = _columns(arrays, slots, scalars["top_width"])
        if scalars["feeds_itself"]:
            columns["token_ids"][:] = now["token_ids"]
            now["token_ids"] = columns["token_ids"]
        step.bind(pool=pool, workspace=workspace, sampling=module.Sampling(columns), **now)

        found: dict[str, list[Array]] = {"logits": [], "token_ids_drawn": [], "tickets": []}
        found |= {"finite_logits": [], "launches": []}
        for index in range(steps):
            for name, array in [*now.items(), *columns.items()]:
                given = name in arrays and not (name == "token_ids" and array is not now[name])
                if given and not (name == "token_ids" and scalars["feeds_itself"]):
                    array[...] = arrays[name][index]
            step.launch(0)
            rows = workspace[step.logits_offset :][: 4 * slots * step.logits_stride]
            logits = rows.view(np.float32).reshape(slots, -1)[:, : self.config.vocab_size]
            found["logits"].append(logits.copy())
            found["token_ids_drawn"].append(columns["token_ids"].copy())
            found["finite_logits"].append(columns["finite"].copy())
            found["tickets"].append(workspace[: step.tickets_bytes].copy())
            found["launches"].append(np.array(step.launches))
        return {name: np.stack(rows) for name, rows in found.items()}


def _columns(arrays: Mapping[str, Array], slots: int, top_width: int) -> dict[str, Array]:
    """What `Sampling` takes: the first step's parameters, and room for the results."""
    names = (
        "temperature", "top_k", "top_p", "min_p", "seed", "draw", "presence", "frequency",
        "repetition", "history_ids", "history_starts", "history_prompts", "bias_ids",
        "bias_values", "bias_starts", "logprobs", "top_logprobs",
    )  # fmt: skip
    columns = {name: arrays[name][0].copy() for name in names}
    columns["token_ids"] = np.full(slots, -1, np.int32)
    columns["finite"] = np.full(slots, -1, np.int32)
    columns["token_logprobs"] = np.full(slots, np.nan, np.float32)
    columns["top_ids"] = np.full((slots, top_width), -1, np.int32)
    columns["top_values"] = np.full((slots, top_width), np.nan, np.float32)
    return columns
