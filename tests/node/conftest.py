"""A cluster with the operator as README installs it, a file server for the model, and for each
test a fresh namespace. What fails tells what was in it."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from support import cluster
from support.cluster import CallFailed, MakeModel, Namespace, Object, call
from support.installation import (
    OPERATOR_NAMESPACE,
    install_crds,
    install_operator,
    operator_namespace,
)
from support.manifests import make_manifest
from support.smollm2 import DIGEST, smollm2_path

# A model for a crowded machine: it starts in 10 s and takes 600 MB.
CHEAP: Object = {
    "metadata.name": "m",
    "spec.model.digest": DIGEST,
    "spec.engine.threads": 1,
    "spec.engine.kvCache": "64Mi",
    "spec.engine.maxModelLen": 1024,
    "spec.access.mode": "Open",
    "spec.probe.prompt": "The capital of France is",
    "spec.probe.expect": "Paris",
    "spec.probe.intervalSeconds": 5,
    "spec.probe.timeoutSeconds": 20,
    "spec.resources.requests": {"cpu": "50m", "memory": "512Mi"},
    "spec.resources.limits": {"memory": "1536Mi"},
    "spec.rollout.progressDeadlineSeconds": 120,
}
MAX_LOG_LINES = 60
KINDS = "msvc,deployments,replicasets,controllerrevisions,services,pdb,pods"

FILE_SERVER = """
import http.server, os, time

class Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/hang/"):
            time.sleep(3600)
        super().do_GET()

os.chdir("/files")
http.server.ThreadingHTTPServer(("", 8080), Files).serve_forever()
"""


@pytest.fixture(scope="session")
def helm_set() -> list[str]:
    """Options for `helm install` where the images have other names than the chart's defaults."""
    given = os.environ.get("SERVEWRIGHT_HELM_SET")
    return ["--set", given] if given else []


@pytest.fixture(scope="session")
def operator(helm_set: list[str]) -> Iterator[Namespace]:
    """The operator's namespace; both charts are installed as the README tells."""
    if missing := cluster.lacks():
        pytest.skip(missing)
    install_crds()
    install_operator(*helm_set)
    space = operator_namespace()
    _LIVE.append(space)
    yield space
    call("helm", "uninstall", "servewright", f"--namespace={OPERATOR_NAMESPACE}", timeout_s=120)
    call("kubectl", "delete", "namespace", OPERATOR_NAMESPACE, "--wait=false")


@contextmanager
def fresh_namespace(operator: Namespace) -> Iterator[Namespace]:
    """A namespace that goes afterwards."""
    space = Namespace(f"node-{uuid.uuid4().hex[:8]}", operator.runtime_image)
    call("kubectl", "create", "namespace", space.name)
    _LIVE.append(space)
    yield space
    _LIVE.remove(space)
    call("kubectl", "delete", "namespace", space.name, "--wait=false")


# What a failure tells of.
_LIVE: list[Namespace] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what explains it, before the namespace goes."""
    report = yield
    if report.failed and call.when != "teardown":
        report.sections.append(("The cluster", "\n".join(map(told, _LIVE))))
    return report


def told(space: Namespace) -> str:
    """ModelServices, their children, Events, and the end of each container's log."""
    questions = [
        ["get", KINDS, "--output=wide"],
        ["get", "msvc", "--output=yaml"],
        ["get", "events", "--sort-by=.lastTimestamp"],
    ]
    with suppress(CallFailed):  # a cluster that is away must not hide what failed
        for pod in space.find("pods"):
            for status in pod["status"].get("containerStatuses", []):
                logs = ["logs", pod["metadata"]["name"], f"--tail={MAX_LOG_LINES}"]
                logs.append(f"--container={status['name']}")
                questions.append(logs)
                if status["restartCount"]:
                    questions.append([*logs, "--previous"])
    return "\n".join(f"--- {space.name}: {' '.join(it)}\n{_said(space, *it)}" for it in questions)


def _said(space: Namespace, *words: str) -> str:
    try:
        return space.kubectl(*words)
    except CallFailed as error:
        return str(error)


@pytest.fixture
def space(operator: Namespace) -> Iterator[Namespace]:
    """A fresh namespace."""
    with fresh_namespace(operator) as made:
        yield made


@pytest.fixture(scope="module")
def module_space(operator: Namespace) -> Iterator[Namespace]:
    """A fresh namespace for all tests of a module."""
    with fresh_namespace(operator) as made:
        yield made


@pytest.fixture(scope="session")
def files(operator: Namespace) -> Iterator[str]:
    """URL of a server in the cluster, with the model at /smollm2.gguf; below /hang/ it hangs."""
    path = smollm2_path()
    with fresh_namespace(operator) as space:
        volumes = [{"name": "files", "emptyDir": {}}]
        container = {
            "volumeMounts": [{"name": "files", "mountPath": "/files"}],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        }
        command = ("python", "-c", FILE_SERVER)
        pod = space.helper_pod("files", *command, container=container, volumes=volumes)
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "files"},
            "spec": {"selector": {"test": "files"}, "ports": [{"port": 8080}]},
        }
        space.apply(pod, service)
        space.wait_running("files")
        with path.open("rb") as file:
            into_pod = ["kubectl", "exec", "--stdin", f"--namespace={space.name}", "files", "--"]
            write = ["sh", "-c", "cat > /files/part && mv /files/part /files/smollm2.gguf"]
            subprocess.run([*into_pod, *write], stdin=file, check=True, timeout=120)
        yield f"http://files.{space.name}.svc:8080"


@pytest.fixture(scope="session")
def make_model(files: str) -> MakeModel:
    """A manifest of the cheap model, with changes by field path."""

    def make(changes: dict[str, Any] | None = None) -> Object:
        source = {"spec.model.source": f"{files}/smollm2.gguf"}
        return make_manifest({**CHEAP, **source, **(changes or {})})

    return make


@pytest.fixture(scope="session")
def _shared(operator: Namespace, make_model: MakeModel) -> Iterator[Namespace]:
    with fresh_namespace(operator) as space:
        yield space


@pytest.fixture
def serving(_shared: Namespace, make_model: MakeModel) -> Namespace:
    """A namespace that tests share, in which `m` is Ready with two replicas as each test begins."""
    _shared.apply(make_model({"spec.replicas": 2}))
    _shared.wait_ready("m")
    return _shared
