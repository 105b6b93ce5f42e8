"""The init container as a process: what it leaves in its mount and says at its end."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import pods
from support.disk import SIZE, small_disk
from support.file_server import Exchange, FileServer, serve_file
from support.waiting import eventually

OTHER_DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def changes(server: FileServer) -> dict[str, object]:
    return {"spec.model.source": server.url, "spec.model.digest": server.digest}


def test_container_that_starts_again_takes_what_is_verified(
    server: FileServer, changes: dict[str, object], tmp_path: Path
) -> None:
    code, message = pods.fetch(tmp_path, changes)
    assert (code, message["reason"]) == (0, "Fetched")
    assert server.digest in message["message"]
    files = sorted((tmp_path / "model").rglob("*"))
    server.stop()
    assert pods.fetch(tmp_path, changes)[0] == 0
    assert sorted((tmp_path / "model").rglob("*")) == files
    assert list((tmp_path / "home").iterdir()) == []


def test_wrong_digest_ends_it_with_2_and_leaves_no_model(
    server: FileServer, changes: dict[str, object], tmp_path: Path
) -> None:
    code, message = pods.fetch(tmp_path, {**changes, "spec.model.digest": OTHER_DIGEST})
    assert (code, message["reason"]) == (2, "DigestMismatch")
    assert message["message"].startswith("ModelService default/mine: ")
    assert server.digest in message["message"]
    assert OTHER_DIGEST in message["message"]
    assert not [p for p in (tmp_path / "model" / "blobs").rglob("*") if p.is_file()]


def test_token_comes_from_the_mounted_secret(
    server: FileServer, changes: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "TOKEN").write_text("s3cret\n")
    code, _ = pods.fetch(tmp_path, {**changes, "spec.model.credentialsSecret": {"name": "login"}})
    assert code == 0
    assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer s3cret"]
    assert "s3cret" not in (tmp_path / "stderr").read_text()


def test_what_the_operator_must_give_is_asked_for(tmp_path: Path) -> None:
    code, message = pods.fetch(tmp_path, {"spec.model.source": "file:///models/mine.gguf"})
    assert (code, message["reason"]) == (2, "InvalidConfiguration")
    assert "file://" in message["message"]


def test_full_volume_is_told_with_a_cure_of_clusters(
    server: FileServer, changes: dict[str, object], tmp_path: Path, small_model: Path
) -> None:
    server.content = bytes(2 * SIZE)
    code, message = pods.fetch(tmp_path, {**changes, "spec.model.digest": server.digest})
    assert (code, message["reason"]) == (1, "DiskFull")
    assert "make room on the node" in message["message"]
    assert "SERVEWRIGHT_CACHE" not in message["message"]


@pytest.fixture
def small_model(tmp_path: Path) -> Iterator[Path]:
    """The pod's folder for the model, with room for 1 MiB."""
    with small_disk(tmp_path / "model") as folder:
        yield folder


def holding(released: threading.Event) -> Callable[[Exchange], None]:
    """Answer rightly, but only once `released`."""

    def behave(exchange: Exchange) -> None:
        released.wait(timeout=60)
        serve_file(exchange)

    return behave


def test_stopped_container_ends_at_once_and_does_not_say_that_the_model_is_there(
    server: FileServer, changes: dict[str, object], tmp_path: Path
) -> None:
    released = threading.Event()
    server.script.append(holding(released))
    container = pods.start(tmp_path, changes, ["fetch"])
    try:
        eventually(lambda: server.seen)
        container.send_signal(signal.SIGTERM)
        assert container.wait(timeout=10) == 1
    finally:
        released.set()
        container.kill()
        container.wait(timeout=10)
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "Stopped"
