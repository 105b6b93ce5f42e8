from __future__ import annotations

import hashlib
import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.cache import DEFAULT_MAX_BYTES, WORK_KEPT_S, Cache, Held
from servewright_runtime.fetch.layout import STATE_NAME, key_of


class Clock:
    """Unix time that only tests move."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def uri_of(name: object) -> str:
    return f"https://host/{name}"


def put(cache: Cache, name: object, content: bytes) -> Held:
    """Add what `uri_of(name)` gave."""
    with cache.working(uri_of(name)) as folder:
        (folder / "model").write_bytes(content)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        return cache.add(uri_of(name), folder / "model", digest)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> Cache:
    return Cache(tmp_path / "cache", 100, now=clock)


def test_least_recently_used_goes_when_the_bound_is_reached(cache: Cache) -> None:
    for name in "abc":
        put(cache, name, name.encode() * 30).close()
    held = cache.find(uri_of("a"), None)
    assert held is not None
    held.close()
    put(cache, "d", b"d" * 30).close()
    assert [entry.source for entry in cache.entries()] == [uri_of(name) for name in "dac"]
    assert cache.find(uri_of("b"), None) is None


def test_models_in_use_may_exceed_the_bound_until_they_are_given_up(cache: Cache) -> None:
    held = [put(cache, name, name.encode() * 80) for name in "abc"]
    assert len(cache.entries()) == 3
    for one in held:
        one.close()
    put(cache, "d", b"d" * 80).close()
    assert [entry.source for entry in cache.entries()] == [uri_of("d")]


def test_model_above_the_bound_is_kept_as_it_is_wanted_now(cache: Cache) -> None:
    put(cache, "large", bytes(1000)).close()
    assert [entry.bytes for entry in cache.entries()] == [1000]


def test_cache_without_bound_keeps_all(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    for name in range(5):
        put(cache, name, bytes([name]) * 100_000).close()
    assert len(cache.entries()) == 5


def test_same_bytes_of_two_sources_are_kept_once_and_go_together(cache: Cache) -> None:
    put(cache, "a", b"same").close()
    first = cache.find(uri_of("a"), None)
    assert first is not None
    second = put(cache, "b", b"same")
    assert second.path == first.path
    assert second.path.stat().st_ino == first.path.stat().st_ino
    first.close()
    assert len(cache.entries()) == 2
    assert cache.prune().removed == []
    second.close()
    pruned = cache.prune()
    assert {entry.source for entry in pruned.removed} == {uri_of("a"), uri_of("b")}
    assert pruned.freed_bytes == 4


def test_a_digest_vouches_for_the_bytes_and_not_for_the_source(cache: Cache) -> None:
    put(cache, "a", b"same").close()
    held = cache.find(uri_of("b"), "sha256:" + hashlib.sha256(b"same").hexdigest())
    assert held is not None
    held.close()
    assert cache.find(uri_of("b"), None) is None
    assert [entry.source for entry in cache.entries()] == [uri_of("a")]


def test_pruning_by_size_and_by_age(cache: Cache, clock: Clock) -> None:
    for name in "abc":
        put(cache, name, name.encode() * 10).close()
    clock.seconds += 3600
    put(cache, "d", b"d" * 10).close()
    assert [entry.source for entry in cache.prune(keep_bytes=30).removed] == [uri_of("a")]
    removed = cache.prune(unused_for_s=1800).removed
    assert [entry.source for entry in removed] == [uri_of("b"), uri_of("c")]
    pruned = cache.prune()
    assert (pruned.freed_bytes, pruned.kept_bytes) == (10, 0)


def test_pruning_and_listing_where_there_is_no_cache_makes_none(cache: Cache) -> None:
    assert cache.entries() == []
    assert cache.prune().removed == []
    assert cache.find(uri_of("a"), "sha256:" + "0" * 64) is None
    assert not cache.root.exists()


def test_folders_are_for_this_user_alone(cache: Cache) -> None:
    put(cache, "a", b"a").close()
    for folder in (cache.root, *(p for p in cache.root.rglob("*") if p.is_dir())):
        assert folder.stat().st_mode & 0o077 == 0 or folder.name == "blobs"
    assert cache.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"source": 1}', "\xff", '{"digest": "x", "more": 1}']
)
def test_record_that_cannot_be_read_is_as_none(text: str, cache: Cache) -> None:
    put(cache, "a", b"a").close()
    path = cache.root / "sources" / f"{key_of(uri_of('a'))}.json"
    path.write_text(text, encoding="latin-1")
    assert cache.find(uri_of("a"), None) is None
    assert [entry.source for entry in cache.entries()] == [None]
    held = cache.find(uri_of("a"), "sha256:" + hashlib.sha256(b"a").hexdigest())
    assert held is not None
    held.close()


def test_record_of_odd_types_is_as_none(cache: Cache) -> None:
    put(cache, "a", b"a").close()
    path = cache.root / "sources" / f"{key_of(uri_of('a'))}.json"
    record = json.loads(path.read_text())
    for name, value in [("digest", 1), ("bytes", "1"), ("etag", []), ("source", None)]:
        path.write_text(json.dumps(record | {name: value}))
        assert cache.find(uri_of("a"), None) is None


def test_what_killed_fetches_left_is_cleared(cache: Cache, clock: Clock) -> None:
    with cache.working(uri_of("a")):
        pass
    work = cache.root / "work"
    for name, has_state in [("b", False), ("c", True)]:
        folder = work / key_of(uri_of(name))
        folder.mkdir()
        (folder / "model").write_bytes(b"half")
        if has_state:
            (folder / STATE_NAME).write_text("{}")
        (work / f"{key_of(uri_of(name))}.lock").touch()
    clock.seconds = (work / key_of(uri_of("c"))).stat().st_mtime
    put(cache, "d", b"d").close()
    assert [path.stem for path in work.iterdir() if path.is_dir()] == [key_of(uri_of("c"))]
    assert [entry.digest for entry in cache.entries()].count(None) == 1
    clock.seconds += WORK_KEPT_S + 60
    put(cache, "e", b"e").close()
    assert list(work.iterdir()) == []


def test_unfinished_download_counts_and_goes_by_age(cache: Cache, clock: Clock) -> None:
    with cache.working(uri_of("half")) as folder:
        (folder / "model").write_bytes(bytes(70))
        (folder / STATE_NAME).write_text(json.dumps({"source": "shown"}))
        clock.seconds = folder.stat().st_mtime
        put(cache, "a", b"a" * 70).close()
        assert {entry.in_use for entry in cache.entries() if entry.digest is None} == {True}
        assert cache.prune(keep_bytes=80).removed[0].source == uri_of("a")
    assert [entry.source for entry in cache.entries()] == ["shown"]
    clock.seconds += 100
    put(cache, "b", b"b" * 70).close()
    assert [entry.source for entry in cache.entries()] == [uri_of("b")]


def test_place_and_bound_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for environ, root in [
        ({}, "/home/ann/.cache/servewright"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/servewright"),
        ({"XDG_CACHE_HOME": "/x", "SERVEWRIGHT_CACHE": "/y"}, "/y"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/servewright"),
        ({"SERVEWRIGHT_CACHE": "~/z"}, "/home/ann/z"),
    ]:
        assert Cache.from_environment(environ).root == Path(root)
    assert Cache.from_environment({}).max_bytes == DEFAULT_MAX_BYTES
    assert Cache.from_environment({"SERVEWRIGHT_CACHE_MAX_BYTES": "7"}).max_bytes == 7
    for text in ("0", "-1", "1.5", "1GB", "²"):
        with pytest.raises(ConfigError, match="SERVEWRIGHT_CACHE_MAX_BYTES"):
            Cache.from_environment({"SERVEWRIGHT_CACHE_MAX_BYTES": text})


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 9)
    with pytest.raises(ConfigError, match="set SERVEWRIGHT_CACHE"):
        Cache.from_environment({})


BOUND = 100


class AnySchedule(RuleBasedStateMachine):
    """Adds, uses, releases and prunes in any order, against a plain model of the promise."""

    names = st.integers(0, 7)

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.cache = Cache(Path(self.folder.name), BOUND, now=self.clock)
        self.used: list[int] = []  # least recently first
        self.held: list[tuple[int, Held]] = []

    @staticmethod
    def content(name: int) -> bytes:
        return random.Random(name).randbytes(10 + 7 * name)

    @rule(name=names, keeps=st.booleans())
    def fetches(self, name: int, keeps: bool) -> None:
        held = self.cache.find(uri_of(name), None)
        assert (held is not None) == (name in self.used)
        self.used = [other for other in self.used if other != name] + [name]
        if held is not None:
            self.held.append((name, held))
        else:
            self.held.append((name, put(self.cache, name, self.content(name))))
            self.evict(BOUND)
        if not keeps:
            self.releases()

    @rule()
    def releases(self) -> None:
        if self.held:
            self.held.pop()[1].close()

    @rule(keep=st.integers(0, 150))
    def prunes(self, keep: int) -> None:
        self.cache.prune(keep_bytes=keep)
        self.evict(keep)

    def evict(self, keep: int) -> None:
        in_use = {name for name, _ in self.held}
        size = sum(len(self.content(name)) for name in self.used)
        for name in list(self.used):
            if size <= keep:
                break
            if name not in in_use:
                self.used.remove(name)
                size -= len(self.content(name))

    @invariant()
    def holds_what_it_promises(self) -> None:
        if not hasattr(self, "cache"):
            return
        entries = self.cache.entries()
        assert [entry.source for entry in entries] == [uri_of(n) for n in reversed(self.used)]
        in_use = {uri_of(name) for name, _ in self.held}
        assert {entry.source for entry in entries if entry.in_use} == in_use
        for name, held in self.held:
            assert held.path.read_bytes() == self.content(name)

    def teardown(self) -> None:
        for _, held in self.held:
            held.close()
        self.folder.cleanup()


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
