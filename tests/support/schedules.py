"""Random schedules for an engine: who comes when, who leaves, how tight things are."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from servewright_runtime.engine.config import EngineConfig
from servewright_runtime.engine.engine import Engine
from servewright_runtime.engine.observer import EngineObserver, NullObserver
from servewright_runtime.engine.requests import FinishReason, Output, Request
from servewright_runtime.models.loaded import LoadedModel


@dataclass
class Outcome:
    """What one request got in the end."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    text: str = ""
    last: Output | None = None

    def add(self, output: Output) -> None:
        """Collect an output; nothing may follow the last."""
        assert self.last is None, "an output after the last one"
        self.tokens += output.token_ids
        self.logprobs += [(p.token_id, p.logprob, p.top) for p in output.logprobs]
        self.text += output.text
        if output.finish_reason is not None:
            self.last = output


class Counts(NullObserver):
    """Counts what must have happened for a test to mean something."""

    def __init__(self) -> None:
        self.preempted = 0
        self.prefix_hits = 0

    def on_preempted(self, sequences: int) -> None:
        self.preempted += sequences

    def on_prefix(self, queried_tokens: int, hit_tokens: int) -> None:
        self.prefix_hits += hit_tokens


class SteppedEngine:
    """An engine whose steps the test takes itself, with the integrity check after each."""

    def __init__(
        self, model: LoadedModel, config: EngineConfig, observer: EngineObserver | None = None
    ) -> None:
        self.engine = Engine(model, config, observer or NullObserver())
        self.outcomes: dict[str, Outcome] = {}

    def submit(self, *requests: Request) -> None:
        """Hand requests to the engine."""
        self.outcomes.update({r.request_id: Outcome() for r in requests})
        self.engine.submit(requests, self._collect)

    def step(self) -> None:
        """What the engine thread does in one turn; needs something to do."""
        self.engine.take_messages()
        self.engine.step()
        self.engine.check_integrity()

    @property
    def alive(self) -> list[str]:
        """Requests that have not ended."""
        return [name for name, outcome in self.outcomes.items() if outcome.last is None]

    def run(self, *, max_steps: int = 10_000) -> None:
        """Step until every request has ended."""
        for _ in range(max_steps):
            if not self.alive:
                return
            self.step()
        raise AssertionError(f"not ended after {max_steps} steps: {self.alive}")

    def _collect(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.outcomes[output.request_id].add(output)


def run_randomly(
    stepped: SteppedEngine, requests: list[Request], rng: random.Random, *, cancel: float = 0.0
) -> None:
    """Submit at random moments, cancel some at random moments, run to the end."""
    todo = list(requests)
    rng.shuffle(todo)
    while todo or stepped.alive:
        while todo and (not stepped.alive or rng.random() < 0.5):
            count = min(len(todo), rng.choice([1, 1, 2, 3]))
            stepped.submit(*(todo.pop() for _ in range(count)))
        if stepped.alive and rng.random() < cancel:
            stepped.engine.cancel([rng.choice(stepped.alive)])
        if stepped.alive:
            stepped.step()


def ended_well(outcome: Outcome) -> bool:
    """Whether the request got all that it asked for."""
    return outcome.last is not None and outcome.last.finish_reason in (
        FinishReason.STOP,
        FinishReason.LENGTH,
    )
