"""`servewright status` where there is nothing to look at: one sentence, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.tree import ROOT

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


def status(
    *arguments: str, environment: Mapping[str, str] | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `servewright status`; before: Python to run in that process first."""
    code = f"{before}\nfrom servewright_runtime.__main__ import main; main()"
    clean = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    return subprocess.run(
        [sys.executable, "-c", code, "status", *arguments],
        cwd=ROOT,
        env={**clean, "NO_COLOR": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    return path


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr."""
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_without_the_operators_packages_it_says_what_to_install() -> None:
    before = "import sys; sys.modules['kubernetes'] = None"
    assert complaint(status("mine", before=before)) == (
        "error: `servewright status` needs the Python package kubernetes, which is not installed; "
        "run: pip install 'servewright[operator]'"
    )


def test_without_a_kubeconfig_it_says_how_to_name_one(tmp_path: Path) -> None:
    assert complaint(status("mine", environment={"HOME": str(tmp_path)})) == (
        f"error: No cluster is known here: there is no {tmp_path}/.kube/config; set KUBECONFIG, or "
        "give --kubeconfig and --context."
    )


def test_an_unknown_context_is_told(kubeconfig: Path) -> None:
    line = complaint(status("mine", "--kubeconfig", str(kubeconfig), "--context", "other"))
    assert "other" in line


def test_a_kubeconfig_of_nonsense_is_told(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    for nonsense in ("", "[", "x: 1", "clusters: 7\ncontexts: 3\ncurrent-context: 1"):
        path.write_text(nonsense)
        assert "No cluster is known here" in complaint(status("mine", "--kubeconfig", str(path)))


def test_a_cluster_that_gives_no_answer_is_told(kubeconfig: Path) -> None:
    line = complaint(status("mine", environment={"KUBECONFIG": str(kubeconfig)}))
    assert line.startswith("error: The cluster at http://127.0.0.1:1 gives no answer: ")
    assert line.endswith("; is it up?")


def test_help_says_what_the_exit_codes_mean() -> None:
    words = " ".join(status("--help").stdout.split())
    assert "Exit code: 0 it is Ready, 1 it is not, 2 it could not be looked at." in words
