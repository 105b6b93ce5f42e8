"""The bearer token of a source: to its own host over TLS, and to nobody else."""

from __future__ import annotations

import logging

import pytest
import trustme

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support.file_server import FileServer, answering, closing_at_once, cut_after, redirecting

TOKEN = "s3cret-t0ken"  # noqa: S105


def shown(server: FileServer) -> list[str | None]:
    """The Authorization header of each request."""
    return [seen.headers.get("authorization") for seen in server.seen]


def test_token_goes_with_each_request_to_the_sources_host(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([redirecting("/elsewhere"), cut_after(1000), closing_at_once])
    fetch(server.url, cache=cache, http_policy=policy, token=TOKEN).close()
    assert shown(server) == [f"Bearer {TOKEN}"] * 4


def test_token_never_follows_a_redirect_to_another_host_or_port(
    server: FileServer, trusted: trustme.CA, cache: Cache, policy: HttpPolicy
) -> None:
    """Nor does it come back with one from there."""
    with FileServer(server.content, trusted) as other:
        server.script.append(redirecting(other.url))
        other.script.append(redirecting(server.url))
        fetch(server.url, cache=cache, http_policy=policy, token=TOKEN).close()
        assert shown(other) == [None]
        assert shown(server) == [f"Bearer {TOKEN}", None]


def test_token_never_leaves_encryption(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    with FileServer(server.content) as plain:
        with pytest.raises(ConfigError, match="takes no TOKEN"):
            fetch(plain.url, digest=plain.digest, cache=cache, http_policy=policy, token=TOKEN)
        server.script.append(redirecting(plain.url))
        with pytest.raises(ConfigError, match="not encrypted"):
            fetch(server.url, cache=cache, http_policy=policy, token=TOKEN)
        assert plain.seen == []


def test_token_is_in_no_log_message_or_file(
    server: FileServer, cache: Cache, policy: HttpPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script.extend([closing_at_once, answering(401)])
    with pytest.raises(ConfigError, match=r"may not be read.*credentialsSecret") as caught:
        fetch(server.url, cache=cache, http_policy=policy, token=TOKEN)
    fetch(server.url, cache=cache, http_policy=policy, token=TOKEN).close()
    texts = [caught.value.message, caplog.text]
    texts += [path.read_text() for path in cache.root.rglob("*.json")]
    assert len(texts) == 3
    assert not [text for text in texts if TOKEN in text]
