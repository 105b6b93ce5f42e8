"""A replica's inside without Ray: loading, the probe, health, draining."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from servewright_runtime.config import KvPlan, ReplicaModel
from servewright_runtime.errors import ConfigError
from servewright_runtime.models.runner import StepBatch
from servewright_runtime.serve.host import Host
from servewright_runtime.serve.loading import Loaded, load_all
from servewright_runtime.serve.probing import ProbeFailed
from support.scripted_model import ScriptedRunner, loaded
from support.tiny import make_tiny_gguf
from support.waiting import eventually

MODEL = ReplicaModel(
    title="ModelService default/tiny",
    name="tiny",
    revision="rev-1",
    path="/models/tiny",
    digest="sha256:" + "0" * 64,
    format=None,
    kernel="Auto",
    accelerator=None,
    threads=1,
    max_model_len=None,
    max_batch=8,
    max_step_tokens=256,
    mixed_prefill_tokens=64,
    prefix_cache=True,
    kv_bytes=None,
    kv_limit_bytes=1 << 20,
    max_concurrency=8,
    max_queued=8,
    max_output_tokens=None,
    probe_prompt="The capital of France is",
    probe_expect=None,
    probe_timeout_s=10,
    keys_dir=None,
)


class Hosting:
    """A host that serves, and how to ask it."""

    def __init__(self, folder: Path, clock: Callable[[], float], runner: ScriptedRunner) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.host = Host(
            lambda event, **fields: self.told.append((event, fields)), self._load, clock
        )
        self.admin_path = folder / "replica.sock"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._runner = runner

    def _tell(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    def _load(
        self, models: Sequence[ReplicaModel], progress: Callable[[float], None]
    ) -> list[Loaded]:
        progress(0.5)
        return [Loaded(model, loaded(self._runner), KvPlan(64, 1024)) for model in models]

    async def admin(self, path: str) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(uds=str(self.admin_path))
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            return await client.get(f"http://replica{path}")

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.get(self.url + path)

    async def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": 8, "temperature": 0, **fields}
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(f"{self.url}/v1/completions", json=body)

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(eventually, condition, timeout_s=30.0)

    async def is_closed(self) -> bool:
        try:
            await self.get("/health")
        except httpx.ConnectError:
            return True
        return False

    def running(self) -> int:
        running: int = self.host.state()["running"]
        return running


@contextlib.asynccontextmanager
async def hosting(
    folder: Path,
    model: ReplicaModel = MODEL,
    *,
    runner: ScriptedRunner | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Hosting]:
    hosting = Hosting(folder, clock, runner or ScriptedRunner())
    try:
        await hosting.host.open_admin(hosting.admin_path)
        await hosting.host.serve([model], hosting.listener)
        yield hosting
    finally:
        await hosting.host.close()
        hosting.listener.close()


class Gate:
    """A runner's `on_step` that can be shut: the engine thread then stands inside a step."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, batch: StepBatch) -> None:
        assert self._open.wait(30)


async def test_it_tells_how_far_it_is_and_then_where_the_time_went(tmp_path: Path) -> None:
    async with hosting(tmp_path) as served:
        phases = [fields["phase"] for event, fields in served.told if event == "progress"]
        assert phases == ["Loading", "Loading", "Warming"]
        event, fields = served.told[-1]
        assert event == "ready"
        assert set(fields["cold_start"]) == {"load", "warm"}
        assert (await served.complete()).status_code == 200


async def test_the_admin_socket_answers_before_anything_is_loaded(tmp_path: Path) -> None:
    served = Hosting(tmp_path, time.monotonic, ScriptedRunner())
    await served.host.open_admin(served.admin_path)
    try:
        assert (await served.admin("/livez")).status_code == 200
        assert (await served.admin("/readyz")).status_code == 503
        assert (await served.admin("/state")).json()["models"] == []
    finally:
        await served.host.close()
        served.listener.close()


async def test_a_blocked_engine_blocks_no_health_check(tmp_path: Path) -> None:
    gate = Gate()
    async with hosting(tmp_path, runner=ScriptedRunner(on_step=gate)) as served:
        gate.shut()
        request = asyncio.create_task(served.complete())
        try:
            await served.until(lambda: served.running() == 1)
            async with asyncio.timeout(20):  # the engine stands for 30 s
                assert (await served.get("/health")).status_code == 200
                assert (await served.admin("/livez")).status_code == 200
                await served.host.check_health()
        finally:
            gate.open()
        assert (await request).status_code == 200


async def test_livez_fails_once_a_step_takes_over_30_s(tmp_path: Path) -> None:
    gate, now = Gate(), [1000.0]
    runner = ScriptedRunner(on_step=gate)
    async with hosting(tmp_path, runner=runner, clock=lambda: now[0]) as served:
        gate.shut()
        request = asyncio.create_task(served.complete())
        try:
            await served.until(lambda: served.running() == 1)
            now[0] += 29
            assert (await served.admin("/livez")).status_code == 200
            now[0] += 2
            answer = await served.admin("/livez")
            assert answer.status_code == 503
            assert "ended no step for 30 s" in answer.json()["reason"]
        finally:
            gate.open()
        await request
        assert (await served.admin("/livez")).status_code == 200


async def test_livez_fails_when_the_engine_has_failed(tmp_path: Path) -> None:
    def explode(batch: StepBatch) -> None:
        if is_armed:
            raise RuntimeError("boom")

    is_armed = False
    async with hosting(tmp_path, runner=ScriptedRunner(on_step=explode)) as served:
        is_armed = True
        assert (await served.complete()).status_code == 500
        answer = await served.admin("/livez")
        assert answer.status_code == 503
        assert "boom" in answer.json()["reason"]
        assert (await served.admin("/readyz")).status_code == 503


async def test_lingering_serves_on_and_asks_clients_to_go(tmp_path: Path) -> None:
    async with hosting(tmp_path) as served:
        lingering = asyncio.create_task(served.host.drain(linger_s=600))
        await served.until(lambda: served.host.state()["phase"] == "Draining")
        answer = await served.get("/v1/models")
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert (await served.admin("/readyz")).status_code == 503
        assert not await served.is_closed()
        lingering.cancel()


async def test_draining_finishes_streams_and_closes_the_port(tmp_path: Path) -> None:
    gate = Gate()
    async with hosting(tmp_path, runner=ScriptedRunner(on_step=gate)) as served:
        whole = (await served.complete()).json()["choices"]
        gate.shut()
        request = asyncio.create_task(served.complete())
        try:
            await served.until(lambda: served.running() == 1)
            draining = asyncio.create_task(served.host.drain(linger_s=0))
            async with asyncio.timeout(20):
                while not await served.is_closed():
                    pass
            await served.host.check_health()  # no reason for Serve to restart it
            assert not draining.done()
        finally:
            gate.open()
        assert (await request).json()["choices"] == whole
        await draining
        assert served.told[-1] == ("drained", {})


async def test_a_probe_finds_the_words_it_expects(tmp_path: Path) -> None:
    runner = ScriptedRunner({MODEL.probe_prompt: " Paris, of course."})
    async with hosting(tmp_path, replace(MODEL, probe_expect="Paris"), runner=runner) as served:
        assert (await served.admin("/readyz")).status_code == 200


async def test_a_probe_that_misses_its_words_fails_with_what_came(tmp_path: Path) -> None:
    runner = ScriptedRunner({MODEL.probe_prompt: " Lyon."})
    with pytest.raises(ProbeFailed, match=r"wanted 'Paris' .* got ' Lyon\.'"):
        async with hosting(tmp_path, replace(MODEL, probe_expect="Paris"), runner=runner):
            pass


async def test_a_probe_fails_on_logits_that_are_not_finite(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    runner.is_finite = False
    with pytest.raises(ProbeFailed, match="not finite"):
        async with hosting(tmp_path, runner=runner):
            pass


async def test_a_probe_without_an_answer_in_time_fails(tmp_path: Path) -> None:
    gate = Gate()
    gate.shut()
    served = Hosting(tmp_path, time.monotonic, ScriptedRunner(on_step=gate))
    try:
        with pytest.raises(ProbeFailed, match="no answer within 1 s"):
            await served.host.serve([replace(MODEL, probe_timeout_s=1)], served.listener)
    finally:
        gate.open()
        await served.host.close()
        served.listener.close()


def test_a_file_that_cannot_be_loaded_is_told_with_the_model_it_is_of(tmp_path: Path) -> None:
    file = tmp_path / "0123abcd"  # as in the cache, where a name says nothing
    for content, words in ((b"", "is empty"), (b"PK.......", "starts with b'PK..'")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^ModelService default/tiny: .*0123abcd: {words}"):
            load_all([replace(MODEL, path=str(file))], lambda fraction: None)


def test_no_model_that_wants_a_gpu_is_computed_on_the_cpu(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "tiny.gguf")
    model = replace(MODEL, accelerator="nvidia", path=str(path))
    with pytest.raises(ConfigError, match=r"default/tiny: spec\.accelerator asks for a GPU"):
        load_all([model], lambda fraction: None)
