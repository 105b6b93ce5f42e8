"""Downloads from a real server over TLS, which misbehaves in every way that servers do."""

from __future__ import annotations

import pytest

from servewright_runtime.errors import ConfigError, ServewrightError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support.file_server import (
    Behaviour,
    FileServer,
    answering,
    chunked,
    closing_at_once,
    cut_after,
    redirecting,
    serve_file,
    with_body,
)


def test_file_is_downloaded_and_starts_without_network_afterwards(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    seen: list[tuple[int, int | None]] = []
    with fetch(
        server.url, cache=cache, http_policy=policy, progress=lambda *at: seen.append(at)
    ) as first:
        assert first.path.read_bytes() == server.content
        assert (first.digest, first.bytes) == (server.digest, len(server.content))
    assert seen[0] == (0, len(server.content))
    assert seen[-1] == (len(server.content), len(server.content))
    server.stop()
    with fetch(server.url, digest=server.digest, cache=cache, http_policy=policy) as again:
        assert again.path == first.path
    with fetch(server.url, cache=cache, http_policy=policy) as unchecked:
        assert unchecked.path == first.path


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(
    server: FileServer, cache: Cache, waits: list[float]
) -> None:
    server.script.extend(
        [
            answering(503, Retry_After=7),
            answering(429, Retry_After="Mon, 02 Nov 2026 10:00:30 GMT"),
            answering(500, Retry_After="soon"),
        ]
    )
    policy = HttpPolicy(sleep=waits.append, dice=lambda: 0.0, now=lambda: 1793613620.0)
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert waits == [7.0, 10.0, 1.0]


def test_server_that_asks_for_a_long_wait_is_not_waited_for(
    server: FileServer, cache: Cache, policy: HttpPolicy, waits: list[float]
) -> None:
    server.script.append(answering(503, Retry_After=3600))
    with pytest.raises(StartError, match="asks to come back in 3600 s"):
        fetch(server.url, cache=cache, http_policy=policy)
    assert waits == []


def test_failures_in_a_row_end_and_progress_starts_the_count_anew(
    server: FileServer, cache: Cache, waits: list[float]
) -> None:
    policy = HttpPolicy(sleep=waits.append, attempts=3, progress_bytes=10_000)
    server.script.extend([cut_after(10_000)] * 20)
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert len(waits) == 20
    server.content = server.content[::-1]
    server.etag = '"v2"'
    server.script.extend([cut_after(9_999)] * 20)
    with pytest.raises(StartError, match="attempt 3 of 3"):
        fetch(server.url + "?other", cache=cache, http_policy=policy)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (answering(404), ConfigError, "does not exist"),
        (answering(410), ConfigError, "does not exist"),
        (answering(401), ConfigError, "may not be read"),
        (answering(403), ConfigError, "may not be read"),
        (answering(400), ConfigError, "answers 400"),
        (answering(501), StartError, "answers 501"),
        (answering(407), StartError, "proxy asks for a login"),
        (answering(204), StartError, "answers 204"),
        (answering(206), StartError, "answers 206"),
        (answering(304), StartError, "answers 304"),
        (with_body(b"zip", Content_Encoding="gzip", Content_Length=3), ConfigError, "compressed"),
        (with_body(b"who knows"), ConfigError, "nowhere how long"),
        (redirecting("ftp://localhost/model"), ConfigError, "not encrypted"),
    ],
)
def test_answer_that_another_attempt_cannot_mend_ends_at_once(
    answer: Behaviour,
    kind: type[ServewrightError],
    words: str,
    server: FileServer,
    cache: Cache,
    policy: HttpPolicy,
) -> None:
    server.script.append(answer)
    with pytest.raises(kind, match=words) as caught:
        fetch(server.url, cache=cache, http_policy=policy)
    assert len(server.seen) == 1
    assert server.url in caught.value.message
    assert cache.entries() == []


def test_file_without_length_is_taken_in_chunks_or_with_a_digest(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([chunked(server.content), with_body(server.content[::-1])])
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    server.content = server.content[::-1]
    with fetch(server.url, digest=server.digest, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content


def test_broken_chunks_are_a_cut_stream(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.append(with_body(b"ff\r\nshort", Transfer_Encoding="chunked"))
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content


@pytest.mark.parametrize("says_so", [True, False])
def test_file_above_the_bound_is_refused(
    says_so: bool, server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.append(serve_file if says_so else chunked(server.content))
    with pytest.raises(ConfigError, match="SERVEWRIGHT_MAX_MODEL_BYTES"):
        fetch(server.url, cache=cache, http_policy=policy, max_bytes=len(server.content) - 1)
    assert cache.entries() == []
    fetch(server.url, cache=cache, http_policy=policy, max_bytes=len(server.content)).close()


def test_bound_comes_from_the_environment(
    server: FileServer, cache: Cache, policy: HttpPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEWRIGHT_MAX_MODEL_BYTES", "1000")
    with pytest.raises(ConfigError, match="at most 1,000 bytes"):
        fetch(server.url, cache=cache, http_policy=policy)
    monkeypatch.setenv("SERVEWRIGHT_MAX_MODEL_BYTES", "1 GB")
    with pytest.raises(ConfigError, match="SERVEWRIGHT_MAX_MODEL_BYTES is '1 GB'"):
        fetch(server.url, cache=cache, http_policy=policy)


def test_bytes_that_a_digest_names_need_no_network_whatever_brought_them(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    fetch(server.url, cache=cache, http_policy=policy).close()
    server.stop()
    mirror = "https://mirror.invalid/model.gguf"
    with fetch(mirror, digest=server.digest, cache=cache, http_policy=policy) as fetched:
        assert fetched.digest == server.digest
    assert [entry.source for entry in cache.entries()] == [server.url]


def test_unreachable_host_is_an_error_after_all_attempts(
    cache: Cache, policy: HttpPolicy, waits: list[float]
) -> None:
    with pytest.raises(StartError, match="check the network") as caught:
        fetch("https://no-such-host.invalid/model", cache=cache, http_policy=policy)
    assert caught.value.exit_code == 1
    assert len(waits) == 5


def test_current_model_is_not_downloaded_again_and_a_newer_one_is(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    fetch(server.url, cache=cache, http_policy=policy).close()

    fetch(server.url, cache=cache, http_policy=policy).close()
    server.content, server.etag = server.content[::-1], '"v2"'
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert [seen.headers.get("if-none-match") for seen in server.seen] == [
        None,
        '"v1"',
        '"v1"',
        '"v2"',
    ]


@pytest.mark.parametrize(
    "trouble",
    [answering(503), answering(404), answering(403), closing_at_once, cut_after(1000)],
)
def test_model_at_hand_is_used_when_the_server_is_in_trouble(
    trouble: Behaviour,
    server: FileServer,
    cache: Cache,
    policy: HttpPolicy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetch(server.url, cache=cache, http_policy=policy).close()
    digest = server.digest
    server.content, server.etag = server.content[::-1], '"v2"'
    server.script.extend([trouble, *[closing_at_once] * 5])
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.digest == digest
    assert "cached model used unchecked" in caplog.text


def test_model_that_the_server_cannot_vouch_for_is_used_unasked(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.etag = None
    for _ in range(2):
        fetch(server.url, cache=cache, http_policy=policy).close()
    assert len(server.seen) == 1
