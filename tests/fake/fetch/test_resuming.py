"""Downloads that stop half way: what came is kept, and goes into no other file."""

from __future__ import annotations

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright_runtime.errors import StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support.file_server import (
    Behaviour,
    FileServer,
    answering,
    closing_at_once,
    cut_after,
    ignoring_ranges,
    with_body,
)


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
