"""llama.cpp, as it serves and as it measures itself, and this engine's servers beside it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from bench.servers import BenchFailed, Server, free_port

from servewright_api import API_VERSION, KIND

ROOT = Path(__file__).resolve().parents[1]
# Where hack/build-llama-cpp.sh puts it.
BUILT = ROOT / "bench" / "out" / "llama.cpp" / "bin"
SLOTS = 16
SLOT_TOKENS = 256
TIMEOUT_S = 300


class Rival(Protocol):
    """An engine to measure beside ours."""

    def version(self) -> str:
        """What it says of itself."""

    def throughput(
        self, model: Path, *, threads: int, repeats: int, decode_only: bool = False
    ) -> dict[str, list[float]]:
        """`decode` and, unless unwanted, `prefill` rates in tokens a second, `repeats` of each."""

    def serving(self, model: Path, *, threads: int, log: Path) -> Server | None:
        """Its HTTP server, not yet started; None where it has none for many streams."""


@dataclass(frozen=True)
class LlamaCpp:
    """The two programs of llama.cpp."""

    bench: Path
    server: Path

    def version(self) -> str:
        """What the server says of itself: build number, commit and compiler."""
        done = subprocess.run(
            [str(self.server), "--version"], capture_output=True, text=True, check=True
        )
        found = re.findall(r"^(?:version|built with).*$", done.stdout + done.stderr, re.MULTILINE)
        return "; ".join(found)

    def throughput(
        self, model: Path, *, threads: int, repeats: int, decode_only: bool = False
    ) -> dict[str, list[float]]:
        """Its own measure of tg128 and pp512, tokens a second; it warms up by itself."""
        command = [str(self.bench), "-m", str(model), "-t", str(threads), "-r", str(repeats)]
        command += ["-p", "0" if decode_only else "512", "-n", "128", "-o", "json"]
        rows = json.loads(_checked_output(command))
        return {"prefill" if row["n_prompt"] else "decode": row["samples_ts"] for row in rows}

    def serving(self, model: Path, *, threads: int, log: Path) -> Server:
        """llama-server with a slot a stream. No prompt is reused: every one is new anyway."""
        port = free_port()
        command = [str(self.server), "-m", str(model), "--port", str(port)]
        command += ["-t", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * SLOT_TOKENS)]
        command += ["--cache-ram", "0"]
        extra: dict[str, object] = {"cache_prompt": False}
        return Server("llama-server", command, port=port, model="bench", log=log, extra=extra)


class LlamaPackage:
    """llama.cpp inside the `llama_cpp` package, where its own programs are missing."""

    def version(self) -> str:
        """The package's; it does not tell llama.cpp's."""
        return f"in llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"

    def throughput(
        self, model: Path, *, threads: int, repeats: int, decode_only: bool = False
    ) -> dict[str, list[float]]:
        """Decode and prefill rates, tokens a second."""
        rates: dict[str, list[float]] = _child(
            "bench.llama_package",
            "decode" if decode_only else "all",
            model,
            threads=threads,
            repeats=repeats,
        )
        return rates

    def serving(self, model: Path, *, threads: int, log: Path) -> None:
        """Its server takes one request at a time."""


def find_rival() -> Rival | None:
    """llama.cpp's programs on the PATH, else as built by the script, else in the package."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(BUILT)])
    bench, server = shutil.which("llama-bench", path=path), shutil.which("llama-server", path=path)
    if bench and server:
        return LlamaCpp(Path(bench), Path(server))
    return LlamaPackage() if importlib.util.find_spec("llama_cpp") else None


def servewright_run(model: Path, *, threads: int, directory: Path) -> Server:
    """This engine as users start it: `servewright run`, with its supervisor and Ray."""
    port, admin_port = free_port(), free_port()
    manifest = _write_manifest(model, threads, directory)
    command = [sys.executable, "-m", "servewright_runtime", "run", str(manifest)]
    command += ["--port", str(port), "--admin-port", str(admin_port)]
    log = directory / "servewright-run.log"
    return Server("servewright run", command, port=port, model="bench", log=log, env=package_env())


def bare_server(model: Path, *, threads: int, directory: Path) -> Server:
    """This engine and its HTTP app in one process without Ray: shows what the rest costs."""
    port = free_port()
    manifest = _write_manifest(model, threads, directory)
    command = [sys.executable, "-m", "bench.bare_server", str(manifest), str(model)]
    command += ["--port", str(port)]
    log = directory / "bare-server.log"
    return Server("bare server", command, port=port, model="bench", log=log, env=package_env())


def _write_manifest(model: Path, threads: int, directory: Path) -> Path:
    manifest = directory / "bench.yaml"
    spec = {
        "model": {"source": model.resolve().as_uri()},
        "engine": {"threads": threads, "maxBatch": SLOTS},
        "access": {"mode": "Open"},
    }
    metadata = {"name": "bench"}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    manifest.write_text(yaml.safe_dump(document))
    return manifest


def in_process(what: str, model: Path, **options: int) -> dict[str, Any]:
    """Run bench/inprocess.py in a process of its own and return what it printed."""
    return _child("bench.inprocess", what, model, **options)


def _child(module: str, *words: object, **options: int) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *map(str, words)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    result: dict[str, Any] = json.loads(_checked_output(command))
    return result


def package_env() -> dict[str, str]:
    """Environment in which a child finds the packages of this checkout."""
    path = [str(ROOT), str(ROOT / "operator"), str(ROOT / "runtime")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _checked_output(command: list[str]) -> str:
    """The command's stdout; BenchFailed with what it said where it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=package_env(),
        cwd=ROOT,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchFailed(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout
