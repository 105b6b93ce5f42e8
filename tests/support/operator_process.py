"""The operator as a process of its own, started as its container starts it: seen from outside, by
its exit code, its log and its metrics; killed, stopped, frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from support.operators import CUDA_IMAGE, IMAGE
from support.runs import free_port
from support.waiting import eventually

STOP_S = 30.0
# Imports take seconds where other things run.
START_S = 60.0
_LOOKS = ("get", "list", "get-log")


class OperatorProcess:
    """An operator that may be started again and again, as a kubelet does with a container."""

    def __init__(
        self,
        kubeconfig: Path,
        log: Path,
        *,
        lease_namespace: str,
        namespaces: tuple[str, ...] = (),
        name: str = "operator-0",
    ) -> None:
        """namespaces: that it looks after; none: the whole cluster. log: file to add to."""
        self._kubeconfig, self._log, self.name = kubeconfig, log, name
        self._lease_namespace, self._namespaces = lease_namespace, namespaces
        self._process: subprocess.Popen[bytes]
        self._port = 0

    def start(self, *, image: str = IMAGE) -> None:
        """Begin; returns when it serves its metrics: it leads or stands by."""
        self.begin(image=image)
        self.wait_until_serving()

    def begin(self, *, image: str = IMAGE) -> None:
        """Start the process."""
        self._port = free_port()
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "POD_NAME": self.name,
            "POD_ID": self.name,
            "POD_NAMESPACE": self._lease_namespace,
            "SERVEWRIGHT_RUNTIME_IMAGE": image,
            "SERVEWRIGHT_CUDA_IMAGE": CUDA_IMAGE,
            "SERVEWRIGHT_NAMESPACES": ",".join(self._namespaces),
            "SERVEWRIGHT_PORT": str(self._port),
        }
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "servewright_operator"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_serving(self) -> None:
        def serves() -> bool:
            assert self.is_running, self._log.read_text()
            try:
                self.metrics()
            except OSError:
                return False
            return True

        eventually(serves, timeout_s=START_S, interval_s=0.1)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def restart_if_ended(self) -> None:
        """What a kubelet does."""
        if not self.is_running:
            self.start()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has one."""
        return self._process.wait(timeout=STOP_S)

    def stop(self) -> int:
        """SIGTERM: the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """However it is, it is no more."""
        if self.is_running:
            self.signal(signal.SIGKILL)
        self.wait()

    def records(self, *levels: str) -> list[dict[str, Any]]:
        """Its log, of all its lives; of these levels alone, if given."""
        lines = (json.loads(line) for line in self._log.read_text().splitlines())
        return [line for line in lines if not levels or line["level"] in levels]

    def mistakes(self) -> list[dict[str, Any]]:
        """What it said with a traceback: of bugs alone."""
        return [line for line in self.records() if "exception" in line]

    def metrics(self) -> list[Sample]:
        """All of them; the names begin with "servewright_operator_" where they are its own."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def value(self, name: str) -> float:
        """The sum over a metric's labels."""
        return sum(
            sample.value
            for sample in self.metrics()
            if sample.name == f"servewright_operator_{name}"
        )

    def is_leader(self) -> bool:
        return self.value("leader") == 1

    def writes(self) -> Counter[tuple[str, str]]:
        """How often each verb that changes something was asked of each kind but the Lease."""
        found: Counter[tuple[str, str]] = Counter()
        for sample in self.metrics():
            if sample.name == "servewright_operator_api_requests_total":
                verb, kind = sample.labels["verb"], sample.labels["kind"]
                if verb not in _LOOKS and kind != "Lease":
                    found[verb, kind] += int(sample.value)
        return found

    def passes(self) -> int:
        """How many it has made over ModelServices."""
        return int(self.value("reconciles_total"))


@contextmanager
def operator_process(
    kubeconfig: Path, log: Path, *, wait: bool = True, **settings: Any
) -> Iterator[OperatorProcess]:
    """One that (wait) serves already; ended in the end."""
    operator = OperatorProcess(kubeconfig, log, **settings)
    operator.begin()
    try:
        if wait:
            operator.wait_until_serving()
        yield operator
    finally:
        operator.end()
