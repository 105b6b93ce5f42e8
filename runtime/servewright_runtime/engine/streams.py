"""The asyncio side of an engine: outputs to the coroutines that wait for them.

The engine thread wakes the event loop once a step, whatever the number of requests. A coroutine
that is behind gets all that has come since in one piece, so a slow reader costs no more wake-ups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.requests import Output, Request


class Streams:
    """Joins one engine to the running event loop. Use it from that loop only."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        self._sink = self._on_engine_thread  # one object: outputs are grouped by their sink

    def open(self, requests: Sequence[Request]) -> Stream:
        """Submit requests and get the stream of their outputs. Raises what `Engine.submit` does."""
        stream = Stream(self, [request.request_id for request in requests])
        self._streams.update(dict.fromkeys(stream.alive, stream))
        try:
            self.engine.submit(requests, self._sink)
        except BaseException:
            self._forget(stream)
            raise
        return stream

    def _on_engine_thread(self, outputs: list[Output]) -> None:
        # After the loop's end nobody reads any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, outputs)

    def _hand_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.push(output)
                if output.finish_reason is not None:
                    del self._streams[output.request_id]

    def _forget(self, stream: Stream) -> None:
        for request_id in stream.alive:
            self._streams.pop(request_id, None)


class Stream:
    """Outputs of requests submitted together. Iterate to the end; `cancel` brings it near."""

    def __init__(self, streams: Streams, request_ids: Sequence[str]) -> None:
        self.alive = set(request_ids)  # requests whose last output has not come
        self._streams = streams
        self._outputs: list[Output] = []
        self._came = asyncio.Event()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Output]:
        """All outputs since the last call, at least one, in the order of their steps."""
        if not self._outputs:
            if not self.alive:
                raise StopAsyncIteration
            await self._came.wait()
        self._came.clear()
        outputs, self._outputs = self._outputs, []
        return outputs

    def push(self, output: Output) -> None:
        """Add an output; called on the event loop."""
        self._outputs.append(output)
        if output.finish_reason is not None:
            self.alive.discard(output.request_id)
        self._came.set()

    def cancel(self) -> None:
        """End what is alive before the engine's next step. Safe to repeat.

        The last outputs still come, as CANCELLED and with their usage, whether or not anyone
        iterates on to them.
        """
        if self.alive:
            self._streams.engine.cancel(self.alive)
