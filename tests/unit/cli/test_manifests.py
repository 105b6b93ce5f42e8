"""`servewright manifests`: what the operator would apply, before any cluster is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from servewright_api import load_manifests
from support.desired import children_of
from support.tree import ROOT

EXAMPLES = ["examples/01-smollm2.yaml", "examples/02-two-models.yaml"]
IMAGE = "example.com/servewright-runtime:0.1.0"
WITHOUT_KOPF = """
import sys

for name in ("aiohttp", "kopf", "kubernetes", "ray", "torch", "httpx"):
    sys.modules[name] = None
from servewright_runtime.__main__ import main

main()
"""


def manifests(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command where neither the operator's nor the runtime's own extra is installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_KOPF, "manifests", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def documents(*words: str | Path) -> list[dict[str, Any]]:
    """The objects it prints."""
    result = manifests(*words)
    assert (result.returncode, result.stderr) == (0, "")
    return list(yaml.safe_load_all(result.stdout))


def test_it_prints_what_the_builders_make_but_for_uid_and_keys() -> None:
    wanted = []
    for service in load_manifests(EXAMPLES):
        for child in children_of(service):
            del child["metadata"]["ownerReferences"]
            if child["kind"] == "Secret":
                del child["data"]
            wanted.append(child)
    assert documents(*EXAMPLES, "--image", IMAGE) == wanted


def test_what_is_left_out_is_told() -> None:
    text = manifests(EXAMPLES[0], "--set", "spec.access.mode=ApiKey").stdout
    assert text.startswith("# ModelService default/smollm2, as the operator applies it")
    assert text.count("# Left out: data.") == text.count("kind: Secret\n") == 2


def test_options_change_what_is_printed() -> None:
    printed = documents(
        EXAMPLES[0], "--pod-monitors", "--set", "metadata.namespace=models", "--image", "x:1"
    )
    kinds = {document["kind"]: document for document in printed}
    assert "PodMonitor" in kinds
    assert {document["metadata"]["namespace"] for document in printed} == {"models"}
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "x:1"
    assert "PodMonitor" not in {document["kind"] for document in documents(EXAMPLES[0])}


def test_what_no_cluster_serves_is_refused_in_a_sentence() -> None:
    result = manifests(EXAMPLES[0], "--set", "spec.model.source=file:///models/m.gguf")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: ModelService default/smollm2: spec.model.source: file:// is for the local runner "
        "alone, as a pod's node has no file of yours; use pvc://, https:// or pypi://.\n"
    )
