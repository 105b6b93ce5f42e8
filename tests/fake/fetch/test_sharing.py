"""One cache, many threads and processes, of which any may be killed at any moment."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.retry import HttpPolicy
from servewright_runtime.fetch.source import fetch
from support.file_server import Exchange, FileServer, serve_file
from support.waiting import eventually

FETCH = """
import sys
from pathlib import Path
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch
fetched = fetch(sys.argv[1], digest=sys.argv[3] or None, cache=Cache(Path(sys.argv[2])))
print(fetched.digest, flush=True)
sys.stdin.read()
"""

# Runs one fetch after another, each in a fork that is killed before or after its k-th change of
# the disk, until one comes through; after each crash another fork must find a sound cache.
CRASHES = """
import hashlib, itertools, os, shutil, signal, sys
from pathlib import Path
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch

url, root = sys.argv[1], Path(sys.argv[2])
CHANGES = ("replace", "fsync", "fdatasync", "unlink", "utime", "mkdir", "rmdir")

def crash_at(wanted):
    moments = itertools.count()
    def die(): next(moments) == wanted and os.kill(os.getpid(), signal.SIGKILL)
    def crashing(call):
        def called(*args, **kwargs):
            die()
            result = call(*args, **kwargs)
            die()
            return result
        return called
    for name in CHANGES:
        setattr(os, name, crashing(getattr(os, name)))

def in_fork(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:  # the fork ends here, whatever comes
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed(moment):
    crash_at(moment)
    fetch(url, cache=Cache(root))

def afterwards():
    for blob in root.glob("blobs/sha256/*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    cache = Cache(root)
    fetch(url, cache=cache).close()
    assert len(cache.entries()) == 1, cache.entries()
    assert list(root.glob("work/*")) == [], list(root.glob("work/*"))
    assert list(root.glob("**/*.tmp")) == []

for moment in itertools.count():
    code = in_fork(lambda: killed(moment))
    assert code in (0, -signal.SIGKILL), code
    assert in_fork(afterwards) == 0, moment
    if code == 0:
        break
    shutil.rmtree(root)
print(moment, "crashes survived")
"""


def start(server: FileServer, cache: Cache, digest: str = "") -> subprocess.Popen[str]:
    """A process that fetches, prints the digest and keeps the model until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, server.url, str(cache.root), digest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def has_open(process: subprocess.Popen[str], suffix: str) -> bool:
    return any(file.path.endswith(suffix) for file in psutil.Process(process.pid).open_files())


def test_processes_that_want_the_same_model_download_it_once(
    server: FileServer, cache: Cache
) -> None:
    release = threading.Event()

    def wait(exchange: Exchange) -> None:
        release.wait(60)
        serve_file(exchange)

    server.script.append(wait)
    processes = [start(server, cache, server.digest) for _ in range(4)]
    eventually(lambda: all(has_open(process, ".lock") for process in processes))
    release.set()
    outputs = [process.communicate("", timeout=60)[0] for process in processes]
    assert outputs == [server.digest + "\n"] * 4
    assert len(server.seen) == 1


def test_threads_that_want_the_same_model_download_it_once(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    def run(_: int) -> str | None:
        with fetch(server.url, cache=cache, http_policy=policy) as fetched:
            return fetched.digest

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(run, range(6))) == {server.digest}
    # Each asks whether it is current, and one got the bytes.
    assert sum("if-none-match" not in seen.headers for seen in server.seen) == 1


def test_model_of_a_running_process_stays_until_that_one_is_killed(
    server: FileServer, cache: Cache
) -> None:
    process = start(server, cache)
    assert process.stdout is not None
    assert process.stdout.readline() == server.digest + "\n"
    pruned = cache.prune()
    assert (pruned.removed, pruned.in_use_bytes) == ([], len(server.content))
    assert [entry.in_use for entry in cache.entries()] == [True]
    process.kill()
    process.communicate()
    assert [entry.in_use for entry in cache.entries()] == [False]
    pruned = cache.prune()
    assert [entry.digest for entry in pruned.removed] == [server.digest]
    assert pruned.freed_bytes == len(server.content)
    assert cache.entries() == []


def test_kill_at_any_byte_of_the_download_is_made_good(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    for count in (0, 1, 100_000, 299_999):
        victim: list[subprocess.Popen[str]] = []
        born = threading.Event()

        def kill(
            exchange: Exchange,
            count: int = count,
            victim: list[subprocess.Popen[str]] = victim,
            born: threading.Event = born,
        ) -> None:
            born.wait(60)
            exchange.head(200, Content_Length=len(server.content), ETag=server.etag)
            exchange.wfile.write(server.content[:count])
            exchange.wfile.flush()
            victim[0].kill()

        server.script.append(kill)
        victim.append(start(server, cache))
        born.set()
        victim[0].communicate(timeout=60)
        with fetch(server.url, cache=cache, http_policy=policy) as fetched:
            assert hashlib.sha256(fetched.path.read_bytes()).hexdigest() == fetched.path.name
        assert list((cache.root / "work").iterdir()) == []
        cache.prune()


def test_kill_between_any_two_changes_of_the_disk_is_made_good(
    server: FileServer, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, server.url, str(tmp_path / "crashing")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-3]) > 20


def test_interrupt_ends_a_process_at_once_wherever_it_waits(
    server: FileServer, cache: Cache
) -> None:
    release = threading.Event()

    def stall(exchange: Exchange) -> None:
        exchange.head(200, Content_Length=len(server.content), ETag=server.etag)
        exchange.wfile.write(server.content[:1000])
        exchange.wfile.flush()
        release.wait(60)

    server.script.append(stall)
    reader = start(server, cache)
    eventually(lambda: has_open(reader, "model"))
    waiter = start(server, cache)
    eventually(lambda: has_open(waiter, ".lock"))
    try:
        for process in (waiter, reader):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
            assert process.returncode == -signal.SIGINT
    finally:
        release.set()
    [entry] = cache.entries()
    assert not entry.in_use


@pytest.mark.parametrize("has_digest", [True, False])
def test_damaged_model_is_fetched_again(
    has_digest: bool, server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    digest = server.digest if has_digest else None
    for damage in (b"", server.content[:-1], server.content[::-1]):
        with fetch(server.url, digest=digest, cache=cache, http_policy=policy) as fetched:
            fetched.path.write_bytes(damage)
        with fetch(server.url, digest=digest, cache=cache, http_policy=policy) as again:
            assert again.path.read_bytes() == server.content


def test_model_that_was_only_touched_is_hashed_and_used(
    server: FileServer, cache: Cache, policy: HttpPolicy
) -> None:
    with fetch(server.url, cache=cache, http_policy=policy) as fetched:
        os.utime(fetched.path)
    fetch(server.url, digest=server.digest, cache=cache, http_policy=policy).close()
    fetch(server.url, cache=cache, http_policy=policy).close()
    assert [seen.headers.get("if-none-match") for seen in server.seen] == [None, '"v1"']
