"""Tensor types that no fused kernel reads, as types that they do: K-quants, Q5, IQ and the like.

Q4_K becomes Q4_1, which has the same 32 values a scale and minimum: only the two are rounded, to
float16, so a weight w of a block with scale d and minimum m moves by at most
(15 |d| + |m|) 2^-11. All others become Q8_0, of blocks of 32: by at most half a step,
max |w| / 254, and what rounding the scale to float16 adds (127 of them, 2^-11 each).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from servewright_runtime import native
from servewright_runtime.models.reference import DEQUANTISABLE

Bytes = npt.NDArray[np.uint8]

_BLOCK = 32


def served_type(tensor_type: str) -> str:
    """The type in which fused kernels compute with a tensor; its own where nothing can be done."""
    if tensor_type in native.NATIVE_TYPES or tensor_type not in DEQUANTISABLE:
        return tensor_type
    return "Q4_1" if tensor_type == "Q4_K" else "Q8_0"


def requantise(rows: Bytes, tensor_type: str, wanted: str) -> Bytes:
    """Rows of `tensor_type`, uint8 [rows, row_bytes], as rows of `wanted`.

    wanted: the same, or `served_type(tensor_type)`.
    """
    if wanted == tensor_type:
        return rows
    # A broken file may hold infinite scales; the step finds what comes of them.
    with np.errstate(all="ignore"):
        if tensor_type == "Q4_K":
            return _q4_1_of_q4_k(rows)
        values = quants.dequantize(rows, GGMLQuantizationType[tensor_type])
        return quants.quantize(values, GGMLQuantizationType[wanted])


def _q4_1_of_q4_k(rows: Bytes) -> Bytes:
    """Superblocks of 256 (d, dmin: float16; 8 scales and 8 minima of 6 bits; 128 bytes of nibbles,
    low ones first in each 32) as 8 blocks of 32 (d, m: float16; 16 bytes, value i beside i + 16).

    Layouts: block_q4_K and block_q4_1 of ggml.
    """
    supers = rows.reshape(-1, 144)
    # [supers, 1], float32: their products with six bits are exact.
    d, dmin = supers[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
    low, mid, high = (supers[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    nibbles = supers[:, 16:].reshape(-1, 4, 1, _BLOCK)
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, _BLOCK)

    blocks = np.empty((len(supers), 8, 20), np.uint8)
    halves = np.stack([d * scales, -dmin * minima], axis=2).astype(np.float16)
    blocks[:, :, :4] = halves.view(np.uint8)
    blocks[:, :, 4:] = values[:, :, :16] | values[:, :, 16:] << 4
    return blocks.reshape(len(rows), -1)
