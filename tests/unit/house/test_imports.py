"""Importing is free of effects, and the light parts stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from servewright_runtime.supervisor.environment import driver_environment
from servewright_runtime.supervisor.rundir import RunDir
from support.tree import ROOT, project_files

CODE = """
import json, os, sys, threading
before = dict(os.environ)
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "threads": threading.active_count(),
    "environment": dict(os.environ) == before,
}))
"""


def import_all(*modules: str) -> dict[str, object]:
    """What a fresh interpreter says after importing `modules`."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    loaded: dict[str, object] = json.loads(result.stdout)
    return loaded


def modules_under(*folders: str) -> list[str]:
    """Dotted names of all modules below folders such as "runtime/servewright_runtime"."""
    names = []
    for path in project_files():
        if path.suffix == ".py" and str(path).startswith(folders):
            parts = path.with_suffix("").parts[1:]
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_importing_every_module_has_no_effect_and_loads_neither_ray_nor_torch() -> None:
    modules = [
        name
        for name in modules_under("operator/", "runtime/")
        # The two places that may: Ray's own, and the plain torch reference.
        if not name.startswith("servewright_runtime.serve.")
        # The CUDA runner is imported where it is made.
        and (name.endswith(".availability") or ".cuda." not in name)
        and ".torch_ops" not in name
    ]
    found = import_all(*modules)
    assert {"ray", "torch"}.isdisjoint(found["loaded"])  # type: ignore[arg-type]
    assert found["threads"] == 1
    assert found["environment"] is True


@pytest.mark.parametrize(
    "module", ["servewright_api", "servewright_runtime.cli", "servewright_runtime.supervisor"]
)
def test_the_supervising_side_loads_no_engine(module: str) -> None:
    heavy = {"ray", "torch", "numpy", "starlette", "uvicorn", "tokenizers"}
    assert heavy.isdisjoint(import_all(module)["loaded"])  # type: ignore[arg-type]


def test_no_telemetry_leaves_a_run(tmp_path: Path) -> None:
    asked_for = {"RAY_USAGE_STATS_ENABLED": "1"}
    environment = driver_environment(asked_for, RunDir(tmp_path, None), "run")
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
