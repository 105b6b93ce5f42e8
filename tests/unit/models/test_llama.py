"""What is a plain Llama model, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config, tensor_shapes
from servewright_runtime.models.runner import LlamaConfig
from support.tiny import make_tiny_gguf


def config_of(path: Path) -> LlamaConfig:
    with GGUFFile(path) as file:
        return read_config(file)


def test_the_header_becomes_a_configuration(tmp_path: Path) -> None:
    factors = [1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0]
    path = make_tiny_gguf(tmp_path / "m.gguf", tied=False, rope_base=500000.0, rope_factors=factors)
    assert config_of(path) == LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn_size=96,
        norm_eps=float(np.float32(1e-5)),
        rope_base=500000.0,
        rope_dims=16,
        rope_scale=1.0,
        rope_factors=tuple(factors),
        context_length=512,
        tied_head=False,
    )


def test_what_a_header_may_leave_out_has_its_default(tmp_path: Path) -> None:
    path = make_tiny_gguf(
        tmp_path / "m.gguf",
        kv_heads=4,
        omit=(
            "llama.attention.head_count_kv",
            "llama.rope.freq_base",
            "llama.rope.dimension_count",
            "llama.vocab_size",
        ),
    )
    config = config_of(path)
    assert (config.kv_heads, config.rope_base, config.rope_dims) == (4, 10000.0, 16)
    assert config.vocab_size == 384
    assert config.tied_head


def test_linear_scaling_multiplies_positions(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", rope_scale_factor=4.0)
    assert config_of(path).rope_scale == 0.25


def test_scaling_of_type_none_ignores_the_factor(tmp_path: Path) -> None:
    path = make_tiny_gguf(
        tmp_path / "m.gguf",
        rope_scale_factor=4.0,
        metadata={"llama.rope.scaling.type": "none"},
    )
    assert config_of(path).rope_scale == 1.0


def test_a_head_may_be_wider_than_its_share_of_the_embedding(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", head_dim=32)
    config = config_of(path)
    assert (config.hidden_size, config.heads, config.head_dim) == (64, 4, 32)
    assert dict(tensor_shapes(config))["blk.0.attn_output.weight"] == (128, 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "qwen2"}, "'qwen2', but only 'llama'"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "scales RoPE by 'yarn'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count, which is not supported"),
    "a logit scale": ({"llama.logit_scale": 0.5}, "llama.logit_scale, which is not supported"),
    "an attention scale": ({"llama.attention.scale": 0.1}, "llama.attention.scale"),
    "a sliding window": ({"llama.attention.sliding_window": 64}, "sliding_window"),
    "no causal mask": ({"llama.attention.causal": False}, "llama.attention.causal"),
    "values wider than keys": ({"llama.attention.value_length": 32}, "values of 32"),
    "heads that do not share evenly": ({"llama.attention.head_count_kv": 3}, "3 key-value heads"),
    "no layers": ({"llama.block_count": 0}, "llama.block_count 0, which should be 1 to"),
    "a million layers": ({"llama.block_count": 10**6}, "llama.block_count 1000000"),
    "fewer layers than tensors": ({"llama.block_count": 1}, "has the tensor blk.1."),
    "more layers than tensors": ({"llama.block_count": 3}, "has no tensor blk.2."),
    "another width": ({"llama.embedding_length": 128}, "shape (64, 384), but its metadata"),
    "another vocabulary": ({"llama.vocab_size": 400}, "shape (64, 384)"),
    "a width that is text": ({"llama.embedding_length": "64"}, "a whole number, but is text"),
    "odd rotation": ({"llama.rope.dimension_count": 15}, "rotates 15 dimensions"),
    "more rotation than head": ({"llama.rope.dimension_count": 32}, "rotates 32 dimensions"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon 0.0"),
    "an epsilon that is no number": (
        {"llama.attention.layer_norm_rms_epsilon": float("nan")},
        "epsilon nan",
    ),
    "an endless base": ({"llama.rope.freq_base": float("inf")}, "RoPE base inf"),
    "a factor of zero": ({"llama.rope.scaling.factor": 0.0}, "scaling factor 0.0"),
    "no context": ({"llama.context_length": 0}, "llama.context_length 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_plain_llama_model_is_refused_by_name(tmp_path: Path, case: str) -> None:
    metadata, wanted = REFUSED[case]
    path = make_tiny_gguf(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(ConfigError) as caught:
        config_of(path)
    assert wanted in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.0.attn_q_norm.weight"]
)
def test_a_tensor_that_is_not_known_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", extra_vectors={name: [0.0] * 32})
    with pytest.raises(ConfigError, match=f"has the tensor {name}"):
        config_of(path)


@pytest.mark.parametrize("factors", [[1.0] * 7, [0.0] * 8, [float("nan")] * 8])
def test_rope_factors_are_as_many_positive_numbers_as_pairs(
    tmp_path: Path, factors: list[float]
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", rope_factors=factors)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        config_of(path)


def test_a_key_that_is_not_known_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", metadata={"llama.something_new": 1})
    config_of(path)
    assert [record.key for record in caplog.records] == ["llama.something_new"]  # type: ignore[attr-defined]
