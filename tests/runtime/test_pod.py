"""The replica's container: PID 1 of a pod, here a process with its mounts in a folder."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servewright_runtime.cuda import availability
from support import pods, runs
from support.runs import Run, Streaming
from support.tiny import make_tiny_gguf
from support.waiting import eventually

KEY = "sw-0123456789abcdef"
LINGER_S = 5.0


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A ready pod with its model in a claim and a key in a Secret. The last test ends it."""
    folder = tmp_path_factory.mktemp("pod")
    (folder / "model").mkdir()
    make_tiny_gguf(folder / "model" / "tiny.gguf", context_length=8192)
    (folder / "keys").mkdir()
    (folder / "keys" / "default").write_text(KEY)
    changes: dict[str, Any] = {
        "metadata.name": "tiny",
        "spec.model.source": "pvc://models/tiny.gguf",
        "spec.engine.kernel": "Reference",  # the slowest: streams are long enough to be watched
        "spec.engine.threads": 1,
        "spec.rollout.drainSeconds": 60,
    }
    run = pods.serve(folder, changes)
    try:
        run.wait_until_ready()
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
        run.process.wait(timeout=90)


def test_answers_carry_the_operators_revision_and_keys_are_those_mounted(pod: Run) -> None:
    assert pod.complete().status == 401
    answer = pod.complete(key=KEY)
    assert answer.status == 200
    assert answer.headers["x-servewright-revision"] == pods.REVISION
    (pod.folder / "keys" / "second").write_text("sw-second")
    eventually(lambda: pod.complete(key="sw-second").status == 200)


def test_state_tells_no_fetch_for_that_was_another_containers(pod: Run) -> None:
    state = pod.state()
    assert set(state["coldStart"]) == {"start", "load", "warm"}
    [model] = state["models"]
    assert (model["revision"], model["model"]["digest"]) == (pods.REVISION, None)


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_kubelet_and_clients_reach_it_over_ipv4_and_ipv6(pod: Run, family: str) -> None:
    for port, path, status in ((pod.admin_port, "/readyz", 200), (pod.port, "/v1/models", 401)):
        connection = http.client.HTTPConnection(family, port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            assert connection.getresponse().status == status


def test_nothing_is_written_to_home_or_to_the_mounts(pod: Run) -> None:
    assert list((pod.folder / "home").iterdir()) == []
    assert [path.name for path in (pod.folder / "model").iterdir()] == ["tiny.gguf"]


def test_stopping_pod_serves_new_connections_while_it_lingers(pod: Run) -> None:
    """The last: it ends the pod."""
    members = pod.members()
    with Streaming(pod, key=KEY, max_tokens=200) as stream:
        pod.process.send_signal(signal.SIGTERM)
        eventually(lambda: pod.readyz() == 503)
        assert pod.state()["phase"] == "Draining"
        answer = runs.ask(pod.port, "/v1/completions", body=runs.completion(), key=KEY)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert stream.rest()[-1] == b"data: [DONE]"
    assert pod.process.wait(timeout=60 + LINGER_S) == 0
    assert pod.termination["reason"] == "Drained"
    runs.assert_nothing_left(pod, members)


@pytest.mark.faults
@pytest.mark.skipif(not runs.ALL_FAULTS, reason="make faults runs it")
@pytest.mark.parametrize("victim", ["driver", "GCS"])
def test_the_termination_message_names_first_who_died_first(tmp_path: Path, victim: str) -> None:
    (tmp_path / "model").mkdir()
    make_tiny_gguf(tmp_path / "model" / "tiny.gguf")
    changes = {"spec.model.source": "pvc://models/tiny.gguf", "spec.access.mode": "Open"}
    run = pods.serve(tmp_path, changes)
    run.wait_until_ready()
    members = run.members()

    os.kill(run.pids[victim], signal.SIGKILL)

    runs.assert_nothing_left(run, members)
    assert run.process.returncode == 1
    begin = f"The {victim} (pid {run.pids[victim]}) ended unexpectedly"
    assert run.termination["message"].startswith(begin)


def test_claim_without_the_file_ends_the_container_with_2(tmp_path: Path) -> None:
    run = pods.serve(tmp_path, {"spec.model.source": "pvc://models/none.gguf"})
    assert run.process.wait(timeout=60) == 2
    assert "there is no file none.gguf in the claim models" in run.termination["message"]


@pytest.mark.skipif(
    availability.unavailable() is None, reason="needs a machine without a CUDA device"
)
def test_a_device_that_the_node_lacks_ends_the_container_with_2(tmp_path: Path) -> None:
    changes = {"spec.model.source": "pvc://models/m.gguf", "spec.accelerator.type": "nvidia"}
    run = pods.serve(tmp_path, changes)
    assert run.process.wait(timeout=60) == 2
    assert "spec.accelerator asks for a GPU" in run.termination["message"]
    assert "\n" not in run.termination["message"]
