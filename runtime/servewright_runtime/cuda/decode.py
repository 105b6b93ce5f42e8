"""Decode steps: a new token for each of up to 64 sequences, a captured graph for each size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from servewright_runtime.cuda.staging import Host, Staging


def sizes(slots: int) -> list[int]:
    """Slot counts that steps are made for: powers of two, the last one `slots` or more."""
    found = [1]
    while found[-1] < slots:
        found.append(2 * found[-1])
    return found


class Decode:
    """The steps of a model, all on one workspace and pool."""

    def __init__(
        self,
        device: Device,
        model: Any,
        staging: Staging,
        pool: Tensor,
        *,
        max_length: int,
    ) -> None:
        """pool: bf16 [layers, pages, 2, kv_heads, page, head_dim]."""
        self._device = device
        self._staging = staging
        self._steps = {
            count: model.plan(count, max_length, pool.shape[1]) for count in sizes(staging.slots)
        }
        size = max(step.workspace_bytes for step in self._steps.values())
        # Zeros for the tickets; every step leaves them so.
        self._workspace = torch.zeros(size, dtype=torch.uint8, device=device.place)
        for count, step in self._steps.items():
            step.bind(
                pool=pool,
                workspace=self._workspace,
                token_ids=staging.given["token_ids"][:count],
                lengths=staging.given["lengths"][:count],
                page_table=staging.given["page_table"][:count],
                sampling=staging.sampling(count),
            )
        self._replays: dict[int, Callable[[], None]] = {}

    def record(self) -> None:
        """Capture every size, after a run of empty slots: kernels load when they first run."""
        for count, step in self._steps.items():

            def launch(step: Any = step) -> None:
                step.launch(self._device.stream)

            launch()
            self._device.wait()
            self._replays[count] = self._device.record(launch)

    def slots_for(self, sequences: int) -> int:
        """The smallest size that holds so many."""
        return next(count for count in self._steps if count >= sequences)

    def run(self, host: Host, slots: int, sequences: int) -> None:
        """Queue a step over the contents of `host` and the copy of what it draws."""
        self._staging.send(host, tables=sequences)
        self._replays[slots]()
        self._staging.fetch(host)

    def logits(self, slots: int) -> Tensor:
        """Where a step of that size leaves its logits: float32 [slots, vocab, rounded up]."""
        step = self._steps[slots]
        start, stride = step.logits_offset, step.logits_stride
        raw = self._workspace[start : start + 4 * slots * stride]
        return raw.view(torch.float32).view(slots, stride)
