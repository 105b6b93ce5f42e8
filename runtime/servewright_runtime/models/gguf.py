"""Bounds-checked reading of GGUF files: the header, then rows on demand.

A file comes from anywhere, so `gguf_header` checks every length before it is used. Reads are by
`pread` alone: a mapped file would count as this process's memory while it loads, and a file that
shrinks under a mapping kills the process. What the metadata mean is not known here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.gguf_header import Header, TensorInfo, Value

S = TypeVar("S", str, int, float, bool)


class GGUFFile:
    """An open GGUF file whose header has been read and checked. Close it, or use it as a context.

    metadata: by key, in file order; arrays of strings as lists, arrays of numbers as numpy.
    tensors: by name, in file order. Raises ConfigError on anything that is not a sound GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A FIFO would block the open, a device lie about its size.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be opened ({error.strerror}); give the path of a GGUF file."
            ) from None
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: is no regular file; give the path of a GGUF file.")
            self.size = status.st_size
            header = Header(path, self._fd, self.size)
            self.metadata: Mapping[str, Value]
            self.tensors: Mapping[str, TensorInfo]
            self.metadata, self.tensors = header.parse()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; again is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, key: str, kind: type[S], default: S | None = None) -> S:
        """The scalar of `key`. An int stands for a float too. Without a default it is required.

        Raises ConfigError where the key is missing or of another type.
        """
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                raise ConfigError(
                    f"{self.path}: the GGUF metadata lack {key}; "
                    "convert the model again with a current converter."
                )
            return default
        if kind is float and type(value) is int:
            return kind(value)
        if type(value) is not kind:
            raise ConfigError(
                f"{self.path}: the GGUF metadata's {key} should be {_noun(kind)}, but is "
                f"{_noun(type(value))}; convert the model again with a current converter."
            )
        return value

    def read_rows(self, tensor: TensorInfo, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Bytes of `count` rows from row `first`: [count, row_bytes] uint8, owned and writable.

        Raises ConfigError where the file has become shorter since it was opened.
        """
        assert first >= 0
        assert 0 < count <= tensor.rows - first
        rows = np.empty(count * tensor.row_bytes, dtype=np.uint8)
        view = rows.data
        offset, done = tensor.offset + first * tensor.row_bytes, 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], offset + done)
            if got == 0:
                raise ConfigError(
                    f"{self.path}: tensor {tensor.name} ends at byte {offset + done} of the file, "
                    "which became shorter while it was read; restore the file and start again."
                )
            done += got
        return rows.reshape(count, tensor.row_bytes)

    def row_chunks(
        self, tensor: TensorInfo, max_bytes: int, multiple: int = 1
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """All rows in order, as (first row, rows), each piece at most `max_bytes` long.

        A piece is a multiple of `multiple` rows (the last may be shorter), at least one multiple.
        """
        step = max(max_bytes // (tensor.row_bytes * multiple), 1) * multiple
        for first in range(0, tensor.rows, step):
            yield first, self.read_rows(tensor, first, min(step, tensor.rows - first))


def _noun(kind: type) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, "a list"
    )
