"""A run that serves: what it answers, shows, opens and leaves alone."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from support.runs import Run, Streaming
from support.waiting import eventually

RAY_PARTS = {"driver", "raylet", "GCS", "dashboard agent", "runtime-env agent", "replica"}


def test_it_answers_on_the_main_port_and_counts_on_the_admin_port(shared: Run) -> None:
    answer = shared.complete()
    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert b'vllm:generation_tokens_total{model_name="tiny"}' in shared.admin("/metrics").body


def test_models_side_by_side_are_told_apart_by_name_and_each_has_its_own_access(
    shared: Run,
) -> None:
    key = (shared.folder / "keys" / "ann").read_text()
    assert shared.complete(model="locked").status == 401
    assert shared.complete(model="locked", key=key + "0").status in (401, 404)
    answer = shared.complete(model="locked", key=key)
    assert answer.status == 200
    assert answer.json()["model"] == "locked"
    assert shared.complete(model="tiny").status == 200
    assert key not in shared.log


def test_it_is_ready_only_after_its_probe(shared: Run) -> None:
    events = [line["event"] for line in shared.events()]
    assert events.index("probe succeeded") < events.index("ready")
    assert shared.readyz() == 200
    assert shared.admin("/livez").status == 200


def test_state_tells_phase_model_and_where_the_start_went(shared: Run) -> None:
    state = shared.state()
    assert state["phase"] == "Ready"
    assert [model["name"] for model in state["models"]] == ["tiny", "locked"]
    model = state["models"][0]
    assert model["model"]["format"] == "gguf"
    assert model["model"]["bytes"] == (shared.folder / "tiny.gguf").stat().st_size
    assert model["revision"] == shared.complete().headers["x-servewright-revision"]
    assert set(state["coldStart"]) == {"fetch", "start", "load", "warm"}
    ready = next(line for line in shared.events() if line["event"] == "ready")
    assert abs(sum(state["coldStart"].values()) - ready["cold_start_s"]) < 0.01
    assert (state["running"], state["waiting"], state["inFlight"]) == (0, 0, 0)
    assert set(state["processes"]) == RAY_PARTS | {"supervisor"}


def test_state_shows_running_requests_and_what_serve_says(shared: Run) -> None:
    with Streaming(shared, max_tokens=5000, ignore_eos=True):
        assert shared.state()["running"] == 1
    eventually(lambda: shared.state()["running"] == 0)
    eventually(lambda: (shared.state()["serve"] or {}).get("status") == "RUNNING")
    assert shared.state()["serve"]["deployments"]["replica"]["replicas"] == {"RUNNING": 1}


def test_health_answers_at_once_while_the_engine_is_busy(shared: Run) -> None:
    prompts = [f"{i} " + "word " * 2000 for i in range(4)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(shared.complete, prompt=prompt) for prompt in prompts]
        eventually(lambda: shared.state()["running"] > 0)
        slowest = 0.0
        while not all(answer.done() for answer in answers):
            started = time.monotonic()
            assert shared.admin("/livez").status == 200
            slowest = max(slowest, time.monotonic() - started)
        assert [answer.result().status for answer in answers] == [200] * len(prompts)
    # The supervisor gives up after 5 s; a step of this prefill takes most of a second.
    assert slowest < 2.5


def test_the_admin_port_refuses_what_it_does_not_know(shared: Run) -> None:
    assert shared.admin("/").status == 404
    posted = shared.admin("/state", method="POST")
    assert (posted.status, posted.headers["allow"]) == (405, "GET, HEAD")


def test_every_socket_of_a_run_is_on_loopback(shared: Run) -> None:
    addresses = {address for pid in shared.members() for address in _addresses(pid)}
    assert ipaddress.ip_address("127.0.0.1") in addresses
    assert {address for address in addresses if not address.is_loopback} == set()


def test_nothing_is_written_to_the_home_and_ray_keeps_to_the_run_dir(shared: Run) -> None:
    assert list(shared.home.iterdir()) == []
    raylet = psutil.Process(shared.pids["raylet"]).cmdline()
    assert f"--temp_dir={shared.run_dir}/ray" in raylet


def test_rays_secret_and_folder_are_the_users_alone(shared: Run) -> None:
    assert shared.run_dir.stat().st_mode & 0o777 == 0o700
    assert (shared.run_dir / "ray-token").stat().st_mode & 0o777 == 0o600


def test_logs_are_json_with_keys_and_hold_no_prompt(shared: Run) -> None:
    shared.complete(prompt="a secret nobody may read")
    lines = [line for line in shared.log.splitlines() if "secret nobody" in line]
    assert lines == []
    eventually(lambda: any(line["event"] == "request" for line in shared.events()))
    for line in shared.log.splitlines():
        if line.startswith("{"):
            assert {"time", "level", "event", "logger"} <= set(json.loads(line))


def test_the_supervisor_stays_small_and_without_ray(shared: Run) -> None:
    supervisor = psutil.Process(shared.pids["supervisor"])
    maps = {Path(entry.path).name for entry in supervisor.memory_maps()}
    assert not any("raylet" in name or "torch" in name for name in maps)
    assert supervisor.memory_info().rss < 100e6


def _addresses(pid: int) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Local and remote addresses of a process's internet sockets."""
    for connection in psutil.Process(pid).net_connections("inet"):
        for end in (connection.laddr, connection.raddr):
            if end:
                address = ipaddress.ip_address(end.ip)
                mapped = getattr(address, "ipv4_mapped", None)
                yield mapped or address
