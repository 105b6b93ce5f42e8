from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model.gguf"
    path.write_bytes(b"weights")
    return path


def test_local_file_is_used_where_it_lies(model: Path, tmp_path: Path) -> None:
    digest = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    cache = Cache(tmp_path / "cache")
    with fetch(model.as_uri(), cache=cache) as fetched:
        assert (fetched.path, fetched.digest, fetched.bytes) == (model, None, 7)
    with fetch(model.as_uri(), digest=digest, cache=cache) as fetched:
        assert (fetched.path, fetched.digest, fetched.bytes) == (model, digest, 7)
    assert not cache.root.exists()


def test_local_file_with_another_digest_is_refused(model: Path, tmp_path: Path) -> None:
    wrong = "sha256:" + "0" * 64
    with pytest.raises(ConfigError, match=r"correct model\.digest") as caught:
        fetch(model.as_uri(), digest=wrong, cache=Cache(tmp_path))
    assert wrong in caught.value.message
    assert hashlib.sha256(b"weights").hexdigest() in caught.value.message


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in [
        ("missing", "No such file"),
        ("", "Is a directory|no regular file"),
        ("pipe", "no regular file"),
        ("loop", "symbolic links"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            fetch((tmp_path / name).as_uri(), cache=Cache(tmp_path / "cache"))
        assert caught.value.exit_code == 2


def test_scheme_that_is_not_allowed_here_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https:// sources can"):
        fetch(model.as_uri(), cache=Cache(tmp_path / "cache"), allow=("https",))


def test_digest_of_no_known_form_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sha256:<64"):
        fetch("file:///no/such", digest="abc", cache=Cache(tmp_path))
