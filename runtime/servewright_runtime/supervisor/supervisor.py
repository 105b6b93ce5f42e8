"""Starts a run, watches it, drains it, ends it with a reason: `servewright run`, or PID 1 of a pod.

It knows neither Ray nor the engine, so that it works when they do not. Ray's raylet and GCS can
die and leave a replica that serves on, orphaned; Serve restarts a replica and nobody hears of it.
Here the death of any of them ends the run, visibly.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from servewright_runtime.config import ReplicaModel, dump_models
from servewright_runtime.errors import ServewrightError
from servewright_runtime.supervisor import ports, processes
from servewright_runtime.supervisor.admin import JSON, Answer, Handler, serve_admin
from servewright_runtime.supervisor.children import Children
from servewright_runtime.supervisor.ending import OUT_OF_MEMORY, Ending, oom_kills
from servewright_runtime.supervisor.health import Health
from servewright_runtime.supervisor.link import Message
from servewright_runtime.supervisor.phases import Phase
from servewright_runtime.supervisor.rundir import RunDir

log = logging.getLogger(__name__)

# Ray needs 4 s on an idle machine of two cores; this is for one that is not idle.
_START_TIMEOUT_S = 180.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME_SIGNAL_S = 0.5
_GRACE_S = 0.3  # for the last words of a process that has just died, and for the cgroup's count

# What a run that is not ready yet is doing, in words.
_BEFORE_READY = {
    Phase.FETCHING: "fetching the model",
    Phase.STARTING: "starting",
    Phase.LOADING: "loading the model",
    Phase.WARMING: "asking the model its probe",
}

# By command names, which the kernel cuts to 15 characters. The raylet ends with either of its
# agents. The Serve controller is not here: Ray restarts it, and it takes the replica over.
_RAY_PROCESSES = {
    "raylet": "raylet",
    "gcs_server": "GCS",
    "ray::DashboardA": "dashboard agent",
    "ray::RuntimeEnv": "runtime-env agent",
}
_LOADING = Answer(
    503,
    b'{"error": {"message": "The model is loading; try again later.", '
    b'"type": "service_unavailable_error", "param": null, "code": null}}\n',
    JSON,
    (("retry-after", "1"),),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run listens and ends."""

    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 9000
    linger_s: float = 0.0  # between SIGTERM and closing the port; a pod needs 5
    drain_s: float = 30.0  # after that, for what is in flight
    fetches: bool = True  # a pod's files are there: its init container brought them


class Audience:
    """Who wants to hear how a run goes. Called on the supervisor's thread; must be quick."""

    def on_phase(self, phase: Phase, fraction: float | None) -> None:
        """A phase began, or went on to `fraction` of it."""

    def on_ready(self, url: str) -> None:
        """The models answer at `url`."""


class Supervisor:
    """One run, on the running event loop. `main` is called once."""

    def __init__(
        self,
        settings: Settings,
        prepare: Callable[[], Sequence[ReplicaModel]],
        audience: Audience,
        run: RunDir,
        main: socket.socket,
        admin: socket.socket,
    ) -> None:
        self._settings = settings
        self._prepare = prepare
        self._audience = audience
        self._run = run
        self._main_listener = main
        self._admin_listener = admin
        self._url, self._address = ports.url(main), ports.loopback_of(main)
        self._health = Health(run.replica_socket)
        run_id = secrets.token_hex(8)
        # For what the fetch starts: if this process is killed, the driver finds it by that.
        os.environ[processes.RUN_ID_VARIABLE] = run_id
        self._children = Children(run, run_id, self._heard, self._lost)
        self._phase = Phase.FETCHING
        self._fraction: float | None = None
        self._started_at = time.monotonic()
        self._cold_start: dict[str, float] = {}
        self._serve_status: Any = None
        self._dead: dict[str, int] = {}  # pids by name, in the order of their ends
        self._has_models = False
        self._stop_asked_at = 0.0
        self._drained = asyncio.Event()
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills_before = oom_kills()
        self._placeholder: asyncio.Server | None = None

    async def main(self) -> Ending:
        """Start everything, wait for an ending, leave nothing behind."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop, number)
        processes.become_subreaper()
        try:
            await serve_admin(self._admin_listener, self._routes())
            self._placeholder = await serve_admin(self._main_listener.dup(), {}, _LOADING)
            self._spawn(self._children.accept())
            self._children.start_driver()
            thread = threading.Thread(target=self._prepare_models, args=(loop,), daemon=True)
            thread.start()
            self._spawn(self._limit_start())
            self._spawn(self._watch_health())
            return await self._ended
        finally:
            for task in self._tasks:
                task.cancel()
            if left := self._children.end():
                log.error("processes could not be ended", extra={"pids": left})
            self._run.remove()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("supervisor failed", exc_info=error)
            self._end(Ending(1, "InternalError", f"The supervisor failed: {error!r}."))

    def _end(self, ending: Ending) -> None:
        """The first ending counts. A lack of memory is the cause of whatever else it looks like."""
        if ending.exit_code == 1 and (killed := self._oom_kills()):
            message = (
                f"Out of memory: the kernel killed {killed} process(es); give it more memory or "
                f"serve a smaller model. {ending.message}"
            )
            ending = Ending(OUT_OF_MEMORY, "OutOfMemory", message)
        if not self._ended.done():
            self._ended.set_result(ending)

    def _enter(self, phase: Phase, fraction: float | None = None) -> None:
        if phase is not self._phase:
            log.info("phase", extra={"phase": phase.value})
        self._phase, self._fraction = phase, fraction
        self._tell(self._audience.on_phase, phase, fraction)

    def _tell(self, hear: Callable[..., None], *what: object) -> None:
        """Whatever befalls the audience, a closed terminal say, the run goes on."""
        try:
            hear(*what)
        except Exception:
            log.exception("audience failed")

    # Start

    def _prepare_models(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fetch, in a daemon thread: a run that is stopped does not wait for a download."""
        try:
            act = functools.partial(self._take_models, self._prepare())
        except ServewrightError as error:
            act = functools.partial(self._end, Ending.of(error))
        except BaseException as error:
            log.exception("models could not be prepared")
            message = f"The models could not be prepared: {error!r}."
            act = functools.partial(self._end, Ending(1, "InternalError", message))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run has ended meanwhile
            loop.call_soon_threadsafe(act)

    def _take_models(self, models: Sequence[ReplicaModel]) -> None:
        self._run.models_file.write_text(dump_models(models))
        if self._settings.fetches:
            self._cold_start["fetch"] = time.monotonic() - self._started_at
        self._has_models = True
        if self._phase is Phase.FETCHING:
            self._enter(Phase.STARTING)
        self._hand_over()

    def _hand_over(self) -> None:
        """Once there are both models and replica: tell it to serve, on the port held for it."""
        if self._has_models and self._health.has_replica:
            self._children.send("replica", "serve", files=(self._main_listener.fileno(),))

    async def _limit_start(self) -> None:
        await asyncio.sleep(_START_TIMEOUT_S)
        if not self._health.has_replica:
            message = f"Ray did not start a replica within {_START_TIMEOUT_S:.0f} s."
            self._end(Ending(1, "StartTimedOut", message))

    # What the children say

    def _heard(self, role: str, message: Message) -> None:
        match message["event"]:
            case "hello" if role == "replica":
                self._health.has_replica = True
                self._children.watch_by_command(_RAY_PROCESSES)
                self._hand_over()
            case "progress" if self._phase is not Phase.DRAINING:
                self._enter(Phase(message["phase"]), message["fraction"])
            case "ready":
                self._spawn(self._open(message["cold_start"]))
            case "drained":
                self._drained.set()
            case "serve_status":
                self._serve_status = message["status"]
            case "failed":
                self._end(Ending(message["exit_code"], message["reason"], message["message"]))

    async def _open(self, cold_start: dict[str, float]) -> None:
        """The replica accepts on the port: let go of it, so that it dies with the replica."""
        assert self._placeholder is not None
        self._placeholder.close()
        self._main_listener.close()
        whole = time.monotonic() - self._started_at
        start = whole - sum(self._cold_start.values()) - sum(cold_start.values())
        self._cold_start |= {"start": start, **cold_start}
        if self._phase is not Phase.DRAINING:
            self._health.port = self._address
            self._enter(Phase.READY)
            log.info("ready", extra={"url": self._url, "cold_start_s": round(whole, 3)})
            self._tell(self._audience.on_ready, self._url)

    def _lost(self, name: str, pid: int) -> None:
        self._dead[name] = pid
        if len(self._dead) == 1:
            self._spawn(self._explain())

    async def _explain(self) -> None:
        """End the run with the reason of a death, unless the process told a better one itself."""
        await asyncio.sleep(_GRACE_S)
        if (code := self._children.driver_exit_code()) is not None:
            output = self._children.driver_output()
            log.error("driver ended", extra={"code": code, "output": output})
            self._dead.setdefault("driver", self._children.pids["driver"])
        self._end(Ending.of_deaths(self._dead, code))

    # Health

    async def _watch_health(self) -> None:
        why = await self._health.watch(self._tick)
        self._end(Ending(1, "NotAlive", f"The replica failed its health checks: {why}"))

    def _tick(self) -> None:
        self._children.reap()
        if self._phase in _BEFORE_READY and self._oom_kills():
            # It may have been one of Ray's workers, for which Ray would wait long.
            self._end(Ending(1, "OutOfMemory", f"It was {_BEFORE_READY[self._phase]}."))

    def _oom_kills(self) -> int:
        return (oom_kills() or 0) - (self._oom_kills_before or 0)

    async def _readyz(self) -> Answer:
        if self._phase is not Phase.READY:
            return Answer(503, f"{self._phase.value}\n".encode())
        return await self._health.ask("/readyz")

    async def _state(self) -> Answer:
        """What is known here, with the replica's own state inside."""
        state: dict[str, Any] = {}
        answer = await self._health.ask("/state")
        if answer.status == 200:
            state = json.loads(answer.body)
        state |= {
            "phase": self._phase.value,
            "fraction": self._fraction,
            "coldStart": {part: round(s, 3) for part, s in self._cold_start.items()},
            "serve": self._serve_status,
            "processes": self._children.pids | {"supervisor": os.getpid()},
        }
        return Answer(200, json.dumps(state).encode() + b"\n", JSON)

    def _routes(self) -> dict[str, Handler]:
        return {
            "/livez": self._health.livez,
            "/readyz": self._readyz,
            "/state": self._state,
            "/metrics": functools.partial(self._health.ask, "/metrics"),
        }

    # Stop

    def _asked_to_stop(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._phase is Phase.READY:
            self._stop_asked_at = now
            self._health.port = None
            self._enter(Phase.DRAINING)
            self._spawn(self._drain())
        elif self._phase in _BEFORE_READY:
            self._end(Ending(0, "Stopped", "Stopped before it was ready."))
        # Runners and shells pass a signal on to a process that has already got it.
        elif number is signal.SIGINT and now - self._stop_asked_at > _SAME_SIGNAL_S:
            self._end(Ending(1, "Interrupted", "Stopped at once, as Ctrl-C was pressed again."))

    async def _drain(self) -> None:
        settings = self._settings
        self._children.send("replica", "drain", linger_s=settings.linger_s)
        try:
            async with asyncio.timeout(settings.linger_s + settings.drain_s):
                await self._drained.wait()
        except TimeoutError:
            message = f"Stopped with requests in flight, as {settings.drain_s:g} s were over."
            self._end(Ending(0, "DrainTimedOut", message))
        else:
            self._end(Ending(0, "Drained", "Stopped; nothing was in flight."))


def run(
    settings: Settings,
    prepare: Callable[[], Sequence[ReplicaModel]],
    audience: Audience | None = None,
) -> int:
    """Serve until told to stop or something dies. Returns the exit code; raises nothing a user
    can cause. The process is to end then: it ignores the signals that ask it to.

    prepare: brings the models' files and says how to serve them; runs in a thread while Ray
    starts, and its ServewrightError ends the run. Called on the main thread, which gets the
    signals.
    """

    async def serve() -> Ending:
        main = ports.listen(settings.host, settings.port, option="--port")
        admin = ports.listen(settings.admin_host, settings.admin_port, option="--admin-port")
        run_dir = RunDir.create()
        supervisor = Supervisor(settings, prepare, audience or Audience(), run_dir, main, admin)
        return await supervisor.main()

    try:
        ending = asyncio.run(serve())
    except ServewrightError as error:
        ending = Ending.of(error)
    for number in _STOP_SIGNALS:  # the end is decided, and its exit code with it
        signal.signal(number, signal.SIG_IGN)
    return ending.told()
