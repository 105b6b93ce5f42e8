"""API keys in a folder: hashes only, constant time, re-read when it changes."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import pytest

from servewright_runtime.api import access
from servewright_runtime.api.access import ANONYMOUS, Caller, KeyFolder, identify
from support.serving import write_keys


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def caller(key: str) -> Caller:
    return identify(f"Bearer {key}".encode())


def test_a_key_is_found_by_its_hash_and_told_by_its_name(tmp_path: Path) -> None:
    folder = KeyFolder(write_keys(tmp_path, {"alice": "key-a\n", "bob": "key-b"}))
    assert folder.find(caller("key-a")) == "alice"
    assert folder.find(caller("key-b")) == "bob"
    assert folder.find(caller("key-c")) is None
    assert folder.find(ANONYMOUS) is None


def test_no_key_is_kept_in_memory(tmp_path: Path) -> None:
    folder = KeyFolder(write_keys(tmp_path, {"alice": "key-a"}))
    found = folder.find(caller("key-a"))
    assert found == "alice"
    assert folder._hashes == (("alice", hashlib.sha256(b"key-a").digest()),)
    assert "key-a" not in str(vars(folder))


def test_every_key_is_compared_whichever_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KeyFolder(write_keys(tmp_path, {f"k{i}": f"key-{i}" for i in range(5)}))
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return hmac.compare_digest(a, b)

    class Hmac:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(access, "hmac", Hmac)
    for key in ("key-0", "key-4", "nobody"):
        compared.clear()
        folder.find(caller(key))
        assert len(compared) == 5


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Basic a2V5", b"key-a", b"Bearer\tkey-a"]
)
def test_what_is_no_bearer_key_is_anonymous(header: bytes | None) -> None:
    assert identify(header) == ANONYMOUS


def test_a_changed_folder_is_seen_after_a_second_and_not_looked_at_before(tmp_path: Path) -> None:
    clock = Clock()
    folder = KeyFolder(write_keys(tmp_path, {"alice": "old"}), clock=clock)
    assert folder.find(caller("old")) == "alice"
    write_keys(tmp_path, {"alice": "new-one", "bob": "b"})
    assert folder.find(caller("old")) == "alice"
    clock.now += access.LOOK_INTERVAL_S
    assert folder.find(caller("old")) is None
    assert folder.find(caller("new-one")) == "alice"
    assert folder.find(caller("b")) == "bob"
    (tmp_path / "bob").unlink()
    clock.now += access.LOOK_INTERVAL_S
    assert folder.find(caller("b")) is None


def test_a_secret_mounted_by_kubernetes_is_followed_through_its_swap(tmp_path: Path) -> None:
    # As the kubelet lays it out: names are links into ..data, itself a link to a dated folder.
    clock = Clock()
    write_keys(tmp_path / "..2026_01", {"alice": "one"})
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "alice").symlink_to("..data/alice")
    folder = KeyFolder(tmp_path, clock=clock)
    assert folder.find(caller("one")) == "alice"
    write_keys(tmp_path / "..2026_02", {"alice": "two"})
    (tmp_path / "..data_tmp").symlink_to("..2026_02")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    clock.now += access.LOOK_INTERVAL_S
    assert folder.find(caller("one")) is None
    assert folder.find(caller("two")) == "alice"


def test_a_swap_while_the_keys_are_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KeyFolder(write_keys(tmp_path, {"alice": "old"}))
    read = access._read

    def read_while_swapped(path: Path, names: list[str]) -> tuple[tuple[str, bytes], ...]:
        hashes = read(path, names)
        write_keys(tmp_path, {"alice": "newer"})
        return hashes

    monkeypatch.setattr(access, "_read", read_while_swapped)
    assert folder.find(caller("old")) is None  # what was read is not trusted
    monkeypatch.setattr(access, "_read", read)
    assert folder.find(caller("newer")) == "alice"
    assert folder.find(caller("old")) is None


def test_a_missing_or_empty_folder_admits_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert KeyFolder(tmp_path / "none").find(caller("")) is None
    assert "keys unreadable" in caplog.text
    assert KeyFolder(tmp_path).find(caller("x")) is None


def test_an_empty_or_huge_file_is_no_key(tmp_path: Path) -> None:
    write_keys(tmp_path, {"empty": " \n", "huge": "x" * (access.MAX_KEY_BYTES + 1), "good": "g"})
    (tmp_path / "folder").mkdir()
    folder = KeyFolder(tmp_path)
    assert folder.find(caller("g")) == "good"
    assert folder.find(Caller(hashlib.sha256(b"").digest())) is None
    assert folder.find(caller("x" * (access.MAX_KEY_BYTES + 1))) is None
