"""Whole runs of `servewright run` for tests: started, asked, ended, and looked after."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from support.manifests import make_manifest
from support.tiny import make_tiny_gguf
from support.waiting import eventually

# Ray takes 5 s to start when nothing else runs; on a crowded machine of two cores 65 s were seen.
START_S = 200.0
ALL_FAULTS = os.environ.get("SERVEWRIGHT_FAULTS") == "all"  # `make faults`
# What is promised: nothing of a run is left so long after any end.
CLEAN_S = 10.0


@dataclass
class Answer:
    """Of an HTTP request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Run:
    """One `servewright run`, in a folder of its own which is its HOME too."""

    folder: Path
    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    pids: dict[str, int] = field(default_factory=dict)
    run_dir: Path = Path()
    run_id: str = ""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def termination(self) -> dict[str, str]:
        """The termination message."""
        message: dict[str, str] = json.loads((self.folder / "termination").read_text())
        return message

    def events(self) -> list[dict[str, Any]]:
        """The JSON log's lines."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log}"
            return self.readyz() == 200

        eventually(ready, timeout_s=START_S, interval_s=0.05)
        self.learn_where_it_lives()

    def learn_where_it_lives(self) -> None:
        """Set `pids`, `run_dir` and `run_id`; the driver must have been started."""
        self.pids = self.state()["processes"]
        environment = psutil.Process(self.pids["driver"]).environ()
        self.run_dir = Path(environment["SERVEWRIGHT_RUN_DIR"])
        self.run_id = environment["SERVEWRIGHT_RUN_ID"]

    def readyz(self) -> int | None:
        try:
            return self.admin("/readyz").status
        except OSError:
            return None

    def admin(self, path: str, *, method: str = "GET") -> Answer:
        return ask(self.admin_port, path, method=method)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.admin("/state").json()
        return state

    def complete(self, *, key: str | None = None, **fields: Any) -> Answer:
        """A completion, whole; `fields` over a default request."""
        return ask(self.port, "/v1/completions", body=completion(**fields), key=key)

    def members(self) -> set[int]:
        """Live processes of the run: the supervisor and everything under it."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return {process.pid for process in found} | {self.process.pid}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the supervisor and wait for its end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: dict[str, Any] | None = None,
    key: str | None = None,
) -> Answer:
    """One request on loopback; a POST of JSON if there is a `body`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        if body is not None:
            sent["content-type"] = "application/json"
            connection.request("POST", path, json.dumps(body), sent)
        else:
            connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())
    finally:
        connection.close()


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0, **fields}


def start(
    folder: Path,
    *changes: Mapping[str, Any],
    arguments: Sequence[str] = (),
    port: int | None = None,
    program: Sequence[str] = ("-m", "servewright_runtime", "run"),
    wrapper: Sequence[str] = (),
) -> Run:
    """Start a run of a tiny model, or of one for each of `changes`; not yet ready.

    changes: to a model's manifest, by field path. arguments: further ones of the command line.
    program: what Python runs. wrapper: a command that executes the one after it.
    """
    model = make_tiny_gguf(folder / "tiny.gguf", context_length=8192)
    defaults = {
        "metadata.name": "tiny",
        "spec.model.source": model.as_uri(),
        "spec.access.mode": "Open",
        # The slowest: streams are long enough to be watched.
        "spec.engine.kernel": "Reference",
        "spec.engine.threads": 1,
    }
    manifests = [make_manifest({**defaults, **change}) for change in changes or ({},)]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    port, admin_port = port or free_port(), free_port()
    (folder / "home").mkdir()
    (folder / "termination").touch()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
        "HOME": str(folder / "home"),
        "SERVEWRIGHT_CACHE": str(folder / "cache"),
        "SERVEWRIGHT_TERMINATION_LOG": str(folder / "termination"),
        "RAY_ADDRESS": "127.0.0.1:1",  # a user's cluster, which no run may touch
    }
    command = [*wrapper, sys.executable, *program, str(path)]
    command += ["--port", str(port), "--admin-port", str(admin_port), *arguments]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
    return Run(folder, port, admin_port, process)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def assert_nothing_left(run: Run, members: set[int]) -> None:
    """Within the promised time no process of the run is alive and its folder is gone.

    members: processes that it had; those it started since are found by their environment.
    """

    def left() -> list[str]:
        alive = [str(pid) for pid in members if is_alive(pid)]
        ours = [str(process) for process in psutil.process_iter() if belongs(process)]
        return alive + ours + [str(run.run_dir)] * run.run_dir.exists()

    def belongs(process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("SERVEWRIGHT_RUN_ID") == run.run_id)
        except psutil.Error:
            return False

    try:
        eventually(lambda: not left(), timeout_s=CLEAN_S)
    except AssertionError:
        raise AssertionError(f"left after {CLEAN_S} s: {left()}") from None
    run.process.wait(timeout=CLEAN_S)


class Streaming:
    """A streamed completion that is being read: `first` has come when the constructor returns.

    Leaving the context is leaving the server.
    """

    def __init__(self, run: Run, *, key: str | None = None, **fields: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=60)
        body = completion(stream=True, **fields)
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self.first = self._answer.readline()

    def rest(self) -> list[bytes]:
        """The events after the first, to the end. Raises when the stream was cut."""
        lines = self._answer.read().split(b"\n\n")
        return [line.strip() for line in lines if line.strip()]

    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._connection.close()
