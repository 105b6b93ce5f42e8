"""A run on this machine, as the person at the terminal sees it: fetch, keys, progress, URL.

The processes are the supervisor's; here is what it needs to begin and what it has to say.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from servewright_api import ModelService, revision
from servewright_runtime.config import (
    ReplicaModel,
    check_accelerators,
    check_served_names,
    resolve,
)
from servewright_runtime.errors import ConfigError, ServewrightError, StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import Fetched, fetch
from servewright_runtime.hardware import Hardware, detect
from servewright_runtime.supervisor import Audience, Phase, Settings
from servewright_runtime.supervisor import run as supervise
from servewright_runtime.supervisor.rundir import make_private, no_room

_KEY_VARIABLE = "API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger(__name__)

_PHASES = {
    Phase.STARTING: "Starting Ray",
    Phase.LOADING: "Loading the weights",
    Phase.WARMING: "Waiting for the probe's answer",
    Phase.DRAINING: "Draining: finishing what is in flight; Ctrl-C again stops at once",
}
# Fields that only a cluster obeys.
_OF_A_CLUSTER = (
    "metadata.labels",
    "metadata.annotations",
    "spec.model.credentialsSecret",
    "spec.resources",
    "spec.replicas",
    "spec.rollout",
    "spec.probe.intervalSeconds",
    "spec.access.secretRef",
    "spec.pod",
)
# Random bytes of a made key: 192 bits cannot be guessed.
_KEY_BYTES = 24


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the API keys lie, and how to show one of them to a shell."""

    folder: Path
    setup: str | None  # a line for the shell that sets _KEY_VARIABLE


def run(services: Sequence[ModelService], settings: Settings, api_keys: Path | None) -> int:
    """Serve until stopped. Returns the exit code. Raises ServewrightError for what cannot start."""
    hardware = detect()
    refuse_other_systems(hardware)
    refuse_suspended(services)
    check_served_names(services)
    check_accelerators(services)
    with local_keys(services, api_keys) as keys, Voice(services, settings, keys) as voice:
        start = Start(services, keys, hardware, voice)
        return supervise(settings, start.prepare, voice)


def refuse_other_systems(hardware: Hardware) -> None:
    """Raise StartError where the supervisor's means (pidfd, subreaper) do not exist."""
    if hardware.system != "Linux":
        raise StartError(
            f"servewright run needs Linux's process control, and this is {hardware.system}; run it "
            "in a Linux container or virtual machine (validate, info and version work here)."
        )


def refuse_suspended(services: Sequence[ModelService]) -> None:
    """Raise ConfigError for a service that is not to be served."""
    for service in services:
        if service.spec.suspend:
            raise ConfigError(
                f"{service.title}: spec.suspend is true, so there is nothing to serve; set it to "
                "false or leave this ModelService out."
            )


class Start:
    """Brings the models' files, in the thread that the supervisor gives it."""

    def __init__(
        self,
        services: Sequence[ModelService],
        keys: Keys | None,
        hardware: Hardware,
        voice: Voice,
    ) -> None:
        self._services = services
        self._keys = keys
        self._hardware = hardware
        self._voice = voice
        self._held: list[Fetched] = []  # open for the whole run: no prune takes a file in use

    def prepare(self) -> list[ReplicaModel]:
        """Fetch all models, one after another. Raises ServewrightError that names the service."""
        cache = Cache.from_environment()
        models = []
        for service in self._services:
            try:
                fetched = self._voice.watch_fetch(service, cache)
            except ServewrightError as error:
                raise error.told_of(service.title) from error
            self._held.append(fetched)
            models.append(
                resolve(
                    service,
                    revision=revision(service),
                    path=fetched.path,
                    digest=fetched.digest,
                    keys_dir=self._keys.folder if self._keys else None,
                    hardware=self._hardware,
                    models=len(self._services),
                )
            )
        return models


@contextlib.contextmanager
def local_keys(services: Sequence[ModelService], folder: Path | None) -> Iterator[Keys | None]:
    """The folder of API keys: the user's, or one with a key made for this run; None: all open."""
    if all(service.spec.access.mode == "Open" for service in services):
        if folder is not None:
            raise ConfigError(
                f"--api-keys {folder} would have no effect, as every model has access.mode Open; "
                "leave one of the two out."
            )
        yield None
    elif folder is not None:
        yield Keys(folder, f'{_KEY_VARIABLE}="$(cat {shlex.quote(str(_a_key_in(folder)))})"')
    else:
        key = f"sw-{secrets.token_hex(_KEY_BYTES)}"
        with _folder_of(key) as made:
            yield Keys(made, f"{_KEY_VARIABLE}={key}   # made for this run, shown only here")


@contextlib.contextmanager
def _folder_of(key: str) -> Iterator[Path]:
    """A private folder that holds the key, while it is needed."""
    path, lock = make_private()
    folder = path / "keys"
    try:
        folder.mkdir(mode=0o700)
        (folder / "local").write_text(key)
    except OSError as error:
        raise no_room(str(path.parent), error) from error
    else:
        yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _a_key_in(folder: Path) -> Path:
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise ConfigError(
            f"--api-keys {folder} cannot be read: {error.strerror}; name a folder of files, each "
            "one API key."
        ) from error
    if not names:
        raise ConfigError(f"--api-keys {folder} holds no file; put one API key a file into it.")
    return folder.absolute() / names[0]


def without_effect(services: Sequence[ModelService]) -> list[str]:
    """Fields that are given, other than by default, and mean nothing without a cluster."""
    given = [service.model_dump(by_alias=True, exclude_defaults=True) for service in services]
    return [
        f"{path} (locally: --api-keys DIR)" if path == "spec.access.secretRef" else path
        for path in _OF_A_CLUSTER
        if any(_holds(fields, path.split(".")) for fields in given)
    ]


def _holds(fields: Any, path: Sequence[str]) -> bool:
    for name in path:
        if name not in fields:
            return False
        fields = fields[name]
    return True


@dataclass
class Voice(Audience):
    """Tells how the run goes: bars and lines on stderr at a terminal, where else the log tells it;
    then what to call on stdout."""

    services: Sequence[ModelService]
    settings: Settings
    keys: Keys | None
    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def __post_init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
            disable=not self.err.is_terminal,
        )
        self._phase: Phase | None = None
        self._phase_bar: TaskID | None = None

    def __enter__(self) -> Voice:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def watch_fetch(self, service: ModelService, cache: Cache) -> Fetched:
        """Fetch the model's file with a bar; called in the thread of `Start.prepare`."""
        started_at = time.monotonic()
        bar = self._bars.add_task(f"Fetching {service.served_name}", total=None, detail="")
        model = service.spec.model

        def progress(done: int, total: int | None) -> None:
            of = "" if total is None else f" of {total / 1e6:.1f}"
            self._bars.update(bar, completed=done, total=total, detail=f"{done / 1e6:.1f}{of} MB")

        try:
            fetched = fetch(model.source, digest=model.digest, cache=cache, progress=progress)
        finally:
            self._bars.remove_task(bar)
        took_s = time.monotonic() - started_at
        self._say(
            f"Fetched {service.served_name}: {fetched.bytes / 1e6:.1f} MB in {took_s:.1f} s, "
            f"{fetched.digest or 'not verified, as the manifest gives no digest'}"
        )
        told = {"bytes": fetched.bytes, "seconds": round(took_s, 3), "digest": fetched.digest}
        log.info("fetched", extra={"model": service.served_name, **told})
        return fetched

    def on_phase(self, phase: Phase, fraction: float | None) -> None:
        """Say a new phase; draw how far it is."""
        if phase is not self._phase:
            self._phase = phase
            if self._phase_bar is not None:
                self._bars.remove_task(self._phase_bar)
                self._phase_bar = None
            if phase in _PHASES:
                self._say(_PHASES[phase])
        if fraction is not None and phase in _PHASES:
            if self._phase_bar is None:
                self._phase_bar = self._bars.add_task(_PHASES[phase], total=1.0, detail="")
            self._bars.update(self._phase_bar, completed=fraction, detail=f"{fraction:.0%}")

    def on_ready(self, url: str) -> None:
        """What the user waited for: the URL and a line to paste."""
        self._bars.stop()
        for line in ready_lines(self.services, self.settings, self.keys, url):
            self.out.print(line)

    def _say(self, text: str) -> None:
        if self.err.is_terminal:  # where stderr is collected, it holds log lines alone
            self.err.print(text)


def ready_lines(
    services: Sequence[ModelService], settings: Settings, keys: Keys | None, url: str
) -> list[str]:
    """What is told when the models answer."""
    lines = [f"Serving at {url}/v1"]
    lines += [f"  model {service.served_name} ({service.title})" for service in services]
    if fields := without_effect(services):
        lines.append(f"No effect without a cluster: {', '.join(fields)}")
    if settings.host not in _LOOPBACK:
        opened = [s.served_name for s in services if s.spec.access.mode == "Open"]
        if opened:
            lines.append(f"Open to everyone who reaches {settings.host}: {', '.join(opened)}")
    if keys is not None and keys.setup is not None:
        lines.append(keys.setup)
    lines.append(curl_line(services[0], url))
    lines.append("Ctrl-C stops it.")
    return lines


def curl_line(service: ModelService, url: str) -> str:
    """A command that gets an answer of `service`."""
    body: dict[str, Any] = {
        "model": service.served_name,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "temperature": 0,
        "max_tokens": min(64, service.spec.limits.max_output_tokens or 64),
    }
    words = ["curl", f"{url}/v1/chat/completions", "-H", "content-type: application/json"]
    line = shlex.join(words)
    if service.spec.access.mode == "ApiKey":
        line += f' -H "authorization: Bearer ${_KEY_VARIABLE}"'
    return f"{line} -d {shlex.quote(json.dumps(body))}"


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
