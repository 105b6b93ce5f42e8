"""GGUF headers written byte by byte, so that tests can write wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

U32, BOOL, STRING, ARRAY = 4, 7, 8, 9


def text(value: str | bytes) -> bytes:
    """A GGUF string: length and bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def u32(key: str, value: int) -> bytes:
    """A key with a 32-bit number."""
    return text(key) + struct.pack("<II", U32, value)


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key with a value of any type, already encoded."""
    return text(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, count: int, elements: bytes) -> bytes:
    """A key with an array, whose count need not be true."""
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + elements)


def tensor(
    name: str, shape: Sequence[int] = (32,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """A tensor info. Type 0 is F32."""
    return (
        text(name)
        + struct.pack("<I", len(shape) if dims is None else dims)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


@dataclass
class Header:
    """A header whose counts default to the truth."""

    pairs: Sequence[bytes] = ()
    tensors: Sequence[bytes] = ()
    magic: bytes = b"GGUF"
    version: int = 3
    pair_count: int | None = None
    tensor_count: int | None = None
    data: bytes = field(default=b"")
    alignment: int = 32

    def encode(self) -> bytes:
        """The whole file."""
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.pairs) if self.pair_count is None else self.pair_count,
        )
        header = self.magic + struct.pack("<IQQ", self.version, *counts)
        header += b"".join(self.pairs) + b"".join(self.tensors)
        return header + bytes(-len(header) % self.alignment) + self.data
