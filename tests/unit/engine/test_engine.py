"""The engine's promises: bounds, cancellation, failure, shutdown."""

import dataclasses
import threading
from collections.abc import Callable

import pytest

from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.observer import NullObserver, RequestStats
from servewright_runtime.engine.requests import FinishReason, Output, Request, SamplingParams
from servewright_runtime.errors import EngineFailed, Overloaded, RequestError, Unavailable
from servewright_runtime.models.runner import StepBatch
from support.paged_model import EOS, PagedModel, expected_tokens, loaded
from support.schedules import SteppedEngine

CONFIG = EngineConfig(
    name="m",
    max_model_len=100,
    max_batch=2,
    max_step_tokens=64,
    max_queued=3,
    mixed_prefill_tokens=16,
    prefix_cache=True,
)
TIMEOUT_S = 10.0


def request(name: str = "r", prompt: tuple[int, ...] = (1, 2, 3), **sampling: object) -> Request:
    return Request(name, prompt, SamplingParams(**sampling))  # type: ignore[arg-type]


class Collected:
    """A sink that can be waited for."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self._came = threading.Condition()

    def __call__(self, outputs: list[Output]) -> None:
        with self._came:
            self.outputs += outputs
            self._came.notify_all()

    def wait_for_ends(self, count: int) -> list[Output]:
        """The last outputs of `count` requests."""

        def ends() -> list[Output]:
            return [o for o in self.outputs if o.finish_reason is not None]

        with self._came:
            assert self._came.wait_for(lambda: len(ends()) >= count, TIMEOUT_S)
            return ends()


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    stepped = SteppedEngine(loaded(PagedModel(16)), CONFIG)
    with pytest.raises(RequestError, match=r"100 tokens.* at most 100 tokens") as caught:
        stepped.submit(request(prompt=tuple(range(100))))
    assert caught.value.code == "context_length_exceeded"
    stepped.submit(request(prompt=tuple(range(99)), max_tokens=50))
    stepped.run()
    last = stepped.outcomes["r"].last
    assert last is not None
    assert last.finish_reason is FinishReason.LENGTH
    assert len(stepped.outcomes["r"].tokens) == 1


def test_a_full_queue_refuses_a_group_whole() -> None:
    stepped = SteppedEngine(loaded(PagedModel(16)), CONFIG)
    stepped.submit(*(request(f"r{i}") for i in range(4)))  # two run, three may wait
    with pytest.raises(Overloaded, match="waiting"):
        stepped.engine.submit([request("a"), request("b")], lambda _: None)
    stepped.submit(request("last"))
    stepped.run()
    assert set(stepped.outcomes) == {"r0", "r1", "r2", "r3", "last"}


def test_who_has_a_place_in_the_batch_is_not_queued_though_its_prompt_waits() -> None:
    config = dataclasses.replace(CONFIG, max_batch=4, max_queued=0)
    stepped = SteppedEngine(loaded(PagedModel(64)), config)
    stepped.submit(request("decodes", max_tokens=90))
    stepped.step()
    for name in ("second", "third"):
        stepped.submit(request(name, prompt=tuple(range(50))))
    stepped.step()
    assert stepped.engine.stats().waiting == 1, "the third should wait for the second's prompt"
    stepped.submit(request("fourth"))
    with pytest.raises(Overloaded, match="4 sequences running or waiting, of at most 4"):
        stepped.engine.submit([request("fifth")], lambda _: None)


def test_a_cancelled_request_ends_before_the_next_step_wherever_it_stands() -> None:
    stepped = SteppedEngine(loaded(PagedModel(16)), CONFIG)
    stepped.submit(*(request(f"r{i}", max_tokens=50) for i in range(4)))
    stepped.step()
    stepped.engine.cancel(["r0", "r3", "unknown"])  # one runs, one waits
    stepped.submit(request("late", max_tokens=50))
    stepped.engine.cancel(["late"])  # not even taken up
    stepped.step()
    for name, tokens in (("r0", 1), ("r3", 0), ("late", 0)):
        last = stepped.outcomes[name].last
        assert last is not None
        assert last.finish_reason is FinishReason.CANCELLED
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, tokens)
    assert sorted(stepped.alive) == ["r1", "r2"]


def test_the_end_token_ends_a_request_and_is_counted_but_not_shown() -> None:
    context = [7]
    tokens = expected_tokens(context, 3)

    class EndsThird(PagedModel):
        def step(self, batch: StepBatch):  # type: ignore[no-untyped-def]
            result = super().step(batch)
            if batch.sampling.draw[0] == len(context) + 2:
                result.token_ids[0] = EOS
            return result

    for ignore, reason, count in ((False, FinishReason.STOP, 3), (True, FinishReason.LENGTH, 5)):
        stepped = SteppedEngine(loaded(EndsThird(16)), CONFIG)
        stepped.submit(request(prompt=(7,), max_tokens=5, ignore_eos=ignore))
        stepped.run()
        outcome = stepped.outcomes["r"]
        assert outcome.last is not None
        assert outcome.last.finish_reason is reason
        assert outcome.last.usage is not None
        assert outcome.last.usage.completion_tokens == count
        shown = bytes(tokens[:2]).decode(errors="replace")
        assert outcome.text == shown if not ignore else outcome.text.startswith(shown[:-1])


def test_a_stop_string_ends_the_text_before_it() -> None:
    text = SteppedEngine(loaded(PagedModel(16)), CONFIG)
    text.submit(request("free", max_tokens=40))
    text.run()
    whole = text.outcomes["free"].text
    stop = whole[10:13]
    text.submit(request("stopped", max_tokens=40, stop=(stop, "never there")))
    text.run()
    outcome = text.outcomes["stopped"]
    assert outcome.text == whole[: whole.index(stop)]
    assert outcome.last is not None
    assert outcome.last.stop_reason == stop
    assert outcome.last.finish_reason is FinishReason.STOP


def test_logprobs_come_one_a_token_with_as_many_best_ones_as_asked() -> None:
    stepped = SteppedEngine(loaded(PagedModel(16)), CONFIG)
    stepped.submit(
        request("two", logprobs=True, top_logprobs=2, max_tokens=4),
        request("none", max_tokens=4),
    )
    stepped.run()
    assert [len(top) for _, _, top in stepped.outcomes["two"].logprobs] == [2] * 4
    assert [t for t, _, _ in stepped.outcomes["two"].logprobs] == stepped.outcomes["two"].tokens
    assert stepped.outcomes["none"].logprobs == []


def test_logits_that_are_not_finite_end_the_request_with_an_error() -> None:
    model = PagedModel(16)
    model.finite = False
    stepped = SteppedEngine(loaded(model), CONFIG)
    stepped.submit(request())
    stepped.run()
    last = stepped.outcomes["r"].last
    assert last is not None
    assert isinstance(last.error, EngineFailed)
    assert "not finite" in last.error.message


def test_the_parts_of_a_request_s_time_add_up() -> None:
    ended: list[RequestStats] = []

    class Keeps(NullObserver):
        def on_finish(self, stats: RequestStats) -> None:
            ended.append(stats)

    ticks = iter(range(10_000))
    engine = Engine(loaded(PagedModel(16)), CONFIG, Keeps(), clock=lambda: float(next(ticks)))
    engine.submit([request(max_tokens=3)], lambda _: None)
    while not ended:
        engine.take_messages()
        engine.step()
    timing = ended[0].timing
    assert min(timing.queue_s, timing.prefill_s, timing.decode_s) > 0


class CommitsInPieces(PagedModel):
    """Has `pieces` to commit; `on_commit` is called with how many were left."""

    def __init__(self, pieces: int, on_commit: Callable[[int], None] = lambda left: None) -> None:
        super().__init__(16)
        self.pieces = pieces
        self._on_commit = on_commit

    def commit_ahead(self) -> bool:
        self._on_commit(self.pieces)
        self.pieces = max(0, self.pieces - 1)
        return self.pieces > 0


def test_an_engine_without_work_commits_what_is_to_come_and_then_waits() -> None:
    committed = threading.Event()
    model = CommitsInPieces(3, lambda left: committed.set() if left == 1 else None)
    engine = Engine(loaded(model), CONFIG, NullObserver())
    engine.start()
    assert committed.wait(TIMEOUT_S)
    sink = Collected()
    engine.submit([request(max_tokens=2)], sink)
    sink.wait_for_ends(1)
    engine.stop()
    assert model.pieces == 0


def test_a_request_waits_for_one_piece_and_the_others_for_its_end() -> None:
    sink = Collected()

    def submit(left: int) -> None:
        if left == 50:
            engine.submit([request(max_tokens=2)], sink)

    model = CommitsInPieces(50, submit)
    engine = Engine(loaded(model), CONFIG, NullObserver())
    for _ in range(2):
        engine.take_messages()
        engine.step()
        assert model.pieces == 49
    sink.wait_for_ends(1)


def test_outputs_of_one_sink_come_together_once_a_step() -> None:
    engine = Engine(loaded(PagedModel(16)), CONFIG, NullObserver())
    calls: list[int] = []
    engine.submit([request("a"), request("b")], lambda outputs: calls.append(len(outputs)))
    for _ in range(5):
        engine.take_messages()
        engine.step()
    assert calls == [2] * 5


def test_stopping_ends_what_runs_and_what_waits_and_frees_the_model() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def block(_: StepBatch) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    model, sink = PagedModel(16, on_step=block), Collected()
    engine = Engine(loaded(model), CONFIG, NullObserver())
    engine.start()
    engine.submit([request(f"r{i}", max_tokens=90) for i in range(4)], sink)
    assert inside.wait(TIMEOUT_S)
    with pytest.raises(TimeoutError):
        engine.stop(timeout_s=0.01)
    go_on.set()
    engine.stop(timeout_s=TIMEOUT_S)
    ends = sink.wait_for_ends(4)
    assert {type(o.error) for o in ends} == {Unavailable}
    assert model.closed
    with pytest.raises(Unavailable):
        engine.submit([request("late")], sink)


def test_a_bug_in_a_step_ends_every_request_and_is_told() -> None:
    def fail(_: StepBatch) -> None:
        raise ZeroDivisionError("planted")

    sink = Collected()
    engine = Engine(loaded(PagedModel(16, on_step=fail)), CONFIG, NullObserver())
    engine.start()
    engine.submit([request(f"r{i}") for i in range(4)], sink)
    ends = sink.wait_for_ends(4)
    assert {type(o.error) for o in ends} == {EngineFailed}
    assert "planted" not in str(ends[0].error), "internals are for the log"
    assert engine.stats().failed == "ZeroDivisionError: planted"
    with pytest.raises(Unavailable):
        engine.submit([request("late")], sink)
    engine.stop(timeout_s=TIMEOUT_S)


def test_a_step_that_does_not_end_is_a_stall_and_idleness_is_none() -> None:
    inside, go_on = threading.Event(), threading.Event()
    now = [0.0]

    def block(_: StepBatch) -> None:
        inside.set()
        assert go_on.wait(TIMEOUT_S)

    sink = Collected()
    model = loaded(PagedModel(16, on_step=block))
    engine = Engine(model, CONFIG, NullObserver(), clock=lambda: now[0])
    engine.start()
    now[0] = 1000.0
    assert not engine.is_stalled(now[0])
    engine.submit([request(max_tokens=1)], sink)
    assert inside.wait(TIMEOUT_S)
    assert not engine.is_stalled(now[0] + 29)
    assert engine.is_stalled(now[0] + 31)
    go_on.set()
    sink.wait_for_ends(1)
    assert not engine.is_stalled(now[0] + 31)
    engine.stop(timeout_s=TIMEOUT_S)
