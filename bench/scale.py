"""`make scale`: a thousand ModelServices on pretended nodes, beside a bare client.

A bare client writes the same objects by the same server-side applies in the same run, before the
operator and after it, since a cluster gets slower as it fills; it decides and watches nothing:
what the operator costs besides is the difference. The operator is also started anew among what is
there, and single edits are timed until their Deployment has them.

Needs KUBECONFIG and kubectl. Three namespaces are made and left; a cluster for this alone is best.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Run as a file, and of this checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "runtime"), str(ROOT / "tests")]

import aiohttp  # noqa: E402
import psutil  # noqa: E402
from bench import machine, page  # noqa: E402
from bench.scale_table import Found, render  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from servewright_operator import decide, holding, kinds  # noqa: E402
from servewright_operator.client import Client, load_configuration  # noqa: E402
from servewright_operator.names import Key  # noqa: E402
from servewright_operator.objects import Object, Observed  # noqa: E402
from servewright_operator.settings import PodDefaults  # noqa: E402
from support.runs import free_port  # noqa: E402

IMAGE = "registry.example/servewright-runtime:1"
AT_ONCE = 16  # requests of a client, the operator's own number of workers
POLL_S = 1.0
EDITS = 200
QUIET_S = 10.0
PATIENCE_S = 1800.0
LOOKS = ("get", "list", "get-log")


class OperatorProcess:
    """`python -m servewright_operator` on one namespace."""

    def __init__(self, namespace: str, log: Path) -> None:
        self._port = free_port()
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "operator"),
            "POD_NAME": "scale",
            "POD_NAMESPACE": namespace,
            "SERVEWRIGHT_NAMESPACES": namespace,
            "SERVEWRIGHT_RUNTIME_IMAGE": IMAGE,
            "SERVEWRIGHT_CUDA_IMAGE": IMAGE,
            "SERVEWRIGHT_PORT": str(self._port),
            "SERVEWRIGHT_LOG_LEVEL": "warning",
        }
        self.started = time.monotonic()
        with log.open("ab") as output:
            self._process = psutil.Popen(
                [sys.executable, "-m", "servewright_operator"],
                env=environ,
                stdout=output,
                stderr=output,
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[OperatorProcess]:
        """End it, as Kubernetes does."""
        try:
            yield self
        finally:
            self._process.terminate()
            self._process.wait(30)

    async def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Values by name and labels' values; nothing while it does not answer."""
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        url = f"http://127.0.0.1:{self._port}/metrics"
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                text = await answer.text()
        except aiohttp.ClientError:
            return found
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    async def until(self, is_done: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until its metrics say so and its queue is empty."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            metrics = await self.metrics()
            depth = sum(metrics.get("servewright_operator_queue_depth", {}).values())
            if metrics and depth == 0 and is_done(metrics):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the operator has not settled in {PATIENCE_S:.0f} s")
            if self._process.poll() is not None:
                raise RuntimeError(f"the operator ended with {self._process.returncode}")
            await asyncio.sleep(POLL_S)

    async def writes(self) -> dict[str, int]:
        """Requests that were no looking, by verb and kind, but those about the Lease."""
        found: dict[str, int] = {}
        metrics = await self.metrics()
        for labels, value in metrics["servewright_operator_api_requests_total"].items():
            asked = dict(labels)
            if asked["verb"] not in LOOKS and asked["kind"] != kinds.LEASE.name:
                what = f"{asked['verb']} {asked['kind']}"
                found[what] = found.get(what, 0) + int(value)
        return found

    async def until_quiet(self) -> None:
        """Wait until it has written nothing for a while."""
        before = None
        while before != (before := await self.writes()):  # noqa: ASYNC110 - asks a process
            await asyncio.sleep(QUIET_S)

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def peak_rss_mb(self) -> float:
        """The most memory it ever held."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024


def make_service(namespace: str, number: int) -> Object:
    """The ModelService of a user who gives what must be given."""
    return {
        "apiVersion": kinds.MODEL_SERVICE.api_version,
        "kind": kinds.MODEL_SERVICE.name,
        "metadata": {"name": f"model-{number}", "namespace": namespace},
        "spec": {
            "model": {
                "source": "https://models.example/model.gguf",
                "digest": "sha256:" + f"{number:064x}",
            }
        },
    }


async def each(count: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do it for every number below `count`, some at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await work(number)

    await asyncio.gather(*(one(number) for number in range(count)))


async def measure_bare(client: Client, namespace: str, found: Found) -> None:
    """The same objects, by a client that does nothing else."""
    pods = PodDefaults(image=IMAGE, cuda_image=IMAGE)
    writes = 0

    async def one(number: int) -> None:
        nonlocal writes
        service = await client.create(make_service(namespace, number))
        key = Key(namespace, service["metadata"]["name"])
        secrets = {f"{key.name}-probe": "0" * 43, f"{key.name}-api-keys": "0" * 43}
        observed = Observed(key, service, secrets=secrets)
        plan = decide.plan(observed, pods, datetime.now(UTC))
        for child in plan.children or ():
            await client.apply(holding.with_hash(child), force=True)
        await client.apply_status(service, plan.status)
        writes += len(plan.children or ()) + 1

    started = time.monotonic()
    await each(found.services, one)
    found.bare_s.append(time.monotonic() - started)
    found.bare_writes = writes
    print(f"bare client: {found.bare_s[-1]:.1f} s", file=sys.stderr)


async def measure_operator(client: Client, namespace: str, found: Found, log: Path) -> None:
    """The operator, from the first ModelService until every status is right."""
    with OperatorProcess(namespace, log).running() as operator:
        await operator.until(lambda metrics: _leads(metrics))
        started, cpu_s = time.monotonic(), operator.cpu_s()
        await each(found.services, lambda n: client.create(make_service(namespace, n)))
        await operator.until(lambda metrics: _available(metrics) == found.services)
        found.operator_s = time.monotonic() - started
        print(f"operator: {found.operator_s:.1f} s", file=sys.stderr)
        found.operator_cpu_s = operator.cpu_s() - cpu_s
        await operator.until(lambda metrics: not _events(metrics))
        found.events_s = time.monotonic() - started
        found.operator_writes = await operator.writes()
        found.wrong = await wrong_statuses(client, namespace, found.services)
        await measure_edits(client, namespace, found)
        await operator.until_quiet()
        found.rss_mb = operator.peak_rss_mb()


async def wrong_statuses(client: Client, namespace: str, count: int) -> list[str]:
    """What is not as it should be: Available, and Ready not, for pretended pods answer nothing."""
    services, _ = await client.list_all(kinds.MODEL_SERVICE, namespace)
    wrong = [] if len(services) == count else [f"{len(services)} ModelServices"]
    for service in services:
        status = service["status"]
        said = {one["type"]: one["status"] for one in status["conditions"]}
        is_right = said["Available"] == "True" and said["Ready"] != "True"
        if not is_right or status["observedGeneration"] != service["metadata"]["generation"]:
            wrong.append(f"{service['metadata']['name']}: {said}")
    return wrong


async def told(client: Client, namespace: str) -> dict[str, Object]:
    """Each ModelService's status."""
    services, _ = await client.list_all(kinds.MODEL_SERVICE, namespace)
    return {service["metadata"]["name"]: service["status"] for service in services}


def changed(before: dict[str, Object], after: dict[str, Object]) -> list[str]:
    """What a restart changed in status."""
    return [
        f"{name}: {field} was {before[name].get(field)}, is {status.get(field)}"
        for name, status in after.items()
        for field in sorted(before[name].keys() | status.keys())
        if before[name].get(field) != status.get(field)
    ]


async def measure_edits(client: Client, namespace: str, found: Found) -> None:
    """From an edit of one ModelService to its Deployment."""
    login = await client.login()
    connector = aiohttp.TCPConnector(ssl=login.as_ssl_context())
    headers = login.as_http_headers()
    async with aiohttp.ClientSession(
        login.server, connector=connector, headers=headers, read_bufsize=2**21
    ) as session:
        for number in random.Random(1).sample(range(found.services), k=min(EDITS, found.services)):
            name = f"model-{number}"
            service = await client.get(kinds.MODEL_SERVICE, namespace, name)
            assert service is not None
            deadline_s = service["spec"]["rollout"]["progressDeadlineSeconds"] + 1
            edit = {"spec": {"rollout": {"progressDeadlineSeconds": deadline_s}}}
            async with watched(client, session, namespace, name) as forms:
                started = time.monotonic()
                await client.patch(service, edit)
                async for deployment in forms:
                    if deployment["spec"]["progressDeadlineSeconds"] == deadline_s:
                        found.edits_s.append(time.monotonic() - started)
                        break


@contextlib.asynccontextmanager
async def watched(
    client: Client, session: aiohttp.ClientSession, namespace: str, name: str
) -> AsyncIterator[AsyncIterator[Object]]:
    """The forms that one Deployment takes from now on."""
    only = f"metadata.name={name}"
    _, version = await client.list_all(kinds.DEPLOYMENT, namespace, fields=only)
    query = {"watch": "true", "fieldSelector": only, "resourceVersion": str(version)}
    async with session.get(kinds.DEPLOYMENT.path(namespace), params=query) as answer:

        async def forms() -> AsyncIterator[Object]:
            async for line in answer.content:
                yield json.loads(line)["object"]

        yield forms()


async def measure_restart(namespace: str, found: Found, log: Path) -> None:
    """An operator that starts among what is there already."""
    with OperatorProcess(namespace, log).running() as operator:
        await operator.until(lambda metrics: _passes(metrics) >= found.services)
        found.restart_s = time.monotonic() - operator.started
        found.restart_cpu_s = operator.cpu_s()
        # The watches, the second LIST, and the first answers of every probe.
        await operator.until_quiet()
        found.restart_writes = await operator.writes()
        found.restart_rss_mb = operator.peak_rss_mb()


def _leads(metrics: dict[str, Any]) -> bool:
    resynced = metrics.get("servewright_operator_last_resync_timestamp_seconds", {})
    return bool(sum(resynced.values()))


def _available(metrics: dict[str, Any]) -> float:
    by_condition = metrics.get("servewright_operator_modelservices", {})
    wanted = (("condition", "Available"), ("status", "True"))
    return float(by_condition.get(wanted, 0))


def _events(metrics: dict[str, Any]) -> float:
    return float(sum(metrics.get("servewright_operator_events_waiting", {}).values()))


def _passes(metrics: dict[str, Any]) -> float:
    return float(sum(metrics.get("servewright_operator_reconciles_total", {}).values()))


async def run(arguments: argparse.Namespace) -> Found:
    """All of it."""
    found = Found(arguments.services)
    stamp = time.strftime("%H%M%S")
    before, ours, after = (f"scale-{part}-{stamp}" for part in ("before", "operator", "after"))
    crds = ROOT / "charts" / "servewright-crds" / "templates"
    for words in (
        ["apply", "--server-side", "--force-conflicts", f"--filename={crds}"],
        ["wait", f"--filename={crds}", "--for=condition=Established", "--timeout=60s"],
        *(["create", "namespace", one] for one in (before, ours, after)),
    ):
        await asyncio.to_thread(_kubectl, *words)
    log = arguments.out / "scale-operator.log"
    async with Client(await load_configuration()) as client:
        await measure_bare(client, before, found)
        await measure_operator(client, ours, found, log)
        known = await told(client, ours)
        await measure_restart(ours, found, log)
        if found.restart_writes:
            found.wrong += changed(known, await told(client, ours))
        await measure_bare(client, after, found)
    return found


def _kubectl(*words: str) -> None:
    subprocess.run(["kubectl", *words], check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--write-docs", action="store_true", help="renew docs/performance.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "began": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": machine.commit(),
        "machine": machine.facts(),
    }
    found = asyncio.run(run(arguments))
    result |= asdict(found)
    (arguments.out / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    text = render(found, result)
    print(text)
    if arguments.write_docs and not found.wrong:
        page.write("scale", text)
    for wrong in found.wrong[:10]:
        print(f"wrong: {wrong}", file=sys.stderr)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
