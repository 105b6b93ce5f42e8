"""The GGUF reader against the `gguf` package, and against files that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.gguf_header import MAX_HEADER_BYTES, MAX_STRINGS
from support import headers
from support.headers import Header
from support.tiny import TENSOR_TYPES, make_tiny_gguf, tiny_shape

DATA = bytes(128)  # of one F32 tensor of 32


@pytest.mark.parametrize("tensor_type", TENSOR_TYPES)
def test_metadata_and_tensors_equal_those_that_the_gguf_package_reads(
    tmp_path: Path, tensor_type: str
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", tensor_type=tensor_type, **tiny_shape(tensor_type))
    reference = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        wanted = {
            key: field.contents()
            for key, field in reference.fields.items()
            if not key.startswith("GGUF.")
        }
        assert list(file.metadata) == list(wanted)
        for key, value in file.metadata.items():
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == wanted[key]
        assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
        for other in reference.tensors:
            ours = file.tensors[other.name]
            assert ours.type == other.tensor_type.name
            assert ours.shape == tuple(other.shape.tolist())
            assert ours.nbytes == other.n_bytes
            rows = np.concatenate([rows for _, rows in file.row_chunks(ours, 4096, 32)])
            assert rows.tobytes() == other.data.tobytes()


def test_rows_come_in_pieces_of_the_wanted_multiple(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", hidden=64, ffn=96, tensor_type="F32")
    with GGUFFile(path) as file:
        tensor = file.tensors["blk.0.ffn_up.weight"]  # 96 rows of 256 bytes
        pieces = [(first, len(rows)) for first, rows in file.row_chunks(tensor, 70 * 256, 32)]
        assert pieces == [(0, 64), (64, 32)]
        assert [len(rows) for _, rows in file.row_chunks(tensor, 1, 32)] == [32, 32, 32]


def test_every_scalar_type_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "größer 🙂")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.metadata == {
            "general.architecture": "llama",
            "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1,
            "i32": -(2**31), "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1,
            "yes": True, "text": "größer 🙂",
        }  # fmt: skip
        assert file.metadata["yes"] is True


LIES = {
    "empty file": (b"", "bytes long"),
    "another format": (b"PK\x03\x04" + bytes(64), "no GGUF file"),
    "version 1": (Header(version=1).encode(), "version 1"),
    "version 4": (Header(version=4).encode(), "version 4"),
    "big endian": (Header(version=3 << 24).encode(), "big-endian"),
    "half a preamble": (Header().encode()[:20], "not whole"),
    "far too many tensors": (Header(tensor_count=2**64 - 1).encode(), "tensors; at most"),
    "far too many metadata": (Header(pair_count=2**63).encode(), "metadata; at most"),
    "more metadata than there are": (Header(pair_count=3).encode(), "not whole"),
    "a key twice": (Header([headers.u32("a", 1), headers.u32("a", 2)]).encode(), "'a' twice"),
    "a key longer than the file": (
        Header([struct.pack("<Q", 2**40)]).encode(),
        "bytes in a metadata key",
    ),
    "a key that is no UTF-8": (Header([headers.text(b"\xff")], pair_count=1).encode(), "UTF-8"),
    "a text longer than the file": (
        Header([headers.pair("a", headers.STRING, struct.pack("<Q", 2**64 - 1))]).encode(),
        "bytes in the text of 'a'",
    ),
    "a text that is no UTF-8": (
        Header([headers.pair("a", headers.STRING, headers.text(b"\xc3("))]).encode(),
        "UTF-8",
    ),
    "an unknown type": (Header([headers.pair("a", 13, bytes(8))]).encode(), "unknown type 13"),
    "a truth value of 2": (Header([headers.pair("a", 7, b"\x02")]).encode(), "truth value 2"),
    "a truth value of 2 in an array": (
        Header([headers.array("a", headers.BOOL, 3, b"\0\1\2")]).encode(),
        "truth value that is not 0 or 1",
    ),
    "an array of arrays": (
        Header([headers.array("a", headers.ARRAY, 1, bytes(64))]).encode(),
        "has arrays in the array 'a'",
    ),
    "an array of an unknown type": (
        Header([headers.array("a", 99, 1, bytes(64))]).encode(),
        "unknown type 99",
    ),
    "an array longer than 64 bits hold": (
        Header([headers.array("a", headers.U32, 2**62, bytes(64))]).encode(),
        "the array 'a'",
    ),
    "too many texts": (
        Header([headers.array("a", headers.STRING, MAX_STRINGS + 1, b"")]).encode(),
        "strings in 'a'; at most",
    ),
    "more texts than there are": (
        Header([headers.array("a", headers.STRING, 1000, headers.text("x"))]).encode(),
        "the array 'a'",
    ),
    "a text in an array longer than the file": (
        Header([headers.array("a", headers.STRING, 1, struct.pack("<Q", 2**63))]).encode(),
        "the array 'a'",
    ),
    "a text in an array that is no UTF-8": (
        Header([headers.array("a", headers.STRING, 1, headers.text(b"\xff"))]).encode(),
        "UTF-8 in 'a'",
    ),
    "an alignment of 0": (Header([headers.u32("general.alignment", 0)]).encode(), "alignment 0"),
    "an alignment of 48": (Header([headers.u32("general.alignment", 48)]).encode(), "alignment 48"),
    "an alignment of 2 GiB": (
        Header([headers.u32("general.alignment", 1 << 31)]).encode(),
        "general.alignment",
    ),
    "an alignment that is text": (
        Header([headers.pair("general.alignment", headers.STRING, headers.text("32"))]).encode(),
        "general.alignment 32",
    ),
    "no dimensions": (Header(tensors=[headers.tensor("t", ())]).encode(), "0 dimensions"),
    "five dimensions": (
        Header(tensors=[headers.tensor("t", (1, 1, 1, 1, 1))]).encode(),
        "5 dimensions",
    ),
    "four billion dimensions": (
        Header(tensors=[headers.tensor("t", (1,), dims=2**32 - 1)]).encode(),
        "4294967295 dimensions",
    ),
    "an empty tensor": (Header(tensors=[headers.tensor("t", (32, 0))]).encode(), "empty shape"),
    "an unknown tensor type": (
        Header(tensors=[headers.tensor("t", kind=4)], data=DATA).encode(),
        "unknown type 4",
    ),
    "rows that are no whole blocks": (
        Header(tensors=[headers.tensor("t", (33,), kind=2)], data=DATA).encode(),
        "no multiple of the 32",
    ),
    "a size that wraps 64 bits": (
        Header(tensors=[headers.tensor("t", (2**32, 2**32, 2**32, 2**32))], data=DATA).encode(),
        "takes",
    ),
    "a size that wraps to a small one": (
        Header(tensors=[headers.tensor("t", (2**62 + 32, 1))], data=DATA).encode(),
        "takes",
    ),
    "an offset that wraps 64 bits": (
        Header(tensors=[headers.tensor("t", offset=2**64 - 32)], data=DATA).encode(),
        "ends at",
    ),
    "an offset off the alignment": (
        Header(tensors=[headers.tensor("t", (4,), offset=8)], data=DATA).encode(),
        "no multiple of 32",
    ),
    "data cut short": (
        Header(tensors=[headers.tensor("t")], data=DATA[:-1]).encode(),
        "the file is not whole",
    ),
    "a tensor twice": (
        Header((), [headers.tensor("t"), headers.tensor("t", offset=128)], data=DATA * 2).encode(),
        "'t' twice",
    ),
    "tensors that overlap": (
        Header((), [headers.tensor("t"), headers.tensor("u", offset=96)], data=DATA * 2).encode(),
        "'t' and 'u' overlap",
    ),
    "a name too long": (
        Header(tensors=[headers.tensor("t" * 2000)], data=DATA).encode(),
        "2000 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_name(tmp_path: Path, lie: str) -> None:
    content, wanted = LIES[lie]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        GGUFFile(path)
    assert wanted in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.message.endswith("again.")


def test_an_honest_header_of_the_same_kind_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = [headers.tensor("t"), headers.tensor("u", offset=128)]
    pairs = [headers.u32("general.alignment", 128)]
    path.write_bytes(Header(pairs, tensors, data=DATA * 2, alignment=128).encode())
    with GGUFFile(path) as file:
        assert file.tensors["u"].offset % 128 == 0
        assert file.read_rows(file.tensors["u"], 0, 1).shape == (1, 128)


def test_a_header_over_the_bound_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    size = MAX_HEADER_BYTES + 1
    path.write_bytes(Header([headers.array("a", 0, size, b"")]).encode())
    os.truncate(path, 2 * size)  # a sparse file: it takes no disk
    with pytest.raises(ConfigError, match="more than 128 MiB"):
        GGUFFile(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(ConfigError, match="GGUF file"):
        GGUFFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        tensor = file.tensors["output_norm.weight"]
        os.truncate(path, tensor.offset + 5)
        with pytest.raises(ConfigError, match="became shorter"):
            file.read_rows(tensor, 0, 1)


def test_a_scalar_of_the_wrong_type_is_told(tmp_path: Path) -> None:
    with GGUFFile(make_tiny_gguf(tmp_path / "m.gguf", metadata={"x": "text"})) as file:
        assert file.get("llama.block_count", float) == 2.0
        assert file.get("nothing", str, "default") == "default"
        with pytest.raises(ConfigError, match="x should be a whole number, but is text"):
            file.get("x", int)
        with pytest.raises(ConfigError, match="lack nothing"):
            file.get("nothing", int)


def test_a_large_vocabulary_is_read_within_two_seconds(tmp_path: Path) -> None:
    # 250,000 strings take 60 ms here; the bound only catches what is not linear.
    count = 250_000
    elements = b"".join(headers.text(f"token{i}") for i in range(count))
    path = tmp_path / "m.gguf"
    path.write_bytes(Header([headers.array("a", headers.STRING, count, elements)]).encode())
    started = os.times().user
    with GGUFFile(path) as file:
        strings = file.metadata["a"]
    assert isinstance(strings, list)
    assert strings[-1] == f"token{count - 1}"
    assert os.times().user - started < 2
