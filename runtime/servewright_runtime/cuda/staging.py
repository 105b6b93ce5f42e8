"""What a step reads and writes besides the model: contents on the way to the device and back.

The device has one buffer, in which every array keeps its address, so that a captured step reads
the contents of the day. The host has pinned buffers of the same layout, one for each pass of a
step: the passes' copies are queued together and none may change before it has gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from servewright_runtime.cuda.device import Device
from servewright_runtime.models.runner import BLOCK_TOKENS, Int32s, SamplingBatch

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name

# Of one sequence, as many as the API allows.
MAX_BIASES = 1024
_ALIGNMENT = 256
_TORCH = {
    "int32": torch.int32,
    "int64": torch.int64,
    "uint64": torch.int64,  # the same bits: torch has few words for unsigned ones
    "float32": torch.float32,
    "uint8": torch.uint8,
}
# Of a row that holds no sequence: greedy, and nothing asked for.
_NEUTRAL = {"top_p": 1.0, "repetition": 1.0}
_FLAT = ("history_ids", "bias_ids", "bias_values")


class Layout:
    """Arrays one behind the other in one buffer of `size` bytes."""

    def __init__(self, shapes: Shapes) -> None:
        self.size = 0
        self._parts: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._parts[name] = (self.size, count, dtype, shape)
            self.size += -(-count // _ALIGNMENT) * _ALIGNMENT

    def start(self, name: str) -> int:
        """Where an array begins, in bytes."""
        return self._parts[name][0]

    def on_host(self, buffer: Tensor) -> dict[str, Array]:
        """Views of a host buffer."""
        raw = buffer.numpy()
        return {
            name: raw[at : at + count].view(dtype).reshape(shape)
            for name, (at, count, dtype, shape) in self._parts.items()
        }

    def on_device(self, buffer: Tensor) -> dict[str, Tensor]:
        """Views of a device buffer."""
        return {
            name: buffer[at : at + count].view(_TORCH[dtype]).view(shape)
            for name, (at, count, dtype, shape) in self._parts.items()
        }


class Staging:
    """Buffers for passes of at most `slots` sequences and `tokens` tokens.

    given: what the device reads. SamplingBatch's columns, and token_ids [tokens], lengths [slots],
    rows [slots], page_table [slots, width].  drawn: what it writes, as Sampling's results.
    """

    def __init__(
        self, kernels: ModuleType, device: Device, *, slots: int, tokens: int, max_length: int
    ) -> None:
        self.slots = slots
        # Of a sequence's pages; rows begin at 16 bytes.
        self.width = -(-max_length // (4 * BLOCK_TOKENS)) * 4
        self.max_history = max_length
        self._kernels = kernels
        self._device = device
        self._given = Layout(self._given_shapes(max(slots, tokens)))
        self._drawn = Layout(_drawn_shapes(slots, kernels.MAX_TOP_LOGPROBS))
        self._given_buffer = self._zeros(self._given.size)
        self._drawn_buffer = self._zeros(self._drawn.size)
        self.given = self._given.on_device(self._given_buffer)
        self.drawn = self._drawn.on_device(self._drawn_buffer)
        self._hosts: list[Host] = []
        self._used = 0
        self._samplings: dict[int, Any] = {}

    @staticmethod
    def device_bytes(slots: int, tokens: int, max_length: int) -> int:
        """About what the buffers take on the device."""
        a_slot = max_length + max_length // BLOCK_TOKENS + 2 * MAX_BIASES
        return 4 * (slots * a_slot + tokens) + (1 << 20)

    def sampling(self, rows: int) -> Any:
        """A Sampling of the first `rows` rows; made once."""
        if rows not in self._samplings:
            self._samplings[rows] = self._make_sampling(rows)
        return self._samplings[rows]

    def _make_sampling(self, rows: int) -> Any:
        arrays = {}
        for field in fields(SamplingBatch):
            count = rows + 1 if field.name.endswith("_starts") else rows
            whole = self.given[field.name]
            arrays[field.name] = whole if field.name in _FLAT else whole[:count]
        return self._kernels.Sampling(
            arrays | {name: array[:rows] for name, array in self.drawn.items()}
        )

    def begin(self) -> None:
        """Start a step: all host buffers are free."""
        self._used = 0

    def host(self) -> Host:
        """A host buffer that no other pass of this step uses."""
        if self._used == len(self._hosts):
            self._hosts.append(Host(self._given, self._drawn, self._device))
        self._used += 1
        host = self._hosts[self._used - 1]
        host.flat_counts.update(dict.fromkeys(_FLAT, 0))
        return host

    def send(self, host: Host, *, tables: int) -> None:
        """Queue the copy of a host buffer's contents, with `tables` rows of the page table."""
        head = self._given.start("page_table") + 4 * tables * self.width
        self._send(host, 0, head)
        for name in _FLAT:
            start = self._given.start(name)
            self._send(host, start, start + 4 * host.flat_counts[name])

    def fetch(self, host: Host) -> None:
        """Queue the copy of the results to a host buffer."""
        host.drawn_buffer.copy_(self._drawn_buffer, non_blocking=True)

    def _send(self, host: Host, start: int, end: int) -> None:
        if end > start:
            to = self._given_buffer[start:end]
            to.copy_(host.given_buffer[start:end], non_blocking=True)

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=self._device.place)

    def _given_shapes(self, tokens: int) -> Shapes:
        slots = self.slots
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "token_ids": ("int32", (tokens,)),
            "lengths": ("int32", (slots,)),
            "rows": ("int64", (slots,)),
            "history_starts": ("int32", (slots + 1,)),
            "bias_starts": ("int32", (slots + 1,)),
            "logprobs": ("uint8", (slots,)),
        }
        for name in ("seed", "draw"):
            shapes[name] = ("uint64", (slots,))
        for name in ("temperature", "top_p", "min_p", "presence", "frequency", "repetition"):
            shapes[name] = ("float32", (slots,))
        for name in ("top_k", "history_prompts", "top_logprobs"):
            shapes[name] = ("int32", (slots,))
        # From here on only what is used is copied.
        shapes["page_table"] = ("int32", (slots, self.width))
        shapes["bias_ids"] = ("int32", (slots * MAX_BIASES,))
        shapes["bias_values"] = ("float32", (slots * MAX_BIASES,))
        shapes["history_ids"] = ("int32", (slots * self.max_history,))
        return shapes


class Host:
    """One pass's contents in pinned memory, and its results once the step is done."""

    def __init__(self, given: Layout, drawn: Layout, device: Device) -> None:
        self.given_buffer = device.pinned(given.size)
        self.drawn_buffer = device.pinned(drawn.size)
        self.given = given.on_host(self.given_buffer)
        self.drawn = drawn.on_host(self.drawn_buffer)
        self.flat_counts = dict.fromkeys(_FLAT, 0)

    def put_sampling(self, batch: SamplingBatch, rows: Int32s, slots: int) -> None:
        """Rows of a batch's sampling, then neutral ones up to `slots`."""
        count = len(rows)
        for field in fields(SamplingBatch):
            name = field.name
            if name in _FLAT or name.endswith("_starts"):
                continue
            column = self.given[name]
            column[:count] = getattr(batch, name)[rows]
            column[count:slots] = _NEUTRAL.get(name, 0)
        histories = _gathered(batch.history_starts, rows, self.given["history_starts"], slots)
        self._put("history_ids", batch.history_ids, histories)
        biases = _gathered(batch.bias_starts, rows, self.given["bias_starts"], slots)
        self._put("bias_ids", batch.bias_ids, biases)
        self._put("bias_values", batch.bias_values, biases)

    def _put(self, name: str, values: Array, places: Int32s) -> None:
        self.flat_counts[name] = len(places)
        self.given[name][: len(places)] = values[places]


def _gathered(starts: Int32s, rows: Int32s, new_starts: Int32s, slots: int) -> Int32s:
    """Places of the rows' parts in the flat array; writes where each part will begin."""
    lengths = starts[rows + 1] - starts[rows]
    new_starts[0] = 0
    np.cumsum(lengths, out=new_starts[1 : len(rows) + 1])
    new_starts[len(rows) + 1 : slots + 1] = new_starts[len(rows)]
    if not lengths.any():
        return np.empty(0, np.int32)
    shift = np.repeat(starts[rows] - new_starts[: len(rows)], lengths)
    return np.asarray(np.arange(len(shift), dtype=np.int32) + shift)


def _drawn_shapes(slots: int, top_width: int) -> Shapes:
    return {
        "token_ids": ("int32", (slots,)),
        "finite": ("int32", (slots,)),
        "token_logprobs": ("float32", (slots,)),
        "top_ids": ("int32", (slots, top_width)),
        "top_values": ("float32", (slots, top_width)),
    }
