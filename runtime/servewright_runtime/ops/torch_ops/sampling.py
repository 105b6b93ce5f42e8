"""servewright::sample: a token a row of logits, exact as models/sampling_reference.py defines it.

Given the same logits, the same ids on the CPU and on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from servewright_runtime import native
from servewright_runtime.models.runner import SamplingBatch
from servewright_runtime.ops.torch_ops.call import Call, array, threads

MAX_VOCABULARY = 1 << 18  # csrc/common/draws.h
# What a parameter is where it is not given: off.
_FLOATS = {"top_p": 1.0, "min_p": 0.0, "presence": 0.0, "frequency": 0.0, "repetition": 1.0}
_INTS = {"top_k": 0, "history_prompts": 0, "top_logprobs": 0}


@dataclass(slots=True)
class Sample(Call):
    """(ids int32 [rows], whether all logits of the row are finite, bool [rows])."""

    logits: Tensor
    temperature: Tensor
    seed: Tensor
    draw: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    presence: Tensor | None = None
    frequency: Tensor | None = None
    repetition: Tensor | None = None
    history_ids: Tensor | None = None
    history_starts: Tensor | None = None
    history_prompts: Tensor | None = None
    bias_ids: Tensor | None = None
    bias_values: Tensor | None = None
    bias_starts: Tensor | None = None

    NAME = "sample"
    SCHEMA = (
        "(Tensor logits, Tensor temperature, Tensor seed, Tensor draw, Tensor? top_k=None, "
        "Tensor? top_p=None, Tensor? min_p=None, Tensor? presence=None, Tensor? frequency=None, "
        "Tensor? repetition=None, Tensor? history_ids=None, Tensor? history_starts=None, "
        "Tensor? history_prompts=None, Tensor? bias_ids=None, Tensor? bias_values=None, "
        "Tensor? bias_starts=None) -> (Tensor, Tensor)"
    )

    def check(self) -> None:
        self.want("logits", self.logits, (torch.float32,), ("rows", "vocabulary"))
        rows, vocabulary = self.logits.shape
        if not 1 <= vocabulary <= MAX_VOCABULARY:
            self.refuse(f"logits must have 1 to {MAX_VOCABULARY} columns, got {vocabulary}")
        for name in ("temperature", *_FLOATS):
            self.want(name, getattr(self, name), (torch.float32,), (rows,))
        for name in ("seed", "draw"):
            self.want(name, getattr(self, name), (torch.int64,), (rows,))
        for name in ("top_k", "history_prompts"):
            self.want(name, getattr(self, name), (torch.int32,), (rows,))
        for name in ("history_ids", "bias_ids"):
            self.want(name, getattr(self, name), (torch.int32,), ("all rows'",))
        for name in ("history_starts", "bias_starts"):
            self.want(name, getattr(self, name), (torch.int32,), (rows + 1,))
        if self.bias_ids is not None:
            shape = tuple(self.bias_ids.shape)
            self.want("bias_values", self.bias_values, (torch.float32,), shape)
        self.check_together("history_ids", "history_starts")
        self.check_together("bias_ids", "bias_values", "bias_starts")
        if self.history_prompts is not None and self.history_ids is None:
            self.refuse("history_prompts has no meaning without history_ids")

    def check_together(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if 0 < len(missing) < len(names):
            self.refuse(f"{', '.join(names)} come together, and {missing[0]} is None")

    def fake(self) -> tuple[Tensor, Tensor]:
        rows = self.logits.shape[0]
        return (
            self.logits.new_empty(rows, dtype=torch.int32),
            self.logits.new_empty(rows, dtype=torch.bool),
        )

    def columns(self) -> dict[str, Tensor]:
        """All of a SamplingBatch, with what was not given off. No logprob is wanted."""
        rows, place = self.logits.shape[0], self.device

        def given(name: str) -> Tensor | None:
            tensor: Tensor | None = getattr(self, name, None)
            return None if tensor is None else tensor.detach().contiguous()

        def all_of(size: int, value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((size,), value, dtype=dtype, device=place)

        int32, float32 = torch.int32, torch.float32
        off = {name: (rows, value, float32) for name, value in _FLOATS.items()}
        off |= {name: (rows, value, int32) for name, value in _INTS.items()}
        off |= dict.fromkeys(("history_starts", "bias_starts"), (rows + 1, 0, int32))
        off |= dict.fromkeys(("history_ids", "bias_ids"), (0, 0, int32))
        off |= {"bias_values": (0, 0, float32), "logprobs": (rows, 0, torch.uint8)}
        columns = {name: given(name) for name in ("temperature", "seed", "draw", *off)}
        return {
            name: all_of(*off[name]) if tensor is None else tensor
            for name, tensor in columns.items()
        }

    def batch(self) -> SamplingBatch:
        """The parameters as the engine has them. Of tensors in host memory."""
        arrays = {name: array(tensor) for name, tensor in self.columns().items()}
        for name in ("seed", "draw"):
            arrays[name] = arrays[name].view(np.uint64)
        return SamplingBatch(**arrays)

    def on_cpu(self) -> tuple[Tensor, Tensor]:
        ids, finite = native.sample(array(self.logits), self.batch(), threads=threads())
        return torch.from_numpy(ids), torch.from_numpy(finite)

    def on_cuda(self, kernels: ModuleType, stream: int) -> tuple[Tensor, Tensor]:
        rows, vocabulary = self.logits.shape
        if rows == 0:
            return self.fake()
        # The kernel reads four at a time.
        logits = functional.pad(self.logits.detach(), (0, -vocabulary % 4)).contiguous()
        columns = self.columns()
        ids, finite = torch.empty_like(columns["top_k"]), torch.empty_like(columns["top_k"])
        none = logits.new_empty((rows, 0))
        results = {
            "token_ids": ids,
            "finite": finite,
            "token_logprobs": torch.empty_like(columns["temperature"]),
            "top_ids": none.int(),
            "top_values": none,
        }
        size = kernels.sampling_workspace(vocabulary, rows)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
        kernels.sample(logits, vocabulary, kernels.Sampling(columns | results), workspace, stream)
        return ids, finite.bool()
