"""From a manifest to the replica's numbers."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.config import (
    ReplicaModel,
    check_accelerators,
    check_served_names,
    dump_models,
    kv_plan,
    load_models,
    resolve,
)
from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError
from servewright_runtime.hardware import Hardware
from servewright_runtime.models.runner import BLOCK_TOKENS, LlamaConfig
from support.manifests import make_service

GPU = {"type": "nvidia"}
MACHINE = Hardware(4, 8 * 2**30, "x86_64", "Linux", "A Fine CPU")


def make_replica_model(
    changes: dict[str, Any] | None = None, *, models: int = 1, memory_bytes: int = 8 * 2**30
) -> ReplicaModel:
    return resolve(
        make_service(changes),
        revision="0123456789",
        path=Path("/models/mine.gguf"),
        digest=None,
        keys_dir=Path("/keys"),
        hardware=dataclasses.replace(MACHINE, memory_bytes=memory_bytes),
        models=models,
    )


def make_llama_config(*, context_length: int = 2048) -> LlamaConfig:
    """30 layers of 3 KV heads of 64: SmolLM2's 23,040 bytes of cache a token."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn_size=1536,
        norm_eps=1e-5,
        rope_base=1e5,
        rope_dims=64,
        rope_scale=1.0,
        rope_factors=None,
        context_length=context_length,
        tied_head=True,
    )


def test_threads_are_the_cpus_unless_given() -> None:
    assert make_replica_model().threads == 4
    assert make_replica_model({"spec.engine.threads": 2}).threads == 2


def test_a_step_holds_every_decode_of_a_large_batch() -> None:
    assert make_replica_model().max_step_tokens == 512
    assert make_replica_model({"spec.engine.maxBatch": 256}).max_step_tokens >= 256


def test_open_needs_no_keys_and_api_key_has_a_folder() -> None:
    assert make_replica_model().keys_dir == "/keys"
    opened = make_replica_model({"spec.access.mode": "Open"})
    assert opened.keys_dir is None
    assert opened.is_open


def test_models_cross_processes_unchanged() -> None:
    changes: list[dict[str, Any]] = [{}, {"spec.probe.expect": "Pariß"}, {"spec.accelerator": GPU}]
    models = [make_replica_model(each) for each in changes]
    assert load_models(dump_models(models)) == models


def test_more_cache_than_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"kvCache is 9Gi \(9663676416 bytes\).*8589934592"):
        make_replica_model({"spec.engine.kvCache": "9Gi"})


def test_a_cache_in_a_devices_memory_may_be_larger_than_the_hosts() -> None:
    model = make_replica_model({"spec.engine.kvCache": "9Gi", "spec.accelerator": GPU})
    assert (model.accelerator, model.kv_bytes) == ("nvidia", 9 * 2**30)
    assert make_replica_model().accelerator is None


def test_a_missing_device_is_told_of_the_model_that_wants_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = [make_service(), make_service({"metadata.name": "fast", "spec.accelerator": GPU})]
    monkeypatch.setattr(availability, "unavailable", lambda: None)
    check_accelerators(services)
    monkeypatch.setattr(availability, "unavailable", lambda: "There is no driver; install it.")
    check_accelerators(services[:1])
    with pytest.raises(ConfigError) as caught:
        check_accelerators(services)
    assert caught.value.message == (
        "ModelService default/fast: spec.accelerator asks for a GPU, but none can be used here "
        "(There is no driver; install it); mend that or remove spec.accelerator."
    )


def test_one_served_name_means_one_model() -> None:
    one = make_service()
    two = make_service({"metadata.name": "two", "spec.model.name": "mine"})
    check_served_names([one, make_service({"metadata.name": "two"})])
    with pytest.raises(
        ConfigError, match=r"default/two: spec\.model\.name mine is served by .*mine"
    ):
        check_served_names([one, two])


def test_the_cache_holds_every_sequence_where_memory_allows() -> None:
    plan = kv_plan(make_llama_config(), make_replica_model())
    assert plan.max_model_len == 2048
    assert plan.num_blocks == 32 * 2048 // BLOCK_TOKENS


def test_the_cache_takes_at_most_a_quarter_of_the_memory_and_models_share_it() -> None:
    config = make_llama_config(context_length=131072)
    block_bytes = config.kv_bytes_per_token * BLOCK_TOKENS
    alone = kv_plan(config, make_replica_model())
    shared = kv_plan(config, make_replica_model(models=2))
    assert alone.num_blocks == 2 * 2**30 // block_bytes
    assert shared.num_blocks == 2**30 // block_bytes


def test_a_cache_on_a_device_takes_what_its_memory_leaves_and_no_quarter_of_the_hosts() -> None:
    config, model = make_llama_config(), make_replica_model()
    block_bytes = config.kv_bytes_per_token * BLOCK_TOKENS
    wanted = kv_plan(config, model, device_bytes=1 << 40)
    assert wanted == kv_plan(config, dataclasses.replace(model, kv_limit_bytes=1 << 40))
    scarce = kv_plan(
        config, dataclasses.replace(model, max_model_len=32), device_bytes=5 * block_bytes + 1
    )
    assert scarce.num_blocks == 5
    with pytest.raises(
        ConfigError, match=r"kvCache is \d+ bytes, but weights and workspaces leave 9"
    ):
        kv_plan(config, dataclasses.replace(model, kv_bytes=10), device_bytes=9)


def test_the_longest_sequence_is_reduced_to_what_fits_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_llama_config(context_length=131072)
    with caplog.at_level(logging.INFO):
        plan = kv_plan(config, make_replica_model(memory_bytes=2**30))
    assert plan.max_model_len == plan.num_blocks * BLOCK_TOKENS < 131072
    (record,) = (r for r in caplog.records if hasattr(r, "kv_blocks"))
    assert vars(record)["max_model_len"] == plan.max_model_len
    assert vars(record)["context_length"] == 131072


def test_a_given_cache_is_used_whole() -> None:
    config = make_llama_config()
    plan = kv_plan(config, make_replica_model({"spec.engine.kvCache": "4Gi"}))
    assert plan.num_blocks == 4 * 2**30 // (config.kv_bytes_per_token * BLOCK_TOKENS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec.engine.maxModelLen": 4096}, "maxModelLen is 4096, but .* for 2048 tokens"),
        (
            {"spec.engine.maxModelLen": 2048, "spec.engine.kvCache": "16Mi"},
            "takes 47185920 bytes of KV cache, but it may take 16777216",
        ),
        ({"spec.engine.kvCache": "1Ki"}, "may take 1024 bytes, but one block .* takes 368640"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kv_plan(make_llama_config(), make_replica_model(changes))


def test_a_context_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="a context of 1 token"):
        kv_plan(make_llama_config(context_length=1), make_replica_model())


@given(
    memory_bytes=st.integers(2**20, 2**36),
    context_length=st.integers(2, 2**20),
    max_batch=st.integers(1, 256),
)
def test_one_sequence_of_the_longest_always_fits(
    memory_bytes: int, context_length: int, max_batch: int
) -> None:
    model = make_replica_model({"spec.engine.maxBatch": max_batch}, memory_bytes=memory_bytes)
    config = make_llama_config(context_length=context_length)
    try:
        plan = kv_plan(config, model)
    except ConfigError:
        assert model.kv_limit_bytes < config.kv_bytes_per_token * BLOCK_TOKENS
        return
    assert 1 <= plan.max_model_len <= min(context_length, plan.num_blocks * BLOCK_TOKENS)
    assert plan.num_blocks * BLOCK_TOKENS * config.kv_bytes_per_token <= model.kv_limit_bytes
