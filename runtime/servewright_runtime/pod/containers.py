"""The two containers of a pod, each a function from what it is given to an exit code."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servewright_runtime import logs
from servewright_runtime.config import ReplicaModel, check_accelerators, resolve
from servewright_runtime.errors import ServewrightError
from servewright_runtime.hardware import detect
from servewright_runtime.pod import weights
from servewright_runtime.pod.given import Given, Mounts
from servewright_runtime.supervisor import Settings, ports
from servewright_runtime.supervisor import run as supervise
from servewright_runtime.supervisor.ending import Ending

log = logging.getLogger(__name__)

# For Services and load balancers to hear that this pod is ending; 1 s was enough on a quiet node.
_LINGER_S = 5.0
_TOLD_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container lives. The defaults are a pod's; tests have their own."""

    mounts: Mounts
    host: str
    port: int
    admin_port: int


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says. Returns the exit code; how it ended is told by then."""
    parser = argparse.ArgumentParser("python -m servewright_runtime.pod")
    parser.add_argument("work", nargs="?", choices=("serve", "fetch"), default="serve")
    parser.add_argument("--root", type=Path, default=Path("/"), help="of the mounts")
    parser.add_argument("--host", default=ports.any_address(), help="Services and probes call it")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--admin-port", type=int, default=9000)
    given = parser.parse_args(arguments)
    place = Place(Mounts(given.root), given.host, given.port, given.admin_port)
    try:
        logs.configure()
        return (fetch if given.work == "fetch" else serve)(Given.from_environment(), place)
    except ServewrightError as error:
        return Ending.of(error).told()


def fetch(given: Given, place: Place) -> int:
    """Bring the model into its mount, or verify the one that is there. Raises ServewrightError."""
    started = time.monotonic()
    service = given.service
    try:
        with weights.fetch(service, place.mounts, _progress()) as fetched:
            digest, size = fetched.digest, fetched.bytes
    except ServewrightError as error:
        raise error.told_of(service.title) from error
    except KeyboardInterrupt:
        return Ending(1, "Stopped", "Stopped before the model was there.").told()
    took_s = time.monotonic() - started
    message = f"{size / 1e6:.1f} MB in {took_s:.1f} s, {digest or 'without a digest to verify'}."
    return Ending(0, "Fetched", message).told()


def serve(given: Given, place: Place) -> int:
    """Serve the model until told to stop. Returns the exit code."""
    service, mounts = given.service, place.mounts

    def prepare() -> list[ReplicaModel]:
        check_accelerators([service])
        try:
            path, digest = weights.find(service, mounts)
        except ServewrightError as error:
            raise error.told_of(service.title) from error
        hardware = detect()
        return [
            resolve(
                service,
                revision=given.revision,
                path=path,
                digest=digest,
                keys_dir=mounts.keys,
                hardware=hardware,
            )
        ]

    settings = Settings(
        host=place.host,
        port=place.port,
        admin_host=place.host,
        admin_port=place.admin_port,
        linger_s=_LINGER_S,
        drain_s=service.spec.rollout.drain_seconds,
        fetches=False,
    )
    return supervise(settings, prepare)


def _progress() -> Callable[[int, int | None], None]:
    """Say now and then how far it is, for who follows the container's log."""
    told_at = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TOLD_EVERY_S:
            told_at = time.monotonic()
            log.info("fetching", extra={"done_bytes": done, "total_bytes": total})

    return progress
