from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import pytest

from servewright_runtime.fetch.layout import STATE_NAME
from servewright_runtime.fetch.partial import Partial


def begin(folder: Path, content: bytes) -> Partial:
    partial = Partial(folder, "shown")
    partial.restart(total=10, etag='"v1"', last_modified="a date")
    partial.write(content)
    return partial


def test_closed_download_is_resumed_with_its_hash(tmp_path: Path) -> None:
    begin(tmp_path, b"abc").close()
    with closing(Partial(tmp_path, "shown")) as partial:
        assert (partial.size, partial.total, partial.is_resumed) == (3, 10, True)
        assert partial.validator == '"v1"'
        partial.write(b"defghij")
        assert partial.is_whole
        assert partial.finish() == "sha256:" + hashlib.sha256(b"abcdefghij").hexdigest()
    assert partial.path.read_bytes() == b"abcdefghij"
    assert not (tmp_path / STATE_NAME).exists()


def test_bytes_that_were_not_synced_are_not_trusted(tmp_path: Path) -> None:
    partial = begin(tmp_path, b"abc")
    partial.sync()
    partial.write(b"never synced")
    assert partial._file is not None
    partial._file.close()  # as a kill does
    with closing(Partial(tmp_path, "shown")) as resumed:
        assert resumed.size == 3
        assert resumed.digest == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_file_shorter_than_its_state_says_is_resumed_from_what_is_there(tmp_path: Path) -> None:
    begin(tmp_path, b"abc").close()
    (tmp_path / "model").write_bytes(b"a")
    with closing(Partial(tmp_path, "shown")) as resumed:
        assert resumed.size == 1


@pytest.mark.parametrize("state", [None, "", "{", "[]", '{"size": 3}'])
def test_download_without_a_readable_state_starts_anew(tmp_path: Path, state: str | None) -> None:
    begin(tmp_path, b"abc").close()
    if state is None:
        (tmp_path / STATE_NAME).unlink()
    else:
        (tmp_path / STATE_NAME).write_text(state)
    with closing(Partial(tmp_path, "shown")) as partial:
        assert (partial.size, partial.total, partial.etag) == (0, None, None)
    assert list(tmp_path.iterdir()) == []


def test_state_of_odd_types_starts_anew(tmp_path: Path) -> None:
    for odd in ('"many"', "-1", "null", "true"):
        begin(tmp_path, b"abc").close()
        path = tmp_path / STATE_NAME
        path.write_text(path.read_text().replace('"synced_bytes": 3', f'"synced_bytes": {odd}'))
        with closing(Partial(tmp_path, "shown")) as partial:
            assert partial.size == 0, odd


def test_weak_tag_vouches_for_nothing(tmp_path: Path) -> None:
    with closing(begin(tmp_path, b"abc")) as partial:
        partial.etag = 'W/"v1"'
        assert partial.validator == "a date"
        partial.last_modified = None
        assert partial.validator is None
