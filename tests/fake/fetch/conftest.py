"""A cache in a fresh folder, a certificate authority, a server and a policy that never sleeps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from support.file_server import FileServer


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """The authority, trusted by whatever this test starts."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return authority


@pytest.fixture
def content() -> bytes:
    return random.Random(4).randbytes(300_000)


@pytest.fixture
def server(trusted: trustme.CA, content: bytes) -> Iterator[FileServer]:
    with FileServer(content, trusted) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the policy's sleep was asked for."""
    return []


@pytest.fixture
def policy(waits: list[float]) -> HttpPolicy:
    return HttpPolicy(sleep=waits.append, dice=lambda: 0.5, connect_timeout_s=10, read_timeout_s=10)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
