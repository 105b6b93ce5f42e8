"""Whom a download trusts, with what: digests, redirects, credentials, certificates, proxies."""

from __future__ import annotations

import logging

import pytest
import trustme

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support.file_server import FileServer, answering, closing_at_once, redirecting


def test_wrong_digest_names_both_and_harms_no_other_model(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    fetch(server.url, cache=cache, http_policy=policy).close()
    wrong = "sha256:" + "0" * 64
    with pytest.raises(ConfigError) as caught:
        fetch(server.url, digest=wrong, cache=cache, http_policy=policy)
    assert wrong in caught.value.message
    assert server.digest in caught.value.message
    assert [entry.digest for entry in cache.entries()] == [server.digest]
    server.stop()
    fetch(server.url, digest=server.digest, cache=cache, http_policy=policy).close()


def test_unencrypted_source_needs_a_digest(
    content: bytes, cache: Cache, policy: HttpPolicy
) -> None:
    with FileServer(content) as server:
        with pytest.raises(ConfigError, match=r"give model\.digest"):
            fetch(server.url, cache=cache, http_policy=policy)
        assert server.seen == []
        fetch(server.url, digest=server.digest, cache=cache, http_policy=policy).close()


def test_redirects_are_followed_but_never_out_of_encryption(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([redirecting("/elsewhere"), redirecting(server.url)])
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert [seen.path for seen in server.seen] == ["/model.gguf", "/elsewhere", "/model.gguf"]
    with FileServer(server.content) as plain:
        server.script.append(redirecting(plain.url + "?token=hush"))
        with pytest.raises(ConfigError, match="not encrypted") as caught:
            fetch(server.url + "?2", cache=cache, http_policy=policy)
        assert plain.seen == []
    assert "hush" not in caught.value.message


def test_redirects_without_end_are_an_error(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([redirecting("/again")] * 20)
    with pytest.raises(ConfigError, match="redirected more than 10 times"):
        fetch(server.url, cache=cache, http_policy=policy)


def test_credentials_go_to_their_own_host_alone_and_into_no_text(
    server: FileServer,
    trusted: trustme.CA,
    cache: Cache,
    policy: HttpPolicy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("https://", "https://ann:s3cret@") + "?token=s3cret"
    with FileServer(server.content, trusted) as other:
        server.script.extend([closing_at_once, redirecting(other.url), answering(404)])
        fetch(url, cache=cache, http_policy=policy).close()
        assert "authorization" in server.seen[1].headers
        assert "authorization" not in other.seen[0].headers
    with pytest.raises(ConfigError) as caught:
        fetch(url + "2", cache=cache, http_policy=policy)
    texts = [caught.value.message, caplog.text, repr(cache.entries())]
    texts += [repr(vars(record)) for record in caplog.records]
    texts += [p.read_text() for p in cache.root.rglob("*.json")]
    texts += [str(path) for path in cache.root.rglob("*")]
    assert not [text for text in texts if "s3cret" in text]


def test_certificate_of_a_stranger_is_named_as_the_reason(
    content: bytes, trusted: trustme.CA, cache: Cache, policy: HttpPolicy, waits: list[float]
) -> None:
    with (
        FileServer(content, trustme.CA()) as server,
        pytest.raises(StartError, match=r"certificate is not trusted .*SSL_CERT_FILE"),
    ):
        fetch(server.url, cache=cache, http_policy=policy)
    assert waits == []


def test_missing_certificate_file_is_named(
    server: FileServer, cache: Cache, policy: HttpPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such.pem")
    with pytest.raises(ConfigError, match=r"'/no/such\.pem', which SSL_CERT_FILE"):
        fetch(server.url, cache=cache, http_policy=policy)


def test_proxy_of_the_environment_is_used(
    content: bytes, cache: Cache, policy: HttpPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer(content) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        url = "http://far.invalid/model"
        fetch(url, digest=proxy.digest, cache=cache, http_policy=policy).close()
        assert proxy.seen[0].path == url
        monkeypatch.setenv("HTTP_PROXY", "gopher://x")
        with pytest.raises(ConfigError, match="names no HTTP proxy"):
            fetch(url + "2", digest="sha256:" + "0" * 64, cache=cache, http_policy=policy)
