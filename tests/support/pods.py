"""A pod's containers as processes of this machine, their mounts under a folder of the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.manifests import make_manifest
from support.runs import Run, free_port

REVISION = "0123456789"


def make_environment(folder: Path, changes: Mapping[str, Any]) -> dict[str, str]:
    """What the operator sets, for a manifest with `changes` by field path. HOME is an empty folder.

    The user's own variables stay: proxies and certificates steer a fetch in a pod too.
    """
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (folder / "termination").touch()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
        "HOME": str(home),
        "SERVEWRIGHT_MANIFEST": json.dumps([make_manifest(changes)]),
        "SERVEWRIGHT_REVISION": REVISION,
        "SERVEWRIGHT_TERMINATION_LOG": str(folder / "termination"),
    }


def start(
    folder: Path, changes: Mapping[str, Any], arguments: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A container of the pod whose mounts lie in `folder`; it writes `stderr` there."""
    (folder / "model").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "servewright_runtime.pod", *arguments, "--root", str(folder)]
    with (folder / "stderr").open("wb") as err:
        return subprocess.Popen(command, env=make_environment(folder, changes), stderr=err)


def fetch(folder: Path, changes: Mapping[str, Any]) -> tuple[int, dict[str, str]]:
    """The init container, to its end: exit code and termination message."""
    code = start(folder, changes, ["fetch"]).wait(timeout=60)
    message: dict[str, str] = json.loads((folder / "termination").read_text())
    return code, message


def serve(folder: Path, changes: Mapping[str, Any]) -> Run:
    """The replica's container, not yet ready."""
    port, admin_port = free_port(), free_port()
    arguments = ["--port", str(port), "--admin-port", str(admin_port)]
    return Run(folder, port, admin_port, start(folder, changes, arguments))
