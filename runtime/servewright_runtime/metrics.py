"""Every metric, in one place: the `vllm:*` names that existing tooling scrapes, and our own.

Names, types, labels and buckets of `vllm:*` are vLLM's (0.10 and later, V1 engine), so dashboards,
load testers and the Gateway API's endpoint picker work unchanged. Sums of token counters equal the
`usage` of all answers, those of cancelled requests included.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from servewright_runtime.engine.engine import EngineStats
from servewright_runtime.engine.observer import RequestStats, StepStats
from servewright_runtime.engine.requests import FinishReason
from servewright_runtime.models.runner import BLOCK_TOKENS

_MODEL = ("model_name",)
# vLLM's word for each ending.
_FINISHED = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}

_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)
# 1-2-5 up to the longest context that is served today.
_TOKENS = tuple(mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5))[:-2]
_STEP_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """All metrics of a process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry)
        self._engines = _EngineFamilies(self.registry)

    def engine(self, model: str) -> EngineMetrics:
        """The observer for one model's engine; `bind` it once the engine is there."""
        return EngineMetrics(self._engines, model)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class HttpMetrics:
    """What the HTTP side counts, once a request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = Counter(
            "servewright_http_requests",
            "Requests answered, by path template and status; 0 is a client that left before.",
            ("model_name", "path", "status"),
            registry=registry,
        )
        self._disconnects = Counter(
            "servewright_http_disconnects",
            "Clients that left before their answer was complete.",
            _MODEL,
            registry=registry,
        )
        self._n = Histogram(
            "vllm:request_params_n",
            "The n of each request.",
            _MODEL,
            buckets=_CHOICES,
            registry=registry,
        )
        self._max_tokens = Histogram(
            "vllm:request_params_max_tokens",
            "The max_tokens of each request that gave one.",
            _MODEL,
            buckets=_TOKENS,
            registry=registry,
        )

    def on_answer(self, model: str, route: str, status: int | None, *, disconnected: bool) -> None:
        """After each request. route: the path's template, "" for a path that leads nowhere: such
        paths are the client's words and would make series without end."""
        self._answers.labels(model, route or "other", str(status or 0)).inc()
        if disconnected:
            self._disconnects.labels(model).inc()

    def on_generation(self, model: str, n: int, max_tokens: int | None) -> None:
        """A request for text was understood."""
        self._n.labels(model).observe(n)
        if max_tokens is not None:
            self._max_tokens.labels(model).observe(max_tokens)


class _EngineFamilies:
    """The metric families that engines share, told apart by `model_name`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = _MODEL) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = _MODEL) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _MODEL, buckets=buckets, registry=registry)

        self.running = gauge("vllm:num_requests_running", "Sequences in the running batch.")
        self.waiting = gauge("vllm:num_requests_waiting", "Sequences waiting to run.")
        self.kv_usage = gauge("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.")
        self.cache_config = gauge(
            "vllm:cache_config_info",
            "The KV cache's shape, in labels.",
            ("model_name", "block_size", "num_gpu_blocks"),
        )
        self.preemptions = counter("vllm:num_preemptions", "Sequences preempted, to be recomputed.")
        self.prefix_queries = counter(
            "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache."
        )
        self.prefix_hits = counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of ended sequences.")
        self.cached_tokens = counter(
            "vllm:prompt_tokens_cached", "Prompt tokens that the prefix cache held."
        )
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.finished = counter(
            "vllm:request_success", "Sequences ended, by reason.", ("model_name", "finished_reason")
        )
        self.step_tokens = histogram(
            "vllm:iteration_tokens_total", "Tokens of a step, prefill and decode.", _STEP_TOKENS
        )
        self.first_token_s = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN_S
        )
        self.inter_token_s = histogram(
            "vllm:inter_token_latency_seconds", "From a token to the next.", _TOKEN_S
        )
        self.per_token_s = histogram(
            "vllm:request_time_per_output_token_seconds",
            "A sequence's mean time between tokens.",
            _TOKEN_S,
        )
        self.e2e_s = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST_S
        )
        self.queue_s = histogram(
            "vllm:request_queue_time_seconds", "From arrival to the first step.", _REQUEST_S
        )
        self.inference_s = histogram(
            "vllm:request_inference_time_seconds",
            "From the first step to the last token.",
            _REQUEST_S,
        )
        self.prefill_s = histogram(
            "vllm:request_prefill_time_seconds",
            "From the first step to the first token.",
            _REQUEST_S,
        )
        self.decode_s = histogram(
            "vllm:request_decode_time_seconds",
            "From the first token to the last.",
            _REQUEST_S,
        )
        self.request_prompt = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a sequence.", _TOKENS
        )
        self.request_generation = histogram(
            "vllm:request_generation_tokens", "Generated tokens of a sequence.", _TOKENS
        )
        self.step_s = histogram("servewright_step_seconds", "Duration of an engine step.", _STEP_S)


class EngineMetrics:
    """An EngineObserver: counts one engine's work. All but `bind` is the engine thread's."""

    def __init__(self, families: _EngineFamilies, model: str) -> None:
        self._families = families
        self._model = model
        # Children are looked up once; a label look-up costs more than an increment.
        self._preemptions = families.preemptions.labels(model)
        self._prefix_queries = families.prefix_queries.labels(model)
        self._prefix_hits = families.prefix_hits.labels(model)
        self._prompt_tokens = families.prompt_tokens.labels(model)
        self._cached_tokens = families.cached_tokens.labels(model)
        self._generation_tokens = families.generation_tokens.labels(model)
        self._finished = {
            reason: families.finished.labels(model, word) for reason, word in _FINISHED.items()
        }
        self._step_tokens = families.step_tokens.labels(model)
        self._first_token_s = families.first_token_s.labels(model)
        self._inter_token_s = families.inter_token_s.labels(model)
        self._per_token_s = families.per_token_s.labels(model)
        self._e2e_s = families.e2e_s.labels(model)
        self._queue_s = families.queue_s.labels(model)
        self._inference_s = families.inference_s.labels(model)
        self._prefill_s = families.prefill_s.labels(model)
        self._decode_s = families.decode_s.labels(model)
        self._request_prompt = families.request_prompt.labels(model)
        self._request_generation = families.request_generation.labels(model)
        self._step_s = families.step_s.labels(model)

    def bind(self, stats: Callable[[], EngineStats]) -> None:
        """Read the gauges from `stats` whenever metrics are rendered: they are never stale."""
        families, model = self._families, self._model
        families.running.labels(model).set_function(lambda: stats().running)
        families.waiting.labels(model).set_function(lambda: stats().waiting)

        def usage() -> float:
            now = stats()
            return now.kv_blocks_used / now.kv_blocks

        families.kv_usage.labels(model).set_function(usage)
        blocks = str(stats().kv_blocks)
        families.cache_config.labels(model, str(BLOCK_TOKENS), blocks).set(1)

    def on_step(self, stats: StepStats) -> None:
        """After each step."""
        self._step_tokens.observe(stats.prefill_tokens + stats.decode_tokens)
        self._step_s.observe(stats.seconds)
        drawn = len(stats.first_token_s) + len(stats.inter_token_s)
        if drawn:
            self._generation_tokens.inc(drawn)
        for seconds in stats.first_token_s:
            self._first_token_s.observe(seconds)
        for seconds in stats.inter_token_s:
            self._inter_token_s.observe(seconds)

    def on_finish(self, stats: RequestStats) -> None:
        """After each request's last output."""
        usage, timing = stats.usage, stats.timing
        self._finished[stats.finish_reason].inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._request_prompt.observe(usage.prompt_tokens)
        self._request_generation.observe(usage.completion_tokens)
        inference_s = timing.prefill_s + timing.decode_s
        self._queue_s.observe(timing.queue_s)
        self._prefill_s.observe(timing.prefill_s)
        self._decode_s.observe(timing.decode_s)
        self._inference_s.observe(inference_s)
        self._e2e_s.observe(timing.queue_s + inference_s)
        if usage.completion_tokens > 1:
            self._per_token_s.observe(timing.decode_s / (usage.completion_tokens - 1))

    def on_preempted(self, sequences: int) -> None:
        """Sequences that gave their KV blocks back and will be recomputed."""
        self._preemptions.inc(sequences)

    def on_prefix(self, queried_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self._prefix_queries.inc(queried_tokens)
        self._prefix_hits.inc(hit_tokens)
