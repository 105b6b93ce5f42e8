"""What a person does, in the words of docs/kubernetes.md: apply, wait, look, ask, scale, edit,
delete."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from servewright_operator import names
from support import cluster
from support.cluster import (
    MakeModel,
    Namespace,
    Object,
    call,
    condition,
    seconds_to_ready,
    until,
)
from support.installation import install_operator
from support.runs import free_port
from support.tree import ROOT

Shell = Callable[[str], str]
CHILDREN = "deployments,replicasets,pods,services,networkpolicies,pdb,controllerrevisions,secrets"
COLUMNS = ["NAME", "MODEL", "READY", "REASON", "REPLICAS", "REVISION", "URL", "AGE"]
SOURCE = re.compile(r"pypi://\S+")
ANSWER_S = 60
GONE_S, TOLD_S = 90.0, 30.0


@pytest.fixture
def shell(space: Namespace, tmp_path: Path) -> Shell:
    """Runs a line of a shell in the project's root, in a context of the test's namespace."""
    view = ("config", "view", "--raw", "--flatten", "--minify", "--output=json")
    config = json.loads(call("kubectl", *view))
    config["contexts"][0]["context"]["namespace"] = space.name
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))

    def run(line: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=ROOT,
            env={**os.environ, "KUBECONFIG": str(path)},
            capture_output=True,
            text=True,
            timeout=cluster.READY_S * 2,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@contextmanager
def port_forward(space: Namespace, service: str) -> Iterator[int]:
    """`kubectl port-forward svc/SERVICE`; the local port."""
    port = free_port()
    command = ["kubectl", f"--namespace={space.name}", "port-forward", f"svc/{service}"]
    process = subprocess.Popen([*command, f"{port}:8000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Forwarding from")
        yield port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def chat(port: int, model: str, key: str | None = None) -> tuple[int, Any]:
    """Ask for the capital of France: status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    # A question that this small model is sure of, whatever the last bits of its logits are.
    words = "Complete the sentence: The capital of France is"
    question = {"role": "user", "content": words}
    body = {"model": model, "messages": [question], "max_tokens": 24, "temperature": 0}
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_model_is_applied_asked_scaled_edited_and_deleted(
    space: Namespace, shell: Shell, files: str
) -> None:
    # The cluster of a test need not reach a package index.
    shell(f"sed 's#pypi://.*#{files}/smollm2.gguf#' examples/01-smollm2.yaml | kubectl apply -f -")
    shell("kubectl wait msvc/smollm2 --for=condition=Ready --timeout=5m")

    header, row = shell("kubectl get msvc").splitlines()
    assert header.split() == COLUMNS
    shown = dict(zip(header.split(), row.split(), strict=True))
    first = space.get("msvc", "smollm2")["status"]["revision"]
    assert (shown["READY"], shown["REASON"]) == ("True", "ProbeSucceeded")
    assert (shown["REPLICAS"], shown["REVISION"]) == ("1", first)
    assert shown["URL"].startswith(f"http://smollm2.{space.name}.svc:8000")

    with port_forward(space, "smollm2") as port:
        status, answer = chat(port, "smollm2")
    assert status == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]

    shell("kubectl scale msvc/smollm2 --replicas=3")
    assert space.wait_ready("smollm2")["status"]["readyReplicas"] == 3
    assert len(space.pods("smollm2")) == 3
    shell("kubectl scale msvc/smollm2 --replicas=1")
    space.wait_ready("smollm2")

    shell(
        """KUBE_EDITOR="sed -i 's/drainSeconds: 30/drainSeconds: 20/'" kubectl edit msvc/smollm2"""
    )
    status = space.wait_ready("smollm2")["status"]
    assert status["revision"] != first
    assert status["lastGoodRevision"] == status["revision"]

    shell("kubectl delete msvc/smollm2")
    label = f"{names.SERVICE_LABEL}=smollm2"
    until("no child is left", lambda: not space.find(CHILDREN, label), timeout_s=GONE_S)


def test_the_status_is_the_truth_about_the_start(
    space: Namespace, make_model: MakeModel, shell: Shell
) -> None:
    space.apply(make_model())
    space.wait_ready("m")

    def with_cold_start() -> Object | None:
        found = space.get("msvc", "m")
        return found if "coldStart" in found["status"] else None

    service = until("the pod has told how it started", with_cold_start, timeout_s=TOLD_S)
    status, (pod,) = service["status"], space.pods("m")

    assert status["model"]["digest"] == service["spec"]["model"]["digest"]
    assert status["model"]["bytes"] > 90_000_000
    assert status["endpoints"]["openai"].startswith(f"http://m.{space.name}.svc:8000")
    assert status["lastProbe"]["result"] == "Succeeded"
    assert status["lastProbe"]["revision"] == status["revision"]
    for kind in ("Admitted", "Scheduled", "ModelReady", "Available", "Ready"):
        assert condition(service, kind)["status"] == "True", kind
    assert condition(service, "Degraded")["status"] == "False"
    assert "lastFailure" not in status

    parts = status["coldStart"]
    assert set(parts) <= {"schedule", "pull", "fetch", "start", "load", "warm"}
    assert {"fetch", "start", "load", "warm"} <= set(parts)
    assert all(seconds >= 0 for seconds in parts.values())
    # Kubernetes' own stamps are whole seconds: a second a boundary.
    assert abs(sum(parts.values()) - seconds_to_ready(pod)) <= len(parts) + 1

    told = shell(f".venv/bin/servewright status m --namespace {space.name}")
    assert status["revision"] in told
    assert pod["metadata"]["name"] in told


def test_a_key_is_made_and_asked_for(space: Namespace, make_model: MakeModel, shell: Shell) -> None:
    space.apply(make_model({"spec.access.mode": "ApiKey"}))
    space.wait_ready("m")
    key = shell("kubectl get secret m-api-keys -o jsonpath='{.data.default}' | base64 -d")
    with port_forward(space, "m") as port:
        assert chat(port, "m")[0] == 401
        assert chat(port, "m", "sw-not-it")[0] == 401
        assert chat(port, "m", key)[0] == 200


def test_the_notes_of_the_chart_are_commands_that_work(
    space: Namespace, operator: Namespace, helm_set: list[str], files: str, shell: Shell
) -> None:
    notes = install_operator(*helm_set).partition("NOTES:")[2]
    lines = notes.replace(" -n default", "").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("kubectl apply"))
    last = next(at for at, line in enumerate(lines) if line.startswith("kubectl wait"))
    script = SOURCE.sub(f"{files}/smollm2.gguf", "\n".join(lines[first : last + 1]))
    shell(script)
    assert condition(space.get("msvc", "smollm2"), "Ready")["status"] == "True"
