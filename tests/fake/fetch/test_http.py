"""Downloads from a real server over TLS, which misbehaves in every way that servers do."""

from __future__ import annotations

import logging

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    ignoring_ranges,
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


def test_cut_download_goes_on_at_the_byte_where_it_stopped(
    server: FileServer, cache: Cache, policy: HttpPolicy, waits: list[float]
) -> None:
    server.script.extend([cut_after(100_000), closing_at_once, cut_after(50_000)])
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    assert [seen.first_byte for seen in server.seen] == [0, 100_000, 100_000, 150_000]
    assert [seen.headers.get("if-range") for seen in server.seen] == [None, *['"v1"'] * 3]
    assert waits == [0.375, 0.75, 1.5]


def test_download_goes_on_in_the_next_start(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([cut_after(100_000), *[closing_at_once] * 5])
    with pytest.raises(StartError, match=r"attempt 6 of 6.*100,000 bytes are kept"):
        fetch(server.url, cache=cache, http_policy=policy)
    [entry] = cache.entries()
    assert (entry.source, entry.digest, entry.in_use) == (server.url, None, False)
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    assert server.seen[-1].first_byte == 100_000
    [entry] = cache.entries()
    assert entry.digest == server.digest


def test_file_that_changed_during_the_download_is_fetched_whole(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    def change(exchange: object) -> None:
        cut_after(1000)(exchange)  # type: ignore[arg-type]
        server.content, server.etag = server.content[::-1], '"v2"'

    server.script.append(change)
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    assert server.seen[-1].first_byte == 1000


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ignoring_ranges, id="sends everything"),
        pytest.param(answering(416), id="has no such range"),
        pytest.param(
            with_body(b"x" * 10, 206, Content_Range="bytes 90-99/300000", Content_Length=10),
            id="sends another part",
        ),
        pytest.param(with_body(b"x", 206, Content_Length=1), id="says not which part it sends"),
        pytest.param(
            with_body(b"x", 206, Content_Range="bytes 1000-1000/1001", Content_Length=1),
            id="sends a part of a file of another size",
        ),
        pytest.param(
            with_body(
                b"x" * 299_000,
                206,
                Content_Range="bytes 1000-299999/300000",
                Content_Length=299_000,
                ETag='"v9"',
            ),
            id="sends a part of another version",
        ),
    ],
)
def test_server_that_cannot_resume_is_asked_for_the_whole_file(
    answer: Behaviour, server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.script.extend([cut_after(1000), answer])
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content


@pytest.mark.parametrize(
    ("etag", "last_modified", "condition"),
    [
        ('"strong"', "Mon, 02 Nov 2026 10:00:00 GMT", '"strong"'),
        ('W/"weak"', "Mon, 02 Nov 2026 10:00:00 GMT", "Mon, 02 Nov 2026 10:00:00 GMT"),
        (None, "Mon, 02 Nov 2026 10:00:00 GMT", "Mon, 02 Nov 2026 10:00:00 GMT"),
    ],
)
def test_the_best_validator_guards_the_resume(
    etag: str | None,
    last_modified: str | None,
    condition: str,
    server: FileServer,
    cache: Cache,
    policy: HttpPolicy,
) -> None:
    server.etag, server.last_modified = etag, last_modified
    server.script.append(cut_after(1000))
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert server.seen[1].headers["if-range"] == condition
    assert server.seen[1].first_byte == 1000


def test_nothing_is_resumed_when_neither_server_nor_digest_vouches(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    server.etag = None
    server.script.append(cut_after(1000))
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert [seen.first_byte for seen in server.seen] == [0, 0]


def test_digest_finds_parts_of_two_files_and_the_file_is_fetched_once_more(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    old = server.content[::-1]
    server.etag = None
    server.script.append(with_body(old[:1000], Content_Length=len(old)))
    with fetch(server.url, digest=server.digest, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    assert [seen.first_byte for seen in server.seen] == [0, 1000, 0]


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


def test_bytes_that_a_digest_names_need_no_network_whatever_brought_them(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    fetch(server.url, cache=cache, http_policy=policy).close()
    server.stop()
    mirror = "https://mirror.invalid/model.gguf"
    with fetch(mirror, digest=server.digest, cache=cache, http_policy=policy) as fetched:
        assert fetched.digest == server.digest
    assert [entry.source for entry in cache.entries()] == [server.url]


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


def test_unreachable_host_is_an_error_after_all_attempts(
    cache: Cache, policy: HttpPolicy, waits: list[float]
) -> None:
    with pytest.raises(StartError, match="check the network") as caught:
        fetch("https://no-such-host.invalid/model", cache=cache, http_policy=policy)
    assert caught.value.exit_code == 1
    assert len(waits) == 5


def test_connection_that_drips_is_dropped_and_resumed(
    server: FileServer, cache: Cache, waits: list[float]
) -> None:
    ticks = iter(range(0, 10_000_000, 40))
    policy = HttpPolicy(
        sleep=waits.append, monotonic=lambda: float(next(ticks)), stall_bytes=200_000, attempts=50
    )
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        assert fetched.path.read_bytes() == server.content
    assert len(server.seen) > 1
    assert all(seen.first_byte > 0 for seen in server.seen[1:])


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


def test_stop_during_a_download_keeps_what_came(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    def stop(done: int, total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, cache=cache, http_policy=policy, progress=stop)
    [entry] = cache.entries()
    assert entry.bytes > 100_000
    assert not entry.in_use
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert server.seen[-1].first_byte > 100_000


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.integers(0, 200_000),
    cuts=st.lists(st.one_of(st.integers(0, 200_000), st.none(), st.just(-1)), max_size=6),
    has_tag=st.booleans(),
)
def test_any_schedule_of_cuts_gives_the_right_bytes(
    size: int,
    cuts: list[int | None],
    has_tag: bool,
    trusted: trustme.CA,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """An int cuts there, None closes at once, -1 is a server that ignores ranges."""

    def behaviour(cut: int | None) -> Behaviour:
        if cut is None:
            return closing_at_once
        return ignoring_ranges if cut < 0 else cut_after(cut)

    cache = Cache(tmp_path_factory.mktemp("cache"))
    policy = HttpPolicy(sleep=lambda _: None, attempts=8)
    with FileServer(bytes(i * i % 251 for i in range(size)), trusted) as server:
        server.etag = '"v1"' if has_tag else None
        server.script.extend(behaviour(cut) for cut in cuts)
        with fetch(server.url, cache=cache, http_policy=policy) as fetched:
            assert fetched.path.read_bytes() == server.content
            assert fetched.digest == server.digest
    assert list((cache.root / "work").iterdir()) == []
