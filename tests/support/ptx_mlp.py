"""Dense networks of csrc/cuda/mlp.cu, run from nvcc's PTX by the interpreter."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hack.ptx import Memory, launch

from support.networks import ACTIVATIONS, Array, Net
from support.ptx_ops import Ran, kernels

LAYERS = 64  # of a launch: csrc/cuda/mlp.cuh
MANY_TOKENS = 4  # of a tile, from two tokens on: csrc/cuda/mlp.cu


def mlp(net: Net, x: Array, blocks: int, **options: Any) -> Ran:
    """One launch; `blocks` wait for each other."""
    memory = Memory()
    tokens = len(x)
    layers = b""
    for index, (weights, bias, activation) in enumerate(net.layers):
        w = memory.place(f"w{index}", weights)
        b = 0 if bias is None else memory.place(f"b{index}", bias)
        layers += struct.pack("<2Q3i4x", w, b, *weights.shape, ACTIVATIONS.index(activation))
    width = max((-(-len(w) // 4) * 4 for w in net.weights[:-1]), default=0)
    parameters = struct.pack(
        f"<{32 * LAYERS}s2i?7x3Qi4xQi4x",
        *(layers, 0, len(net.weights), True),
        memory.place("x", x),
        memory.place_poisoned("y", (tokens, len(net.weights[-1])), np.float32),
        memory.place_poisoned("hidden", (max(1, 2 * tokens * width),), np.float32),
        width,
        memory.place("counters", np.zeros(2, np.uint32)),
        tokens,
    )
    kernel = kernels("mlp.cu")[f"mlp_layers<{1 if tokens == 1 else MANY_TOKENS}>"]
    grid, block = (blocks, 1, 1), (kernel.threads, 1, 1)
    return Ran(memory, launch(kernel, memory, grid, block, parameters, resident=True, **options))
