"""From engine outputs to an answer: streamed as SSE, or collected.

One coroutine per request; a second one waits for the client to go away. Whatever the ending, the
engine's last outputs are awaited, so the counts in log and metrics are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Send

from servewright_runtime.api.answers import error_body, send_json
from servewright_runtime.api.aside import aside
from servewright_runtime.api.call import Call, Disconnected
from servewright_runtime.api.openai.logprobs import LogprobTracker
from servewright_runtime.api.openai.params import Generation
from servewright_runtime.api.openai.wire import DONE, Choice, Head, Ready, Wire
from servewright_runtime.api.state import ServedModel
from servewright_runtime.engine.requests import FinishReason, Output, Request, Timing, Usage
from servewright_runtime.engine.streams import Stream
from servewright_runtime.errors import RequestError

# Tokens with a logprob; writing one takes about a microsecond.
INLINE_LOGPROBS = 5000

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the chunks
]


@dataclass(frozen=True, slots=True)
class Job:
    """An HTTP request that has been understood: what the engine shall do, and for whom."""

    model: ServedModel
    generation: Generation
    requests: Sequence[Request]  # one a choice
    head: Head


class Answer:
    """The choices of one request while they grow."""

    def __init__(self, job: Job) -> None:
        self.error: RequestError | None = None
        self._n = job.generation.n
        self._index = {request.request_id: i for i, request in enumerate(job.requests)}
        has_logprobs = job.generation.sampling.logprobs
        self._trackers = [
            LogprobTracker(job.model.tokenizer) if has_logprobs else None for _ in job.requests
        ]
        self._last: list[Output | None] = [None] * len(job.requests)

    def pieces(self, outputs: list[Output]) -> Iterable[tuple[int, str, Ready | None, str | None]]:
        """What the outputs add: choice, text, logprobs if asked for, finish reason if it ended."""
        if len(outputs) > 1:
            outputs = _merged(outputs)
        for output in outputs:
            index = self._index[output.request_id]
            tracker = self._trackers[index]
            ready = tracker.push(output) if tracker is not None else None
            reason = output.finish_reason
            if reason is not None:
                self._last[index] = output
                if reason is FinishReason.ERROR:
                    self.error = output.error
                    continue
            if output.text or ready or reason is not None:
                yield index, output.text, ready, reason.value if reason is not None else None

    def usage(self) -> Usage:
        """Tokens of the whole request: a prompt counts once, whatever its choices."""
        usages = [last.usage for last in self._last if last is not None and last.usage is not None]
        firsts = usages[:: self._n]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
        )

    def timing(self) -> Timing:
        """Of several choices the longest time of each phase."""
        times = [last.timing for last in self._last if last is not None and last.timing is not None]
        return Timing(
            queue_s=max(timing.queue_s for timing in times),
            prefill_s=max(timing.prefill_s for timing in times),
            decode_s=max(timing.decode_s for timing in times),
        )


def _merged(outputs: list[Output]) -> list[Output]:
    """One output a request, when a slow reader let several gather."""
    merged: dict[str, Output] = {}
    for output in outputs:
        first = merged.setdefault(output.request_id, output)
        if first is not output:
            first.text += output.text
            first.logprobs += output.logprobs
            first.finish_reason = output.finish_reason
            first.usage, first.timing = output.usage, output.timing
            first.error = output.error
    return list(merged.values())


async def answer(call: Call, receive: Receive, send: Send, job: Job, wire: Wire) -> None:
    """Run the job and send its answer.

    Raises RequestError where no byte has been sent yet, Disconnected when the client is gone.
    """
    stream = job.model.streams.open(job.requests)
    result = Answer(job)
    call.streamed, call.choices = job.generation.is_stream, len(job.requests)
    watcher = asyncio.create_task(_watch(call, receive, stream))
    run = _stream if job.generation.is_stream else _collect
    try:
        await run(call, send, stream, result, wire, job.generation)
    finally:
        watcher.cancel()
        stream.cancel()  # nothing unless we are being cancelled ourselves


async def _watch(call: Call, receive: Receive, stream: Stream) -> None:
    """End the engine's work when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.disconnected = True
    stream.cancel()


def _conclude(call: Call, result: Answer) -> None:
    call.usage, call.timing = result.usage(), result.timing()
    if call.disconnected:
        raise Disconnected


async def _collect(
    call: Call, send: Send, stream: Stream, result: Answer, wire: Wire, generation: Generation
) -> None:
    choices = [Choice() for _ in range(call.choices)]
    async for outputs in stream:
        for index, text, ready, finish in result.pieces(outputs):
            choice = choices[index]
            choice.text.append(text)
            choice.logprobs += ready or ()
            choice.finish_reason = finish
        if result.error is not None:
            stream.cancel()
    _conclude(call, result)
    if result.error is not None:
        raise result.error
    assert call.usage is not None
    assert call.timing is not None
    usage, sampling = call.usage, generation.sampling
    shown = usage.completion_tokens * (1 + sampling.top_logprobs) if sampling.logprobs else 0
    body = await aside(
        lambda: wire.whole(choices, usage, logprobs=sampling.logprobs),
        is_long=shown > INLINE_LOGPROBS,
    )
    headers = [(b"server-timing", server_timing(call.timing))] if call.wants_timing else []
    await send_json(send, body, headers=headers)


async def _stream(
    call: Call, send: Send, stream: Stream, result: Answer, wire: Wire, generation: Generation
) -> None:
    is_started = False
    async for outputs in stream:
        frames = [wire.frame(*piece) for piece in result.pieces(outputs)]
        if result.error is not None:
            stream.cancel()
        elif frames and not call.disconnected:
            if not is_started:
                # The head waits for the first token, so that an early failure has its own status.
                is_started = True
                await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
                frames.insert(0, wire.opening())
            await send({"type": "http.response.body", "body": b"".join(frames), "more_body": True})
    _conclude(call, result)
    if result.error is not None:
        if not is_started:
            raise result.error
        call.error = result.error.code or result.error.type
        last = b"data: " + error_body(result.error) + b"\n\n"
    else:
        usage = call.usage if generation.has_usage_chunk else None
        last = wire.closing(usage, call.timing if call.wants_timing else None) + DONE
    await send({"type": "http.response.body", "body": last, "more_body": False})


def server_timing(timing: Timing) -> bytes:
    """The Server-Timing header (W3C): phases in milliseconds."""
    return (
        f"queue;dur={timing.queue_s * 1e3:.3f}, prefill;dur={timing.prefill_s * 1e3:.3f}, "
        f"decode;dur={timing.decode_s * 1e3:.3f}"
    ).encode()
