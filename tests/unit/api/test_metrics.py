"""Metric names, types and values, as scrapers read them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from servewright_runtime.engine.engine import EngineStats
from servewright_runtime.engine.observer import EngineObserver, RequestStats, StepStats
from servewright_runtime.engine.requests import FinishReason, SamplingParams, Timing, Usage
from servewright_runtime.metrics import Metrics

# What kubernetes-sigs/inference-perf and the Gateway API's endpoint picker ask a vLLM server for.
SCRAPED = {
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:prompt_tokens_cached": "counter",
    "vllm:request_success": "counter",
    "vllm:num_preemptions": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:cache_config_info": "gauge",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_params_n": "histogram",
    "vllm:request_params_max_tokens": "histogram",
    "vllm:iteration_tokens_total": "histogram",
}


def stats() -> EngineStats:
    return EngineStats(
        running=2, waiting=3, kv_blocks_used=25, kv_blocks=100, last_step_at=0.0, failed=None
    )


def busy() -> Metrics:
    """Metrics of a model `m` that has done some work."""
    metrics = Metrics()
    observer = metrics.engine("m")
    observer.bind(stats)
    engine: EngineObserver = observer
    engine.on_step(
        StepStats(
            prefill_tokens=10,
            decode_tokens=2,
            running=3,
            waiting=0,
            kv_blocks_used=5,
            kv_blocks=100,
            seconds=0.02,
            first_token_s=(0.3,),
            inter_token_s=(0.02, 0.02),
        )
    )
    engine.on_preempted(1)
    engine.on_prefix(100, 64)
    for reason in FinishReason:
        engine.on_finish(
            RequestStats(
                request_id="r",
                finish_reason=reason,
                usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4),
                timing=Timing(queue_s=0.1, prefill_s=0.2, decode_s=0.4),
                sampling=SamplingParams(),
            )
        )
    metrics.http.on_generation("m", 2, 50)
    metrics.http.on_answer("m", "/v1/completions", 200, disconnected=False)
    metrics.http.on_answer("", "", 404, disconnected=False)
    metrics.http.on_answer("m", "/v1/completions", None, disconnected=True)
    return metrics


def test_every_scraped_name_is_there_with_its_type_and_the_models_name() -> None:
    rendered = busy().render().decode()
    families = {f.name: f for f in text_string_to_metric_families(rendered)}
    for name, kind in SCRAPED.items():
        assert families[name].type == kind, name
        assert {s.labels["model_name"] for s in families[name].samples} == {"m"}


def test_counts_are_those_of_the_engine() -> None:
    registry = busy().registry

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", **labels})

    assert sample("vllm:generation_tokens_total") == 3
    assert sample("vllm:prompt_tokens_total") == 40
    assert sample("vllm:prompt_tokens_cached_total") == 16
    assert sample("vllm:prefix_cache_queries_total") == 100
    assert sample("vllm:prefix_cache_hits_total") == 64
    assert sample("vllm:num_preemptions_total") == 1
    for reason in ("stop", "length", "abort", "error"):
        assert sample("vllm:request_success_total", finished_reason=reason) == 1
    assert sample("vllm:num_requests_running") == 2
    assert sample("vllm:num_requests_waiting") == 3
    assert sample("vllm:kv_cache_usage_perc") == 0.25
    assert sample("vllm:cache_config_info", block_size="16", num_gpu_blocks="100") == 1
    assert sample("vllm:time_to_first_token_seconds_count") == 1
    assert sample("vllm:inter_token_latency_seconds_count") == 2
    assert sample("vllm:iteration_tokens_total_sum") == 12
    assert sample("vllm:request_params_n_sum") == 2
    answers = "servewright_http_requests_total"
    assert sample(answers, path="/v1/completions", status="200") == 1
    assert sample(answers, path="/v1/completions", status="0") == 1
    lost = {"model_name": "", "path": "other", "status": "404"}
    assert registry.get_sample_value(answers, lost) == 1
    assert sample("servewright_http_disconnects_total") == 1


def test_a_time_per_token_needs_two_tokens() -> None:
    metrics = Metrics()
    engine = metrics.engine("m")
    for tokens in (0, 1, 5):
        engine.on_finish(
            RequestStats(
                "r",
                FinishReason.STOP,
                Usage(1, tokens, 0),
                Timing(0.0, 0.0, 0.4),
                SamplingParams(),
            )
        )
    name = "vllm:request_time_per_output_token_seconds"
    assert metrics.registry.get_sample_value(f"{name}_count", {"model_name": "m"}) == 1
    assert metrics.registry.get_sample_value(f"{name}_sum", {"model_name": "m"}) == 0.1
