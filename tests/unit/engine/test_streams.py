"""Engine outputs on an event loop."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.observer import NullObserver
from servewright_runtime.engine.requests import FinishReason, Output, Request, SamplingParams
from servewright_runtime.engine.streams import Stream, Streams
from servewright_runtime.errors import Overloaded
from support.paged_model import PagedModel, expected_tokens, loaded

CONFIG = EngineConfig(
    name="m",
    max_model_len=400,
    max_batch=4,
    max_step_tokens=64,
    max_queued=40,
    mixed_prefill_tokens=16,
    prefix_cache=True,
)
TIMEOUT_S = 20.0


def requests(*names: str, max_tokens: int = 20) -> list[Request]:
    return [Request(name, (1, 2, 3), SamplingParams(max_tokens=max_tokens)) for name in names]


async def collect(stream: Stream) -> dict[str, list[Output]]:
    outputs: dict[str, list[Output]] = {}
    async with asyncio.timeout(TIMEOUT_S):
        async for batch in stream:
            assert batch, "woken for nothing"
            for output in batch:
                outputs.setdefault(output.request_id, []).append(output)
    return outputs


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(loaded(PagedModel(200)), CONFIG, NullObserver())
    engine.start()
    yield engine
    engine.stop(timeout_s=TIMEOUT_S)


async def test_many_streams_at_once_each_get_their_own_tokens(engine: Engine) -> None:
    streams = Streams(engine)
    opened = [streams.open(requests(f"a{i}", f"b{i}")) for i in range(15)]
    alone = expected_tokens((1, 2, 3), 20)
    for index, outputs in enumerate(await asyncio.gather(*map(collect, opened))):
        assert set(outputs) == {f"a{index}", f"b{index}"}
        for parts in outputs.values():
            assert [token for part in parts for token in part.token_ids] == alone
            assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)


async def test_a_cancelled_stream_still_brings_exact_usage() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def block(_: object) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    engine = Engine(loaded(PagedModel(200, on_step=block)), CONFIG, NullObserver())
    engine.start()
    stream = Streams(engine).open(requests("gone", max_tokens=300))
    assert await asyncio.to_thread(inside.wait, TIMEOUT_S)
    stream.cancel()
    stream.cancel()
    go_on.set()
    last = (await collect(stream))["gone"][-1]
    assert last.finish_reason is FinishReason.CANCELLED
    assert last.usage is not None
    assert last.usage.completion_tokens == 1
    await asyncio.to_thread(engine.stop, timeout_s=TIMEOUT_S)


async def test_a_refused_request_leaves_nothing_behind(engine: Engine) -> None:
    streams = Streams(engine)
    with pytest.raises(Overloaded):
        streams.open(requests(*(f"r{i}" for i in range(45))))
    outputs = await collect(streams.open(requests("r0")))
    assert outputs["r0"][-1].finish_reason is FinishReason.LENGTH


async def test_a_reader_that_is_behind_gets_all_that_came_in_one_piece(engine: Engine) -> None:
    ended = threading.Event()

    class Ends(NullObserver):
        def on_finish(self, stats: object) -> None:
            ended.set()

    watched = Engine(loaded(PagedModel(200)), CONFIG, Ends())
    watched.start()
    stream = Streams(watched).open(requests("slow"))
    assert ended.wait(TIMEOUT_S)  # blocks the loop: nothing is handed out meanwhile
    watched.stop(timeout_s=TIMEOUT_S)
    batches = [batch async for batch in stream]
    assert len(batches[0]) > 1
    assert sum(len(o.token_ids) for batch in batches for o in batch) == 20
