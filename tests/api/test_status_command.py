"""`servewright status` against a real API server: what a person sees, and may see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.apiserver import ApiServer
from support.pretend import Pretend
from support.tree import ROOT
from support.written import put


def status(server: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servewright_runtime", "status", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "KUBECONFIG": str(server)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def a_world(server: ApiServer, namespace: str, *, fails: bool) -> Pretend:
    """A settled ModelService and what belongs to it, in the API server."""
    world = Pretend()
    world.reconcile()
    world.settle()
    if fails:
        world.fate = "crash"
        world.edit({"spec.engine.threads": 2})
        world.settle()
    for one in world.status["conditions"]:
        one["observedGeneration"] = 1
    put(server, namespace, world.service)
    for (kind, _), child in world.children.items():
        if kind == "ControllerRevision":
            put(server, namespace, child)
    for pod in world.pods.values():
        pod["spec"] = {"containers": [{"name": "replica", "image": "x"}], "nodeName": "node-1"}
        pod["status"].pop("initContainerStatuses")
        put(server, namespace, pod)
    return world


def test_the_story_of_a_ready_service_is_told_and_ends_with_0(
    api_server: ApiServer, namespace: str
) -> None:
    world = a_world(api_server, namespace, fails=False)
    done = status(api_server.kubeconfig, "mine", "-n", namespace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"ModelService {namespace}/mine  Ready\n")
    assert world.running in done.stdout
    assert "wanted, last good, running" in done.stdout
    assert "mine-1  Ready" in done.stdout


def test_the_story_of_a_rolled_back_service_ends_with_1(
    api_server: ApiServer, namespace: str
) -> None:
    a_world(api_server, namespace, fails=True)
    done = status(api_server.kubeconfig, "mine", "-n", namespace)
    assert (done.returncode, done.stderr) == (1, "")
    assert "not Ready: RolledBack" in done.stdout
    assert "wanted, failed" in done.stdout
    assert "the probe wanted 'Paris', but got 'a a a a'." in done.stdout


def test_a_service_that_is_not_there_is_told(api_server: ApiServer, namespace: str) -> None:
    done = status(api_server.kubeconfig, "mine", "-n", namespace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: There is no ModelService {namespace}/mine; list those there are with: "
        "kubectl get modelservices --all-namespaces\n"
    )


@pytest.mark.parametrize("what", ["modelservices.servewright.io", "pods"])
def test_what_one_may_not_see_is_told(api_server: ApiServer, namespace: str, what: str) -> None:
    a_world(api_server, namespace, fails=False)
    api_server.kubectl("create", "serviceaccount", "reader", f"--namespace={namespace}")
    kinds = {"modelservices.servewright.io", "controllerrevisions.apps", "pods"} - {what}
    api_server.kubectl(
        "create",
        "role",
        "reader",
        "--verb=get,list",
        f"--resource={','.join(sorted(kinds))}",
        f"--namespace={namespace}",
    )
    api_server.kubectl(
        "create",
        "rolebinding",
        "reader",
        "--role=reader",
        f"--serviceaccount={namespace}:reader",
        f"--namespace={namespace}",
    )
    done = status(api_server.kubeconfig_for(namespace, "reader"), "mine", "-n", namespace)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: You may not look at ModelService {namespace}/mine: ")
    assert what in line
    assert line.endswith("; ask for these rights.")
