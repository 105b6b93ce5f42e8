"""Random and mutated GGUF files bring a ConfigError or a model, in bounded time and memory."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.bpe import build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from support.headers import Header
from support.tiny import make_tiny_gguf

FOLDER = tempfile.TemporaryDirectory()


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    FOLDER.cleanup()


def valid_file() -> bytes:
    path = make_tiny_gguf(
        Path(FOLDER.name) / "valid.gguf", tied=False, rope_factors=[1.0] * 8, chat_template=None
    )
    return path.read_bytes()


VALID = valid_file()
HEADER_BYTES = VALID.index(b"rope_freqs.weight") + 64  # the last tensor info


def read_all(content: bytes) -> None:
    """Read everything a loader reads; ConfigError is the one error there may be."""
    path = Path(FOLDER.name) / "fuzzed.gguf"
    path.write_bytes(content)
    message = "One sentence."
    tracemalloc.start()
    try:
        with GGUFFile(path) as file:
            config = read_config(file)
            build_tokenizer(file, config.vocab_size)
            for tensor in file.tensors.values():
                for _ in file.row_chunks(tensor, 1 << 16, 32):
                    pass
    except ConfigError as error:
        message = error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The file is 100 kB; a length believed before it was checked would take far more.
    assert peak < 16 << 20
    assert "\n" not in message
    assert message.endswith(".")


@given(
    st.lists(
        st.tuples(st.integers(0, HEADER_BYTES), st.binary(min_size=1, max_size=9)),
        min_size=1,
        max_size=4,
    )
)
def test_a_header_with_bytes_overwritten(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(VALID)
    for at, piece in changes:
        content[at : at + len(piece)] = piece
    read_all(bytes(content))


@given(st.integers(0, HEADER_BYTES), st.binary(max_size=16), st.integers(0, 64))
def test_a_header_with_bytes_put_in_or_taken_out(at: int, piece: bytes, drop: int) -> None:
    read_all(VALID[:at] + piece + VALID[at + drop :])


@given(st.integers(0, len(VALID) - 1))
def test_a_file_cut_short(end: int) -> None:
    read_all(VALID[:end])


@given(
    st.integers(0, 3) | st.integers(0, 2**64 - 1),
    st.integers(0, 3) | st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
)
def test_random_bytes_after_the_preamble(tensors: int, pairs: int, rest: bytes) -> None:
    read_all(Header(tensor_count=tensors, pair_count=pairs, data=rest, alignment=1).encode())


def test_the_valid_file_itself_is_read() -> None:
    path = Path(FOLDER.name) / "whole.gguf"
    path.write_bytes(VALID)
    with GGUFFile(path) as file:
        assert read_config(file).layers == 2
