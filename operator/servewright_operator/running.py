"""The operator as a whole: stands by until the Lease is its own, then works until it is told to
stop or loses the Lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

from kopf import OperatorSettings
from kubernetes.aio.client import Configuration

from servewright_operator import handlers, kinds, metrics
from servewright_operator.apply import Applier
from servewright_operator.client import Client
from servewright_operator.events import Events
from servewright_operator.health import Health, serving
from servewright_operator.kinds import Kind
from servewright_operator.lease import Lease
from servewright_operator.observe import Observer
from servewright_operator.probing import Prober
from servewright_operator.queue import on_loop
from servewright_operator.reading import objects, text
from servewright_operator.reconcile import Reconciler
from servewright_operator.resync import Resync
from servewright_operator.settings import Settings
from servewright_operator.store import Store

log = logging.getLogger(__name__)

_WATCH_LATEST_S = 10.0  # after the first LIST
_POLL_S = 0.1


class Operator:
    """One replica of the operator. `run` it once.

    stop: set it to end the run.
    """

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        self.stop = asyncio.Event()
        self.port = 0  # once it serves
        self._settings, self._configuration = settings, configuration
        self.store = Store()
        self.queue = on_loop()
        self.events: Events | None = None  # once it leads
        self.is_ready = False  # as /readyz says
        self._other_kinds = asyncio.Event()

    async def run(self) -> None:
        """Serve health, and lead whenever it is our turn. Raises lease.Lost, resync.NotInstalled,
        and whatever ends kopf."""
        self._heed_signals()
        health = Health(
            oldest_pass_s=lambda: self.queue.oldest_s,
            is_ready=lambda: self.is_ready,
            refresh=self._count,
        )
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            self.port = await stack.enter_async_context(
                serving(health, settings.host, settings.port)
            )
            lease_client = await stack.enter_async_context(Client(self._configuration))
            lease = Lease(
                lease_client,
                namespace=settings.lease_namespace,
                name=settings.lease_name,
                identity=settings.identity,
                duration_s=settings.lease_duration_s,
                renew_s=settings.lease_renew_s,
                clock=asyncio.get_running_loop().time,
            )
            while True:
                self.is_ready = True  # stands by
                await self._until_stopped(lease.acquire())
                if self.stop.is_set():
                    return
                try:
                    await self._until_stopped(self._lead(lease), lease.hold())
                finally:
                    await lease.release()
                if not self._other_kinds.is_set():
                    return
                # Whichever replica leads next watches what there is by then.
                self._other_kinds.clear()
                self.store, self.queue = Store(), on_loop()

    async def _lead(self, lease: Lease) -> None:
        """Work until something ends: kopf, a worker by our mistake, the LISTs by a missing CRD;
        or until PodMonitors came or went."""
        settings, clock = self._settings, asyncio.get_running_loop().time
        store, queue = self.store, self.queue
        self.is_ready = False
        async with contextlib.AsyncExitStack() as stack:
            client = Client(self._configuration, connections=2 * settings.workers)
            await stack.enter_async_context(client)
            client.may_write = lease.is_held
            prober = await stack.enter_async_context(Prober(queue.add))
            observer = Observer(client, store, prober.record, prober.states)
            events = self.events = Events(client, settings.identity, clock)
            reconciler = Reconciler(
                client=client,
                store=store,
                queue=queue,
                observer=observer,
                applier=Applier(client, clock),
                events=events,
                prober=prober,
                pods=settings.pods,
            )

            def on_list(has_pod_monitors: bool) -> None:
                if self.is_ready and has_pod_monitors != observer.has_pod_monitors:
                    there = "there" if has_pod_monitors else "gone"
                    log.info("gives up the lease to watch other kinds: PodMonitors are %s", there)
                    self._other_kinds.set()
                observer.has_pod_monitors = has_pod_monitors

            resync = Resync(
                client,
                store,
                queue,
                namespaces=settings.namespaces,
                period_s=settings.resync_s,
                on_list=on_list,
            )
            stack.callback(queue.close)
            await resync.first()
            self.is_ready = True
            watched = [*kinds.WATCHED, *([kinds.POD_MONITOR] * observer.has_pod_monitors)]
            kopf_settings = handlers.settings(watched)
            await _race(
                *(reconciler.work() for _ in range(settings.workers)),
                events.post(),
                resync.forever(),
                resync.after_relists(),
                self._watch(client, watched, kopf_settings, resync),
                self._until_other_kinds(kopf_settings),
            )

    async def _until_other_kinds(self, kopf_settings: OperatorSettings) -> None:
        """kopf watches what it was told at its start; so it has to end, and this process not."""
        await self._other_kinds.wait()
        # kopf kills a process that outlives it by so long.
        kopf_settings.process.ultimate_exiting_timeout = None

    async def _watch(
        self,
        client: Client,
        watched: Sequence[Kind],
        kopf_settings: OperatorSettings,
        resync: Resync,
    ) -> None:
        # kopf LISTs too, which costs as much as a pass over all that is known: that comes first.
        clock = asyncio.get_running_loop().time
        latest = clock() + _WATCH_LATEST_S
        while len(self.queue) and clock() < latest:  # noqa: ASYNC110 - a queue tells nobody
            await asyncio.sleep(_POLL_S)
        started = asyncio.Event()

        async def go_on() -> None:
            await started.wait()
            self._heed_signals()  # kopf took them over
            resync.watches_began()

        async with asyncio.TaskGroup() as group:
            again = group.create_task(go_on())
            try:
                await handlers.watch(
                    handlers.registry(
                        client.login, watched, self.store, self.queue, resync.relisted
                    ),
                    kopf_settings,
                    namespaces=self._settings.namespaces,
                    identity=self._settings.identity,
                    ready=started,
                )
            finally:
                again.cancel()

    async def _until_stopped(self, *coroutines: Coroutine[Any, Any, object]) -> None:
        await _race(self.stop.wait(), *coroutines)

    def _heed_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # of a test; `stop` is set there
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)

    def _count(self) -> None:
        """Set the gauges that are counted only when somebody looks."""
        counts: Counter[tuple[str, str]] = Counter()
        for key in self.store.service_keys():
            for said in objects(self.store.service(key), "status", "conditions"):
                counts[text(said, "type"), text(said, "status")] += 1
        metrics.CONDITIONS.clear()
        for labels, count in counts.items():
            metrics.CONDITIONS.labels(*labels).set(count)


async def _race(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends, then cancel the others; raises what the one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
