"""The Llama architecture as GGUF states it: from metadata and tensor table to a LlamaConfig.

Every tensor's name and shape is checked here, so the runners meet only models that they know.
What would change the arithmetic and is not known here is refused by name, never ignored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import NoReturn

import numpy as np

from servewright_runtime.errors import ConfigError
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.gguf_header import TensorInfo
from servewright_runtime.models.runner import LlamaConfig

log = logging.getLogger(__name__)

ARCHITECTURE = "llama"

# Far above any known model; they keep products of two within 63 bits and a mistake's cost low.
_MAX = {
    "vocab_size": 1 << 20,
    "embedding_length": 1 << 16,
    "block_count": 1 << 10,
    "attention.head_count": 1 << 10,
    "attention.head_count_kv": 1 << 10,
    "attention.key_length": 1 << 10,
    "feed_forward_length": 1 << 20,
    "context_length": 1 << 24,
    "rope.dimension_count": 1 << 10,
}

# Keys that change what the model computes, and the values at which they do not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (),
    "attention.sliding_window": (0,),
    "attention.temperature_scale": (),
    "embedding_scale": (1.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "nextn_predict_layers": (0,),
    "residual_scale": (1.0,),
    "use_parallel_residual": (False,),
}

_READ = {
    *_MAX,
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.type",
    # These say how the model was made and change nothing in how it runs.
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
}


def read_config(file: GGUFFile) -> LlamaConfig:
    """The configuration of the model in `file`, whose tensors are all there with their shapes.

    Raises ConfigError naming what is not a plain Llama model.
    """
    _check_architecture(file)
    hidden = _count(file, "embedding_length")
    heads = _count(file, "attention.head_count")
    kv_heads = _count(file, "attention.head_count_kv", default=heads)
    head_dim = _head_dim(file, hidden, heads)
    rope_dims = _count(file, "rope.dimension_count", default=head_dim)
    eps = file.get(_key("attention.layer_norm_rms_epsilon"), float)
    rope_base = file.get(_key("rope.freq_base"), float, 10000.0)
    if heads % kv_heads:
        _fail(file, f"has {heads} attention heads for {kv_heads} key-value heads")
    if rope_dims % 2 or rope_dims > head_dim:
        _fail(file, f"rotates {rope_dims} dimensions of heads of {head_dim}")
    if not 0 < eps < 1:
        _fail(file, f"has the norm epsilon {eps}")
    if not 1 <= rope_base < math.inf:
        _fail(file, f"has the RoPE base {rope_base}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        _fail(file, "has no tensor token_embd.weight")
    vocab_size = _count(file, "vocab_size", default=embedding.rows)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        layers=_count(file, "block_count"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=_count(file, "feed_forward_length"),
        norm_eps=eps,
        rope_base=rope_base,
        rope_dims=rope_dims,
        rope_scale=_rope_scale(file),
        rope_factors=_rope_factors(file, rope_dims),
        context_length=_count(file, "context_length"),
        tied_head="output.weight" not in file.tensors,
    )
    _check_tensors(file, config)
    return config


def tensor_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and GGUF shape (row length first) of every tensor of a model of this configuration."""
    hidden, ffn = config.hidden_size, config.ffn_size
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "token_embd.weight", (hidden, config.vocab_size)
    for layer in range(config.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        yield f"{block}.attn_q.weight", (hidden, q_rows)
        yield f"{block}.attn_k.weight", (hidden, kv_rows)
        yield f"{block}.attn_v.weight", (hidden, kv_rows)
        yield f"{block}.attn_output.weight", (q_rows, hidden)
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (hidden, ffn)
        yield f"{block}.ffn_up.weight", (hidden, ffn)
        yield f"{block}.ffn_down.weight", (ffn, hidden)
    yield "output_norm.weight", (hidden,)
    if not config.tied_head:
        yield "output.weight", (hidden, config.vocab_size)
    if config.rope_factors is not None:
        yield "rope_freqs.weight", (config.rope_dims // 2,)


def _check_architecture(file: GGUFFile) -> None:
    name = file.get("general.architecture", str)
    if name != ARCHITECTURE:
        raise ConfigError(
            f"{file.path}: the model's architecture is {name!r}, but only {ARCHITECTURE!r} is "
            "served; choose a model of the Llama architecture (Llama 3, SmolLM2)."
        )
    prefix = _key("")
    for key, value in file.metadata.items():
        if not key.startswith(prefix):
            continue
        short = key.removeprefix(prefix)
        if short in _NEUTRAL:
            if not isinstance(value, str | int | float) or value not in _NEUTRAL[short]:
                _fail(file, f"sets {key}, which is not supported")
        elif short not in _READ:
            log.warning("unknown model metadata", extra={"key": key, "path": str(file.path)})


def _check_tensors(file: GGUFFile, config: LlamaConfig) -> None:
    expected = dict(tensor_shapes(config))
    for name in file.tensors:
        if name not in expected:
            _fail(file, f"has the tensor {name}, which a plain Llama model has not")
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            _fail(file, f"has no tensor {name}")
        if tensor.shape != shape:
            _fail(file, f"has {name} of shape {tensor.shape}, but its metadata ask for {shape}")
        if len(shape) == 1 and tensor.type != "F32":
            _fail(file, f"has {name} as {tensor.type}, but vectors are F32 in GGUF files")


def _count(file: GGUFFile, short: str, *, default: int | None = None) -> int:
    key = _key(short)
    value = file.get(key, int, default)
    if not 1 <= value <= _MAX[short]:
        _fail(file, f"has {key} {value}, which should be 1 to {_MAX[short]}")
    return value


def _head_dim(file: GGUFFile, hidden: int, heads: int) -> int:
    if hidden % heads and _key("attention.key_length") not in file.metadata:
        _fail(file, f"has {heads} attention heads for an embedding of {hidden}")
    head_dim = _count(file, "attention.key_length", default=max(hidden // heads, 1))
    value_dim = file.get(_key("attention.value_length"), int, head_dim)
    if value_dim != head_dim:
        _fail(file, f"has keys of {head_dim} and values of {value_dim} dimensions")
    return head_dim


def _rope_scale(file: GGUFFile) -> float:
    kind = file.get(_key("rope.scaling.type"), str, "linear")
    if kind not in ("none", "linear"):
        _fail(file, f"scales RoPE by {kind!r}; only linear scaling and Llama 3's are supported")
    old = file.get(_key("rope.scale_linear"), float, 1.0)  # the key's name until August 2023
    factor = file.get(_key("rope.scaling.factor"), float, old)
    if kind == "none":
        return 1.0
    if not 0 < factor < math.inf:
        _fail(file, f"has the RoPE scaling factor {factor}")
    return 1.0 / factor


def _rope_factors(file: GGUFFile, rope_dims: int) -> tuple[float, ...] | None:
    tensor: TensorInfo | None = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    if tensor.shape != (rope_dims // 2,) or tensor.type != "F32":
        _fail(
            file, f"has rope_freqs.weight of {tensor.type} {tensor.shape}, not F32 {rope_dims // 2}"
        )
    factors = file.read_rows(tensor, 0, 1).view(np.float32)[0]
    if not bool(np.isfinite(factors).all()) or not bool((factors > 0).all()):
        _fail(file, "has RoPE factors in rope_freqs.weight that are not positive numbers")
    return tuple(float(factor) for factor in factors)


def _key(short: str) -> str:
    return f"{ARCHITECTURE}.{short}"


def _fail(file: GGUFFile, what: str) -> NoReturn:
    raise ConfigError(f"{file.path}: {what}; choose a model of the plain Llama architecture.")
