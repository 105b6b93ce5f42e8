"""What reaches Ray's processes of the user's environment: little, and nothing that steers Ray."""

from __future__ import annotations

import os
from pathlib import Path

from servewright_runtime.supervisor.environment import driver_environment
from servewright_runtime.supervisor.rundir import RunDir

RUN = RunDir(Path("/tmp/run"), None)  # noqa: S108 - never made


def test_nothing_of_the_user_steers_ray_or_python() -> None:
    base = {"RAY_ADDRESS": "ray://x", "PYTHONSTARTUP": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    environment = driver_environment(base, RUN, "id")
    assert base.keys() & environment.keys() == set()


def test_ray_keeps_to_loopback_asks_for_a_token_and_reports_to_nobody() -> None:
    environment = driver_environment({"RAY_USAGE_STATS_ENABLED": "1"}, RUN, "id")
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_home_and_temporary_files_are_in_the_run_dir() -> None:
    environment = driver_environment({"HOME": "/home/me"}, RUN, "id")
    assert environment["HOME"] == environment["TMPDIR"] == str(RUN.path)


def test_a_relative_python_path_holds_in_every_folder() -> None:
    environment = driver_environment({"PYTHONPATH": f"one{os.pathsep}/two"}, RUN, "id")
    assert environment["PYTHONPATH"] == f"{Path.cwd() / 'one'}{os.pathsep}/two"


def test_the_gpu_that_the_user_chose_is_the_replicas_too() -> None:
    base = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_CACHE_PATH": "/cache"}
    assert base.items() <= driver_environment(base, RUN, "id").items()


def test_our_own_settings_pass() -> None:
    environment = driver_environment({"SERVEWRIGHT_CPU": "avx2", "LC_ALL": "C"}, RUN, "id")
    assert (environment["SERVEWRIGHT_CPU"], environment["LC_ALL"]) == ("avx2", "C")
