"""The header of a GGUF file: metadata and tensor table, every length checked before it is used.

Layout after ggml's docs/gguf.md: magic, version, tensor count, pair count, pairs, tensor infos,
padding, tensor data; all little endian. Whatever is wrong is a ConfigError that names file, place
and cure.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from servewright_runtime.errors import ConfigError

Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | list[str] | npt.NDArray[np.generic]

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# Bounds of a header. The largest known hold 262,144 tokens in 15 MB and 1,900 tensors.
MAX_HEADER_BYTES = 128 << 20
MAX_PAIRS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 1 << 10
MAX_STRINGS = 1 << 21  # in all arrays together; a short one costs 60 bytes once it is a `str`
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20

_READ_BYTES = 1 << 20  # a header is read in pieces of this size, so a small one stays small

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),  # bool, 0 or 1
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `rows` counts all rows of `cols` elements, of all outer dimensions."""

    name: str
    type: str  # "Q4_0", as ggml names it
    shape: tuple[int, ...]  # as the file has it: row length first
    offset: int  # from the start of the file
    row_bytes: int

    @property
    def cols(self) -> int:
        """Elements of a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Rows, of all outer dimensions together."""
        rows = 1
        for dim in self.shape[1:]:
            rows *= dim
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes


class Header:
    """Parses the header, reading the file ahead in pieces. Positions are bytes of the file."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self._path = path
        self._fd = fd
        self._size = size
        self._data = bytearray()
        self._at = 0
        self._strings = 0

    def parse(self) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
        """Metadata and tensor table, both checked."""
        tensor_count, pair_count = self._preamble()
        metadata = self._metadata(pair_count)
        tensors = self._tensors(tensor_count, self._alignment(metadata))
        return metadata, tensors

    def _preamble(self) -> tuple[int, int]:
        magic = self._take(4, "the magic word")
        if magic != MAGIC:
            self._fail(f"starts with {bytes(magic)!r}, not {MAGIC!r}: it is no GGUF file", at=0)
        version = self._number("<I", "the version")
        if version not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
                self._fail("is a big-endian GGUF file; only little-endian ones are read", at=4)
            self._fail(f"is GGUF version {version}; versions 2 and 3 are read", at=4)
        tensor_count = self._number("<Q", "the tensor count")
        if tensor_count > MAX_TENSORS:
            self._fail(f"announces {tensor_count} tensors; at most {MAX_TENSORS} are read", at=8)
        pair_count = self._number("<Q", "the metadata count")
        if pair_count > MAX_PAIRS:
            self._fail(f"announces {pair_count} metadata; at most {MAX_PAIRS} are read", at=16)
        return tensor_count, pair_count

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            at = self._at
            key = self._string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                self._fail(f"has the metadata key {key!r} twice", at=at)
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> Value:
        at = self._at
        kind = self._number("<I", f"the type of {key!r}")
        if kind == _STRING:
            return self._string(f"the text of {key!r}", MAX_HEADER_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            self._fail(f"gives {key!r} the unknown type {kind}", at=at)
        layout = _SCALARS[kind]
        value: int | float = layout.unpack(self._take(layout.size, f"the value of {key!r}"))[0]
        if kind == _BOOL:
            if value not in (0, 1):
                self._fail(f"gives {key!r} the truth value {value}", at=at)
            return bool(value)
        return value

    def _array(self, key: str) -> list[str] | npt.NDArray[np.generic]:
        at = self._at
        kind = self._number("<I", f"the element type of {key!r}")
        count = self._number("<Q", f"the length of {key!r}")
        if kind == _STRING:
            self._strings += count
            if self._strings > MAX_STRINGS:
                self._fail(f"has {count} strings in {key!r}; at most {MAX_STRINGS} are read", at=at)
            return self._string_array(key, count)
        if kind not in _SCALARS:
            what = "arrays" if kind == _ARRAY else f"elements of the unknown type {kind}"
            self._fail(f"has {what} in the array {key!r}", at=at)
        layout = _SCALARS[kind]
        dtype = np.dtype(np.bool_) if kind == _BOOL else np.dtype(layout.format)
        raw = self._take(count * layout.size, f"the array {key!r}")
        if kind == _BOOL and bool((np.frombuffer(raw, dtype=np.uint8) > 1).any()):
            self._fail(f"has a truth value that is not 0 or 1 in {key!r}", at=at)
        return np.frombuffer(bytes(raw), dtype=dtype)

    def _string_array(self, key: str, count: int) -> list[str]:
        # A vocabulary has up to 500,000 strings here; `_string` for each would take a second.
        what = f"the array {key!r}"
        if count * 8 > self._size - self._at:  # each has its length of 8 bytes
            self._take(count * 8, what)
        strings: list[str] = []
        at = self._at
        data = self._data
        try:
            for _ in range(count):
                start = at + 8
                if start > len(data):
                    self._read_to(start, what)
                end = start + int.from_bytes(data[at:start], "little")
                if end > len(data):
                    self._read_to(end, what)
                strings.append(data[start:end].decode())
                at = end
        except UnicodeDecodeError:
            self._fail(f"has text that is not UTF-8 in {key!r}", at=at)
        self._at = at
        return strings

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if (
            type(alignment) is not int
            or not 0 < alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            shown = alignment if isinstance(alignment, int | float | str) else "an array"
            self._fail(f"has general.alignment {shown}, which is no power of two up to 1 MiB")
        return alignment

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        entries = [self._tensor() for _ in range(count)]
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for entry in entries:
            if entry.name in tensors:
                self._fail(f"has the tensor {entry.name!r} twice")
            if entry.offset % alignment:
                self._fail(
                    f"puts the tensor {entry.name!r} at {entry.offset} of the data, "
                    f"which is no multiple of {alignment}"
                )
            tensors[entry.name] = TensorInfo(
                entry.name, entry.type, entry.shape, data_start + entry.offset, entry.row_bytes
            )
        end, before = data_start, "the header"
        for tensor in sorted(tensors.values(), key=lambda t: t.offset):
            if tensor.offset < end:
                self._fail(f"has the tensors {before} and {tensor.name!r} overlap")
            end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
            if end > self._size:
                self._fail(
                    f"is {self._size} bytes long, but the tensor {tensor.name!r} ends at {end}: "
                    "the file is not whole"
                )
        return tensors

    def _tensor(self) -> TensorInfo:
        at = self._at
        name = self._string("a tensor's name", MAX_NAME_BYTES)
        dims = self._number("<I", f"the dimensions of {name!r}")
        if not 1 <= dims <= MAX_DIMS:
            self._fail(f"gives the tensor {name!r} {dims} dimensions, not 1 to {MAX_DIMS}", at=at)
        shape = struct.unpack(f"<{dims}Q", self._take(8 * dims, f"the shape of {name!r}"))
        type_id = self._number("<I", f"the type of {name!r}")
        try:
            tensor_type = GGMLQuantizationType(type_id)
            block, block_bytes = GGML_QUANT_SIZES[tensor_type]
        except (ValueError, KeyError):
            self._fail(f"gives the tensor {name!r} the unknown type {type_id}", at=at)
        if 0 in shape:
            self._fail(f"gives the tensor {name!r} the empty shape {shape}", at=at)
        if shape[0] % block:
            self._fail(
                f"gives the tensor {name!r} rows of {shape[0]}, which is no multiple of the "
                f"{block} that {tensor_type.name} packs together",
                at=at,
            )
        row_bytes = shape[0] // block * block_bytes
        offset = self._number("<Q", f"the offset of {name!r}")
        info = TensorInfo(name, tensor_type.name, shape, offset, row_bytes)
        # Python's integers do not overflow, so this bound is the whole check of a size.
        if info.nbytes > self._size:
            self._fail(
                f"is {self._size} bytes long, but the tensor {name!r} of shape {shape} takes "
                f"{info.nbytes}: the file is not whole",
                at=at,
            )
        return info

    def _string(self, what: str, max_bytes: int) -> str:
        at = self._at
        length = self._number("<Q", f"the length of {what}")
        if length > max_bytes:
            self._fail(f"has {length} bytes in {what}; at most {max_bytes} are read", at=at)
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError:
            self._fail(f"has text that is not UTF-8 in {what}", at=at)

    def _number(self, layout: str, what: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout), what))[0]
        return value

    def _take(self, count: int, what: str) -> bytearray:
        end = self._at + count
        if end > len(self._data):
            self._read_to(end, what)
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _read_to(self, end: int, what: str) -> None:
        """Read ahead so that the first `end` bytes are there. `what` is being read."""
        if end > self._size:
            self._fail(
                f"is {self._size} bytes long, but {what} ends at {end}: the file is not whole"
            )
        if end > MAX_HEADER_BYTES:
            self._fail(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB, in {what}")
        while len(self._data) < end:
            piece = os.pread(self._fd, _READ_BYTES, len(self._data))
            if not piece:
                self._fail(f"became shorter while {what} was read")
            self._data += piece

    def _fail(self, message: str, *, at: int | None = None) -> NoReturn:
        place = "" if at is None else f" (at byte {at})"
        raise ConfigError(
            f"{self._path}: {message}{place}; fetch or convert the model again."
        ) from None
