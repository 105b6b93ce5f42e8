"""The engine: one thread that turns requests into tokens, a step at a time.

`submit` and `cancel` may be called from any thread; they leave a message that the engine thread
takes up before its next step. All state of scheduling belongs to that thread alone. Its loop is
three calls: schedule, run, postprocess. It knows neither HTTP nor Ray nor asyncio.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from servewright_runtime.engine.batching import Batcher
from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.detokenizer import Detokenizer
from servewright_runtime.engine.observer import EngineObserver, RequestStats, StepStats
from servewright_runtime.engine.requests import (
    FinishReason,
    Output,
    Request,
    Timing,
    TokenLogprob,
    Usage,
)
from servewright_runtime.engine.scheduler import Scheduler, Step
from servewright_runtime.engine.sequence import Sequence
from servewright_runtime.errors import EngineFailed, Overloaded, RequestError, Unavailable
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.runner import StepResult

log = logging.getLogger(__name__)

Sink = Callable[[list[Output]], None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment."""

    running: int  # sequences
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
    last_step_at: float  # monotonic seconds; of the start before any step
    failed: str | None  # why the engine thread ended, if it did


@dataclass(slots=True, eq=False)
class _Job:
    """A sequence with what its outputs need."""

    sequence: Sequence
    sink: Sink
    detokenizer: Detokenizer


class Engine:
    """Serves one model. `start` it once; `stop` it once."""

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        observer: EngineObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = config.name
        self.config = config
        self._model = model
        self._runner = model.runner
        self._tokenizer = model.tokenizer
        self._observer = observer
        self._clock = clock
        self._scheduler = Scheduler(config, model.runner.num_blocks)
        self._batcher = Batcher()
        self._jobs: dict[str, _Job] = {}
        self._order = 0
        # Messages to the engine thread, all under the condition's lock.
        self._wake = threading.Condition()
        self._arrived: deque[_Job] = deque()
        self._cancelled: set[str] = set()
        self._stopping: RequestError | None = None
        self._failed: str | None = None
        self._last_step_at = clock()
        self._thread = threading.Thread(target=self._run, name=f"engine-{self.name}", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def submit(self, requests: Seq[Request], sink: Sink) -> None:
        """Accept all of the requests or none.

        sink: called on the engine thread, at most once a step, with the outputs of all requests
        that came with it; it must be quick and not raise. Each request ends in exactly one output
        with a finish reason.
        Raises RequestError (400) on a prompt that leaves no room for a token, Overloaded (429) when
        the queue is full, Unavailable (503) when the engine is stopping or has failed.
        """
        longest = max(len(request.prompt_ids) for request in requests)
        if longest >= self.config.max_model_len:
            raise RequestError(
                f"The prompt has {longest} tokens, but {self.name} takes at most "
                f"{self.config.max_model_len} tokens of prompt and answer together; shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        now = self._clock()
        with self._wake:
            if self._stopping is not None:
                raise self._stopping
            if self._failed is not None:
                raise Unavailable(f"The engine of {self.name} has failed and is being restarted.")
            # What the batch has a place for does not count as queued, even if it runs later.
            alive = len(self._jobs) + len(self._arrived)
            limit = self.config.max_batch + self.config.max_queued
            if alive + len(requests) > limit:
                raise Overloaded(
                    f"{self.name} has {alive} sequences running or waiting, of at most {limit}; "
                    "try again later."
                )
            if not alive:
                self._last_step_at = now  # idle time is no stall
            for request in requests:
                self._order += 1
                sequence = Sequence(request, self._order, now)
                detokenizer = Detokenizer(request.sampling.stop)
                self._arrived.append(_Job(sequence, sink, detokenizer))
            self._wake.notify()

    def cancel(self, request_ids: Iterable[str]) -> None:
        """End requests before the next step, as CANCELLED. Those that have ended are left alone."""
        with self._wake:
            self._cancelled.update(request_ids)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """The engine as it is now; from any thread."""
        pool = self._scheduler.pool
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._waiting(),
            kv_blocks_used=pool.used_blocks,
            kv_blocks=pool.num_blocks,
            last_step_at=self._last_step_at,
            failed=self._failed,
        )

    def is_stalled(self, now: float, *, limit_s: float = 30.0) -> bool:
        """Whether work waits and no step has ended for `limit_s`. `now`: of the engine's clock."""
        has_work = bool(self._arrived) or self._scheduler.has_work
        return has_work and now - self._last_step_at > limit_s

    def check_integrity(self) -> None:
        """Assert the scheduler's and the pool's invariants, between steps. For tests."""
        self._scheduler.check_integrity()
        assert len(self._jobs) == len(self._scheduler.running) + len(self._scheduler.waiting)

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Refuse what comes, end what is left with Unavailable (503), free the model.

        Raises TimeoutError when the running step takes longer than `timeout_s`.
        """
        with self._wake:
            self._stopping = Unavailable(f"{self.name} is shutting down; try another replica.")
            self._wake.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine of {self.name} did not end a step in {timeout_s} s")
        self._model.close()

    def _waiting(self) -> int:
        return len(self._arrived) + len(self._scheduler.waiting)

    def _run(self) -> None:
        try:
            while self.take_messages():
                self.step()
        except Exception as error:
            log.exception("engine failed", extra={"model": self.name})
            with self._wake:
                self._failed = f"{type(error).__name__}: {error}"
            self._end_all(EngineFailed(f"The engine of {self.name} failed; the error is logged."))
        else:
            assert self._stopping is not None
            self._end_all(self._stopping)

    def _is_wanted(self) -> bool:
        return bool(self._stopping or self._arrived or self._cancelled or self._jobs)

    def take_messages(self) -> bool:
        """Wait for work and take up what came; False when the engine is to stop.

        For the engine thread, or a test in its place.
        """
        while not self._is_wanted() and self._runner.commit_ahead():
            pass  # a piece at a time, so that what comes waits for one at most
        with self._wake:
            while not self._is_wanted():
                self._wake.wait()
            if self._stopping:
                return False
            arrived = list(self._arrived)
            self._arrived.clear()
            cancelled, self._cancelled = self._cancelled, set()
            for job in arrived:
                self._jobs[job.sequence.request.request_id] = job
                self._scheduler.add(job.sequence)
        outputs: list[tuple[_Job, Output]] = []
        for request_id in cancelled:
            if request_id in self._jobs:
                job, output = self._jobs[request_id], Output(request_id)
                outputs.append((job, output))
                self._finish(job, output, FinishReason.CANCELLED)
        _deliver(outputs)
        return True

    def step(self) -> None:
        """Schedule, run, postprocess. For the engine thread, or a test in its place."""
        step = self._scheduler.schedule()
        if not step.chunks:
            return
        started = self._clock()
        result = self._runner.step(self._batcher.build(step.chunks))
        self._postprocess(step, result, started)

    def _postprocess(self, step: Step, result: StepResult, started: float) -> None:
        """Append the drawn tokens, end what is finished, hand out the texts."""
        now = self._clock()
        self._scheduler.advance(step)
        outputs: list[tuple[_Job, Output]] = []
        first_token_s: list[float] = []
        inter_token_s: list[float] = []
        tokens = result.token_ids.tolist()
        row = 0
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.scheduled_at is None:
                sequence.scheduled_at = started
                sequence.cached_tokens = chunk.start
            if not chunk.samples:
                continue
            job = self._jobs[sequence.request.request_id]
            output = Output(sequence.request.request_id)
            outputs.append((job, output))
            if not result.finite:
                output.error = EngineFailed(f"{self.name} computed logits that are not finite.")
                self._finish(job, output, FinishReason.ERROR)
                continue
            if sequence.first_token_at is None:
                sequence.first_token_at = now
                first_token_s.append(now - sequence.arrived_at)
            else:
                assert sequence.last_token_at is not None
                inter_token_s.append(now - sequence.last_token_at)
            sequence.last_token_at = now
            self._append(job, output, tokens[row], result, row)
            row += 1
        self._last_step_at = now
        _deliver(outputs)
        self._observe(step, now - started, first_token_s, inter_token_s)

    def _observe(
        self, step: Step, seconds: float, first_token_s: list[float], inter_token_s: list[float]
    ) -> None:
        if step.preempted:
            self._observer.on_preempted(step.preempted)
        if step.prefix_queried:
            self._observer.on_prefix(step.prefix_queried, step.prefix_hit)
        pool = self._scheduler.pool
        decode_tokens = len(inter_token_s)
        self._observer.on_step(
            StepStats(
                prefill_tokens=sum(chunk.tokens for chunk in step.chunks) - decode_tokens,
                decode_tokens=decode_tokens,
                running=len(self._scheduler.running),
                waiting=self._waiting(),
                kv_blocks_used=pool.used_blocks,
                kv_blocks=pool.num_blocks,
                seconds=seconds,
                first_token_s=tuple(first_token_s),
                inter_token_s=tuple(inter_token_s),
            )
        )

    def _append(self, job: _Job, output: Output, token: int, result: StepResult, row: int) -> None:
        """Add a drawn token to sequence and output; end the request if it is the last."""
        sequence = job.sequence
        sampling = sequence.request.sampling
        sequence.token_ids.append(token)
        output.token_ids.append(token)
        if sampling.logprobs:
            best = sampling.top_logprobs
            ids, logprobs = result.top_ids[row, :best], result.top_logprobs[row, :best]
            top = tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
            output.logprobs.append(TokenLogprob(token, float(result.logprobs[row]), top))
        if token in self._tokenizer.eos_ids and not sampling.ignore_eos:
            output.stop_reason = token
            self._finish(job, output, FinishReason.STOP)
            return
        output.text, output.stop_reason = job.detokenizer.push(self._tokenizer.token_bytes(token))
        if output.stop_reason is not None:
            self._finish(job, output, FinishReason.STOP)
        elif (
            sequence.output_tokens >= sampling.max_tokens
            or len(sequence.token_ids) >= self.config.max_model_len
        ):
            self._finish(job, output, FinishReason.LENGTH)

    def _finish(self, job: _Job, output: Output, reason: FinishReason) -> None:
        """End a request: free its blocks, add the rest of its text to its last output."""
        self._scheduler.finish(job.sequence)
        if reason is FinishReason.LENGTH or isinstance(output.stop_reason, int):
            output.text += job.detokenizer.flush()
        self._conclude(job, output, reason)

    def _conclude(self, job: _Job, output: Output, reason: FinishReason) -> None:
        """Make `output` the request's last, with its counts and times."""
        sequence = job.sequence
        del self._jobs[sequence.request.request_id]
        output.finish_reason = reason
        output.usage = Usage(
            prompt_tokens=len(sequence.request.prompt_ids),
            completion_tokens=sequence.output_tokens,
            cached_tokens=sequence.cached_tokens,
        )
        output.timing = _timing(sequence, self._clock())
        self._observer.on_finish(
            RequestStats(
                request_id=sequence.request.request_id,
                finish_reason=reason,
                usage=output.usage,
                timing=output.timing,
                sampling=sequence.request.sampling,
            )
        )

    def _end_all(self, error: RequestError) -> None:
        """End every request with `error`: the engine computes nothing any more."""
        with self._wake:
            for job in self._arrived:
                self._jobs[job.sequence.request.request_id] = job
            self._arrived.clear()
        outputs: list[tuple[_Job, Output]] = []
        for job in list(self._jobs.values()):
            output = Output(job.sequence.request.request_id, error=error)
            outputs.append((job, output))
            self._conclude(job, output, FinishReason.ERROR)
        _deliver(outputs)


def _timing(sequence: Sequence, now: float) -> Timing:
    """Queue, prefill and decode time; what did not begin has taken 0, what did not end lasts."""
    scheduled = sequence.scheduled_at if sequence.scheduled_at is not None else now
    first = sequence.first_token_at if sequence.first_token_at is not None else now
    last = sequence.last_token_at if sequence.last_token_at is not None else now
    return Timing(
        queue_s=scheduled - sequence.arrived_at,
        prefill_s=max(0.0, first - scheduled),
        decode_s=max(0.0, last - first),
    )


def _deliver(outputs: Iterable[tuple[_Job, Output]]) -> None:
    """Call each sink once, with all that is for it."""
    by_sink: dict[Sink, list[Output]] = {}
    for job, output in outputs:
        by_sink.setdefault(job.sink, []).append(output)
    for sink, batch in by_sink.items():
        sink(batch)
