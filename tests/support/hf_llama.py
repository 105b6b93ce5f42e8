"""The independent reference: `transformers`' Llama on a GGUF file's weights, in float32.

Read with the `gguf` package, not with our reader, and configured from the metadata by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import quants
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_llama(path: Path, rope: Mapping[str, Any] | None = None) -> LlamaForCausalLM:
    """The model in `path`. rope: fields of `rope_parameters` beside the base and default type."""
    reader = gguf.GGUFReader(path)

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(f"llama.{name}")
        return default if found is None else found.contents()

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads, hidden = field("attention.head_count"), field("embedding_length")
    kv_heads = field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=hidden,
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=field("attention.key_length", hidden // heads),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=field("context_length"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": field("rope.freq_base"),
            **(rope or {}),
        },
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    state = {}
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            continue
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(dim) for dim in reversed(tensor.shape)])
        role = name.split(".")[-2]
        if role in ("attn_q", "attn_k"):
            values = _unpermuted(values, heads if role == "attn_q" else kv_heads)
        if name in _TOP_NAMES:
            state[_TOP_NAMES[name]] = torch.from_numpy(values)
        else:
            layer = name.split(".")[1]
            state[f"model.layers.{layer}.{_NAMES[role]}.weight"] = torch.from_numpy(values)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb.__init__(config)  # its buffers are made, not loaded
    return model.eval()


def hf_logits(model: LlamaForCausalLM, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits after each token: [tokens, vocab]."""
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def hf_greedy(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """`count` greedy tokens after each prompt, all prompts in one batch padded at the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    texts: list[list[int]] = out[:, width:].tolist()
    return texts


def _unpermuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """GGUF turns adjacent rows (2i, 2i + 1) of a head; transformers turns (i, i + half)."""
    rows, cols = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, cols)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, cols))
