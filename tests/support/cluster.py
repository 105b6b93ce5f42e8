"""A whole cluster for tests, by kubectl: a namespace, what is in it, and loads on its Services.

Nothing here knows how the cluster was made. What only some clusters can do (killing a component
of Kubernetes) is done by the command that SERVEWRIGHT_CLUSTER_CONTROL names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from servewright_operator import names
from servewright_operator.names import Key
from support import load as load_program
from support.load import Account, Load

Object = dict[str, Any]
MakeModel = Callable[..., Object]  # a ModelService, with changes by field path
T = TypeVar("T")

# A model of 100 MB on a crowded machine of two cores: a pod is ready after 10 s when it is quiet.
READY_S = 180.0
INTERVAL_S = 0.5
CALL_S = 60.0

# A load that two cores bear beside a replica that starts.
LIGHT: Object = {"keep_alive": 1, "fresh": 1, "streams": 2, "stream_tokens": 60}

needs_control = pytest.mark.skipif(
    "SERVEWRIGHT_CLUSTER_CONTROL" not in os.environ,
    reason="needs SERVEWRIGHT_CLUSTER_CONTROL, a command that kills components of Kubernetes",
)

RESTRICTED_POD: Object = {
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def until(what: str, ask: Callable[[], T | None], *, timeout_s: float = READY_S) -> T:
    """The first true answer. AssertionError, with the last answer, if none comes in time.

    An API server that does not answer is asked again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            last: T | str | None = ask()
        except CallFailed as error:
            last = str(error)
        else:
            if last:
                return last  # type: ignore[return-value]
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}; last: {last}"
        time.sleep(INTERVAL_S)


class CallFailed(AssertionError):
    """kubectl or helm complained."""


def call(*words: str, stdin: str | bytes | None = None, timeout_s: float = CALL_S) -> str:
    """What a program prints. Raises CallFailed with its complaint."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(words, input=data, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise CallFailed(f"{' '.join(words[:8])}: no end within {timeout_s:.0f} s") from error
    if done.returncode:
        raise CallFailed(f"{' '.join(words[:8])}: {done.stderr.decode().strip()}")
    return done.stdout.decode()


def lacks() -> str | None:
    """Why there is no cluster, in one line; None if there is one."""
    if not os.environ.get("KUBECONFIG"):
        return "needs a cluster, by KUBECONFIG"
    if absent := [name for name in ("kubectl", "helm") if shutil.which(name) is None]:
        return f"needs {' and '.join(absent)} on the PATH"
    return None


def control(action: str, component: str) -> None:
    """`kill` or `restart` a component of Kubernetes, such as kube-apiserver or kubelet-node2."""
    call(os.environ["SERVEWRIGHT_CLUSTER_CONTROL"], action, component)


@dataclass(frozen=True)
class Namespace:
    """One namespace of the cluster, and what tests do in it."""

    name: str
    runtime_image: str

    def kubectl(
        self, *words: str, stdin: str | bytes | None = None, timeout_s: float = CALL_S
    ) -> str:
        """What kubectl prints. Raises CallFailed."""
        return call("kubectl", f"--namespace={self.name}", *words, stdin=stdin, timeout_s=timeout_s)

    def apply(self, *objects: Object) -> None:
        """Apply them all in one go."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(items))

    def get(self, kind: str, name: str) -> Object:
        """One object. Raises CallFailed."""
        found: Object = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return found

    def find(self, kinds: str, selector: str = "") -> list[Object]:
        """All objects of one kind, or of several with commas between."""
        words = ("get", kinds, f"--selector={selector}", "--output=json")
        items: list[Object] = json.loads(self.kubectl(*words))["items"]
        return items

    def url(self, service: str) -> str:
        """Where clients in the cluster call a ModelService."""
        return names.service_url(Key(self.name, service))

    def pods(self, service: str) -> list[Object]:
        """Pods of a ModelService that are not going away."""
        found = self.find("pods", f"{names.SERVICE_LABEL}={service}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def uids(self, service: str) -> set[str]:
        """Of the pods of a ModelService that are not going away."""
        return {pod["metadata"]["uid"] for pod in self.pods(service)}

    def wait_ready(self, service: str, *, timeout_s: float = READY_S) -> Object:
        """Until Ready for the spec as it is now, with every replica; the ModelService."""

        def is_ready() -> Object | None:
            found = self.get("msvc", service)
            status = found.get("status", {})
            ready = condition(found, "Ready")
            settled = (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and ready.get("status") == "True"
                and ready.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("readyReplicas") == found["spec"]["replicas"]
            )
            return found if settled else None

        return until(f"{service} is Ready", is_ready, timeout_s=timeout_s)

    def wait_condition(
        self, service: str, kind: str, status: str, reason: str, *, timeout_s: float = READY_S
    ) -> Object:
        """Until a condition has this status and reason for the spec as it is now."""

        def is_so() -> Object | None:
            found = self.get("msvc", service)
            now = condition(found, kind)
            so = (now.get("status"), now.get("reason"), now.get("observedGeneration"))
            return found if so == (status, reason, found["metadata"]["generation"]) else None

        return until(f"{service} is {kind}={status}, {reason}", is_so, timeout_s=timeout_s)

    def events(self, reason: str, about: str) -> list[str]:
        """Messages of Events with this reason about objects of this name, oldest first."""
        selector = f"reason={reason},involvedObject.name={about}"
        words = ("get", "events", f"--field-selector={selector}", "--output=json")
        return [event["message"] for event in json.loads(self.kubectl(*words))["items"]]

    def run(self, pod: str, *command: str, stdin: bytes | None = None) -> str:
        """What a command prints in a pod's first container. Raises CallFailed."""
        return self.kubectl("exec", "--stdin", pod, "--", *command, stdin=stdin)

    def helper_pod(
        self, name: str, *command: str, container: Object | None = None, **spec: Any
    ) -> Object:
        """A restricted pod of the runtime's image that runs `command` once."""
        main = {
            "name": "main",
            "image": self.runtime_image,
            "command": list(command),
            "securityContext": RESTRICTED_CONTAINER,
            "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"test": name}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                "securityContext": RESTRICTED_POD,
                "containers": [main | (container or {})],
                **spec,
            },
        }

    def wait_running(self, pod: str) -> None:
        """Until a helper pod's container is ready."""
        until(f"pod {pod} runs", lambda: is_ready(self.get("pod", pod)), timeout_s=READY_S)

    @contextmanager
    def load(
        self, url: str, *, model: str = "m", node: str | None = None, **fields: Any
    ) -> Iterator[RunningLoad]:
        """A load on `url` from a pod of its own, while the block runs; see `support.load.Load`.

        node: where to run the pod.
        """
        name = f"load-{uuid.uuid4().hex[:6]}"
        program = Path(load_program.__file__).read_text()
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        volumes = [{"name": "load", "configMap": {"name": name}}]
        asked = json.dumps({"url": url, "model": model, **fields})
        mounts = {"volumeMounts": [{"name": "load", "mountPath": "/load"}]}
        command = ("python", "/load/load.py", asked)
        pod = self.helper_pod(name, *command, container=mounts, volumes=volumes, nodeName=node)
        self.apply(config | {"data": {"load.py": program}}, pod)
        running = RunningLoad(self, name, Load(url, model, **fields).kinds)
        try:
            running.wait_for(1)
            yield running
        finally:
            self.kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")


@dataclass(frozen=True)
class RunningLoad:
    """A load that runs in a pod."""

    namespace: Namespace
    pod: str
    kinds: tuple[str, ...]

    def account(self) -> Account:
        """What it told last. Raises CallFailed when it has told nothing yet."""
        lines = self.namespace.kubectl("logs", self.pod, "--tail=1").splitlines()
        if not lines:
            raise CallFailed(f"{self.pod} has told nothing yet")
        return Account.heard(lines[-1])

    def wait_for(self, more: int, *, timeout_s: float = READY_S) -> Account:
        """Until so many more requests of each kind have had a whole answer."""
        before = until(f"{self.pod} tells", self.account, timeout_s=timeout_s)

        def advanced() -> Account | None:
            now = self.account()
            enough = all(now.whole[kind] >= before.whole[kind] + more for kind in self.kinds)
            return now if enough else None

        return until(f"{more} more answers for {self.pod}", advanced, timeout_s=timeout_s)

    def stop_unharmed(self) -> Account:
        """The account of a load that went on well, after whatever happened, and lost nothing."""
        self.wait_for(2)
        account = self.stop()
        assert (account.failed, account.truncated) == ({}, {}), account.failures
        return account

    def stop(self) -> Account:
        """Let what is under way end; the whole account."""
        self.namespace.run(self.pod, "sh", "-c", "kill 1")

        def ended() -> Account | None:
            account = self.account()
            return account if account.done else None

        return until(f"{self.pod} ended", ended, timeout_s=READY_S)


def condition(service: Object, kind: str) -> Object:
    """A ModelService's condition; empty where it has none."""
    found: list[Object] = service.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def is_ready(pod: Object) -> bool:
    """Whether the kubelet says so."""
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in pod.get("status", {}).get("conditions", [])
    )


def seconds_to_ready(pod: Object) -> float:
    """From a pod's making to its readiness, by Kubernetes' stamps."""
    (ready,) = (one for one in pod["status"]["conditions"] if one["type"] == "Ready")
    made, became = pod["metadata"]["creationTimestamp"], ready["lastTransitionTime"]
    return (datetime.fromisoformat(became) - datetime.fromisoformat(made)).total_seconds()
