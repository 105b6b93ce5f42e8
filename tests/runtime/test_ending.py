"""How a run ends when it is asked to: drained, at once, or before it began."""

from __future__ import annotations

import http.client
import signal
import socket
from collections.abc import Callable

import pytest

from support import runs
from support.runs import Run, Streaming
from support.waiting import eventually

Start = Callable[..., Run]

AS_IN_A_POD = """
import sys
from pathlib import Path
from servewright_api import load_manifests
from servewright_runtime import local, logs
from servewright_runtime.supervisor import Settings

logs.configure()
_, path, _, port, _, admin_port = sys.argv
settings = Settings(port=int(port), admin_port=int(admin_port), linger_s=5.0, drain_s=1.0)
sys.exit(local.run(load_manifests([Path(path)]), settings, None))
"""


def test_sigterm_finishes_the_stream_in_flight_and_leaves_a_neighbour_alone(
    start: Start, shared: Run
) -> None:
    run = start()
    run.wait_until_ready()
    members = run.members()
    with Streaming(run, max_tokens=600, ignore_eos=True) as stream:
        run.process.send_signal(signal.SIGTERM)
        eventually(lambda: run.readyz() == 503)
        assert run.state()["phase"] == "Draining"
        events = stream.rest()

    assert events[-1] == b"data: [DONE]"
    assert run.process.wait(timeout=30) == 0
    assert run.termination == {
        "reason": "Drained",
        "message": "Stopped; nothing was in flight.",
    }
    runs.assert_nothing_left(run, members)
    assert shared.complete().status == 200
    assert run.home.exists()
    assert list(run.home.iterdir()) == []


def test_a_pods_settings_serve_on_for_the_linger_and_cut_what_outlasts_the_drain(
    start: Start,
) -> None:
    run = start(program=["-c", AS_IN_A_POD])
    run.wait_until_ready()
    members = run.members()
    with Streaming(run, max_tokens=8000, ignore_eos=True) as stream:
        run.process.send_signal(signal.SIGTERM)
        eventually(lambda: run.readyz() == 503)
        lingering = run.complete()
        assert lingering.status == 200
        assert lingering.headers["connection"] == "close"

        assert run.process.wait(timeout=60) == 0
        assert run.termination["reason"] == "DrainTimedOut"
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.rest()
    runs.assert_nothing_left(run, members)


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    run = start()
    run.wait_until_ready()
    members = run.members()
    with Streaming(run, max_tokens=7000, ignore_eos=True):
        run.process.send_signal(signal.SIGINT)
        eventually(lambda: run.readyz() == 503)

        def has_ended() -> bool:
            # Within half a second it counts as the same press, handed on by a shell or runner.
            run.process.send_signal(signal.SIGINT)
            return run.process.poll() is not None

        eventually(has_ended, timeout_s=10, interval_s=0.1)

    assert run.process.returncode == 1
    assert run.termination["reason"] == "Interrupted"
    runs.assert_nothing_left(run, members)


def test_ctrl_c_before_it_is_ready_ends_with_0(start: Start) -> None:
    run = start()
    eventually(lambda: run.readyz() == 503)
    members = run.members()
    # The port is held from the start, and says when to come back.
    early = runs.ask(run.port, "/v1/models")
    assert (early.status, early.headers["retry-after"]) == (503, "1")
    assert "loading" in early.json()["error"]["message"]

    assert run.stop(signal.SIGINT) == 0
    assert run.termination["reason"] == "Stopped"
    eventually(lambda: not any(map(runs.is_alive, members)), timeout_s=runs.CLEAN_S)


def test_a_port_in_use_is_told_before_anything_is_started(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = start(port=port)
        assert run.process.wait(timeout=30) == 1
    assert run.termination["reason"] == "PortUnavailable"
    assert f"Port {port} on 127.0.0.1 is in use" in run.log
    assert "--port" in run.log
    assert "Traceback" not in run.log


def test_a_file_that_is_missing_ends_with_2_though_ray_is_starting(start: Start) -> None:
    run = start({"spec.model.source": "file:///no/such/file.gguf"})
    assert run.process.wait(timeout=30) == 2
    assert "/no/such/file.gguf" in run.termination["message"]
    assert "Traceback" not in run.log


def test_a_file_that_is_no_model_ends_with_2_and_one_sentence(start: Start) -> None:
    run = start({"spec.model.source": "file:///etc/hostname"})
    assert run.process.wait(timeout=runs.START_S) == 2
    assert "no known model format" in run.termination["message"]
    assert run.termination["reason"] == "InvalidConfiguration"
    assert "Traceback" not in run.log
