"""Helm as the tests run it: on PATH, or beside the API server's programs in KUBEBUILDER_ASSETS."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from support.tree import ROOT

CHART = ROOT / "charts/servewright"
CRDS = ROOT / "charts/servewright-crds"
HOW_TO_GET_IT = "needs helm on PATH or in KUBEBUILDER_ASSETS; https://helm.sh/docs/intro/install"
# The oldest that is supported; an older helm takes an even older one for granted.
KUBERNETES = "1.34.0"

Document = dict[str, Any]


def program() -> str | None:
    """Where helm is."""
    return shutil.which(
        "helm",
        path=os.pathsep.join(os.environ.get(name, "") for name in ("PATH", "KUBEBUILDER_ASSETS")),
    )


def run(*words: str | Path, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Helm, whatever its exit code; without a kubeconfig it reaches no cluster."""
    found = program()
    assert found is not None, HOW_TO_GET_IT
    return subprocess.run(
        [found, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)},
    )


def helm(*words: str | Path, kubeconfig: Path | None = None) -> str:
    """What helm prints; AssertionError with its complaint when it fails."""
    done = run(*words, kubeconfig=kubeconfig)
    assert done.returncode == 0, f"helm {' '.join(map(str, words))}: {done.stderr.strip()}"
    return done.stdout


def template(*words: str | Path, chart: Path = CHART) -> str:
    """The manifests of a release called servewright in the namespace servewright."""
    kubernetes = f"--kube-version={KUBERNETES}"
    return helm("template", "servewright", chart, "--namespace=servewright", kubernetes, *words)


def documents(text: str) -> list[Document]:
    """Rendered manifests as objects."""
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(found: Iterable[Document], kind: str) -> list[Document]:
    """Those of one kind."""
    return [document for document in found if document["kind"] == kind]
