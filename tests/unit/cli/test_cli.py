"""The command as a person meets it: exit codes, one sentence an error, never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright_api import __version__
from servewright_runtime.cuda import availability
from support.manifests import make_manifest
from support.tree import ROOT

EXAMPLE = "examples/01-smollm2.yaml"
needs_no_device = pytest.mark.skipif(
    availability.unavailable() is None, reason="needs a machine without a CUDA device"
)


def servewright(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "servewright_runtime", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def write_manifest(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(make_manifest(changes)))
    return path


def test_version_is_one_line() -> None:
    assert servewright("--version").stdout == f"servewright {__version__}\n"
    assert servewright("version").stdout == f"servewright {__version__}\n"


def test_help_names_every_command() -> None:
    text = servewright("--help").stdout
    assert all(
        word in text
        for word in ("validate", "run", "manifests", "status", "info", "cache", "version")
    )


def test_valid_manifests_are_told_with_their_revision() -> None:
    result = servewright("validate", EXAMPLE, "examples/02-two-models.yaml")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "ModelService default/smollm2",
        "ModelService default/chat",
        "ModelService default/batch",
    ]
    assert all("revision " in line for line in lines)


def test_every_mistake_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, {"spec.engine.threads": 0, "spec.scaling": {}})
    result = servewright("validate", path, tmp_path / "none.yaml")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: {path}: ModelService default/mine: spec.engine.threads: must be at least 1, but "
        "0 came.",
        f"error: {path}: ModelService default/mine: spec.scaling: is planned and not in this "
        "version; leave it out.",
        f"error: {tmp_path / 'none.yaml'}: no such file; check the path.",
    ]


def test_set_changes_what_is_validated() -> None:
    result = servewright("validate", EXAMPLE, "--set", "spec.engine.threads=0")
    assert result.returncode == 2
    assert "spec.engine.threads: must be at least 1, but 0 came." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["validate"], "FILE", id="no file"),
        pytest.param(["validate", EXAMPLE, "--set", "x"], "path=value", id="a set without value"),
        pytest.param(["run", EXAMPLE, "--port", "70000"], "--port", id="a port out of range"),
        pytest.param(["run", EXAMPLE, "--host", ""], "--host is empty", id="no host"),
        pytest.param(
            ["run", EXAMPLE, "--port", "7000", "--admin-port", "7000"],
            "--port and --admin-port are both 7000",
            id="one port for two",
        ),
        pytest.param(["serve"], "serve", id="an unknown command"),
        pytest.param(["cache", "prune", "--keep", "lots"], "512Mi", id="a quantity that is none"),
        pytest.param(["run", "none.yaml"], "none.yaml: no such file", id="no such manifest"),
        pytest.param(
            ["run", EXAMPLE, EXAMPLE], "metadata.name: is also in", id="the same manifest twice"
        ),
        pytest.param(
            ["run", EXAMPLE, "--api-keys", "."], "access.mode Open", id="keys for an open model"
        ),
        pytest.param(
            ["run", "examples/02-two-models.yaml", "--api-keys", "none"],
            "--api-keys none cannot be read",
            id="no folder of keys",
        ),
        pytest.param(
            ["run", "examples/02-two-models.yaml", "--set", "spec.model.name=one"],
            "served by ModelService default/chat already",
            id="two models of one served name",
        ),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_says_why(arguments: list[str], words: str) -> None:
    result = servewright(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@needs_no_device
def test_a_device_that_is_not_here_is_told_in_a_sentence_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    cache = {"SERVEWRIGHT_CACHE": str(tmp_path / "cache")}
    result = servewright("run", "examples/05-gpu.yaml", environment=cache)
    assert (result.returncode, result.stdout) == (2, "")
    missing = str(availability.unavailable()).rstrip(".")
    assert result.stderr == (
        "error: ModelService default/fast: spec.accelerator asks for a GPU, but none can be used "
        f"here ({missing}); mend that or remove spec.accelerator.\n"
    )
    assert not (tmp_path / "cache").exists()


def test_an_empty_folder_of_keys_is_refused(tmp_path: Path) -> None:
    result = servewright("run", "examples/02-two-models.yaml", "--api-keys", tmp_path)
    assert result.returncode == 2
    assert "holds no file" in result.stderr


def test_a_port_in_use_is_exit_code_1_and_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = servewright("run", EXAMPLE, "--port", str(port))
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_info_names_machine_kernels_and_versions() -> None:
    result = servewright("info")
    assert result.returncode == 0
    rows = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert rows["servewright"] == __version__
    assert rows["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert rows.keys() >= {"cpu", "memory", "kernels", "ray", "torch"}
    missing = availability.unavailable()
    assert rows["gpu"] == (
        f"none: {missing}" if missing else "nvidia: the CUDA kernels run on device 0"
    )


def test_an_empty_cache_is_listed_and_pruned(tmp_path: Path) -> None:
    environment = {"SERVEWRIGHT_CACHE": str(tmp_path / "cache")}
    assert servewright("cache", "path", environment=environment).stdout == f"{tmp_path}/cache\n"
    listed = servewright("cache", "list", environment=environment)
    assert listed.stdout == f"No models in {tmp_path}/cache.\n"
    refused = servewright("cache", "prune", environment=environment)
    assert refused.returncode == 2
    assert "--all" in refused.stderr
    pruned = servewright("cache", "prune", "--all", environment=environment)
    assert pruned.returncode == 0
    assert pruned.stdout.startswith("Freed 0.0 MB")


def test_a_setting_of_the_environment_that_is_none_is_exit_code_2() -> None:
    result = servewright("cache", "list", environment={"SERVEWRIGHT_CACHE_MAX_BYTES": "much"})
    assert result.returncode == 2
    assert result.stderr.startswith("error: SERVEWRIGHT_CACHE_MAX_BYTES is 'much'")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_below_the_output_is_no_bug(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = servewright(
            "validate", EXAMPLE, environment={"PYTHONUNBUFFERED": unbuffered}, stdout=full.fileno()
        )
    assert result.returncode == 1
    assert result.stderr == "error: No space is left to write the output; make room there.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_wants_no_more_is_no_bug(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = servewright(
            "validate", EXAMPLE, environment={"PYTHONUNBUFFERED": unbuffered}, stdout=write
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


EARLY_CTRL_C = """
import signal, sys
from servewright_runtime.__main__ import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "servewright_runtime.cli":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
main()
"""


def test_ctrl_c_while_the_command_is_still_loading_is_quiet() -> None:
    result = subprocess.run(
        [sys.executable, "-c", EARLY_CTRL_C], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


BUG = """
import sys
import servewright_runtime.cli as cli

def explode(*arguments, **options):
    raise ZeroDivisionError("as a bug would")

cli.load_manifests = explode
sys.argv = ["servewright", "validate", "x"]
cli.main()
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_bug_of_ours_is_said_to_be_one_and_leaves_its_traceback(
    tmp_path: Path, debug: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BUG],
        env={**os.environ, "TMPDIR": str(tmp_path), "SERVEWRIGHT_DEBUG": debug},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    (log,) = tmp_path.glob("servewright-bug-*.log")
    assert "ZeroDivisionError: as a bug would" in log.read_text()
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: This is a bug in servewright (ZeroDivisionError)")
    assert str(log) in last
    assert ("Traceback" in result.stderr) == (debug == "1")
