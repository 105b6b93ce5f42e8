"""The environment of the driver, and so of every process of Ray: what is named here, no more.

A variable of the user's shell that steers Ray (RAY_ADDRESS, say) must not reach a run, and a run
must leave nothing in the user's home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from servewright_runtime.supervisor.processes import RUN_ID_VARIABLE
from servewright_runtime.supervisor.rundir import RUN_DIR_VARIABLE, RunDir

_PASSED = {
    "PATH",
    "LANG",
    "TZ",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",  # sanitizers
    "OMP_NUM_THREADS",
}
# CUDA_VISIBLE_DEVICES, CUDA_CACHE_PATH and the like: read by the driver of the GPU alone.
_PASSED_PREFIXES = ("SERVEWRIGHT_", "CUDA_", "LC_", "ASAN_", "UBSAN_", "LSAN_")

_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # read on Linux too: keeps all of Ray on loopback
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # the kernel alone decides who is out of memory
    "RAY_worker_niceness": "0",
    "RAY_BACKEND_LOG_LEVEL": "warning",
    "RAY_ROTATION_MAX_BYTES": "1000000",
    "RAY_ROTATION_BACKUP_COUNT": "1",
    "RAY_agent_register_timeout_ms": "150000",  # the raylet's for its agents; a node may be crowded
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` would have it pack the working folder
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # one loop for Serve's few calls and ours
    # Stock Ray looks after a cluster ten times a second, with a tenth of a core, and counts it all.
    # (A control loop of 1 s would halve Serve's part again, but start seconds later.)
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "SPT_NOENV": "1",  # Ray's process titles must not overwrite /proc/PID/environ
}


def driver_environment(base: Mapping[str, str], run: RunDir, run_id: str) -> dict[str, str]:
    """`base` reduced, with the run's own values."""
    kept = {
        name: value
        for name, value in base.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    if "PYTHONPATH" in base:
        parts = base["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    return {
        **kept,
        **_RAY,
        "PYTHONSAFEPATH": "1",  # no module is taken from the folder it happens to start in
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_TOKEN_PATH": str(run.token_file),
        "HOME": str(run.path),
        "TMPDIR": str(run.path),
        RUN_DIR_VARIABLE: str(run.path),
        RUN_ID_VARIABLE: run_id,
    }
