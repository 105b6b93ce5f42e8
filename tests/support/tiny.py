"""Small Llama models as GGUF files, made from a seed in a fraction of a second.

The tokenizer is a real byte-level BPE (all 256 bytes, some English merges, control tokens); the
weights are random, of any type the `gguf` package can dequantise, and scaled so that greedy text
varies. `make_large_gguf` writes files of any size for memory measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as TensorType
from gguf import quants

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_ID, IM_START_ID, IM_END_ID = 0, 1, 2

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Each merge joins two tokens that exist by then. "Ġ" is the space of the byte alphabet.
_MERGES = """
Ġ t|h e|Ġt he|i n|r e|Ġ a|o n|Ġ s|n d|Ġ w|e r|Ġ o|o u|Ġa nd|a t|Ġ c|i s|in g|Ġ b|Ġ f|o r|e n|a n
e s|Ġo f|i t|a r|Ġt o|Ġ h|Ġ in|e d|l l|Ġ p|Ġ m|Ġ is|Ġ I|Ġ y|Ġy ou|l o|H e|He ll|Hell o|Ġw or|l d
Ġwor ld|o m|Ġ d|v er|. .|.. .|Ġ Ġ|ĠĠ ĠĠ|ĠĠĠĠ ĠĠĠĠ|u n|c t|i on|ct ion|f un|fun ction
"""

# Types that `gguf` reads but cannot write: blocks of random bits whose scales, float16 at these
# offsets, are then set so that the weights have the wanted spread.
_SCALE_OFFSETS = {
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ2_XXS: (0,),
    TensorType.IQ2_XS: (0,),
    TensorType.IQ2_S: (0,),
    TensorType.IQ3_XXS: (0,),
    TensorType.IQ3_S: (0,),
    TensorType.IQ1_S: (0,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
}

# Every type whose tensors a test can make and `gguf` can dequantise.
TENSOR_TYPES: tuple[str, ...] = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
)  # fmt: skip


class TinyShape(TypedDict):
    """Sizes that `make_tiny_gguf` takes."""

    hidden: int
    ffn: int


def tiny_shape(tensor_type: str) -> TinyShape:
    """The arguments of `make_tiny_gguf` that make rows of whole blocks of `tensor_type`."""
    block = gguf.GGML_QUANT_SIZES[TensorType[tensor_type]][0]
    return {"hidden": max(64, block), "ffn": 96 if block <= 32 else max(128, block)}


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars, spare = [], 256
    for byte in range(256):
        if byte in plain:
            chars.append(chr(byte))
        else:
            chars.append(chr(spare))
            spare += 1
    return chars


def tiny_vocab(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types (1 normal, 3 control, 5 unused) and merges of a vocabulary of `size`."""
    merges = [merge for line in _MERGES.strip().splitlines() for merge in line.split("|")]
    normal = sorted(byte_alphabet()) + ["".join(merge.split(" ")) for merge in merges]
    assert len(set(normal)) == len(normal)
    unused = size - len(CONTROL_TOKENS) - len(normal)
    assert unused >= 0, f"vocab is {size}, but the tokens alone are {size - unused}"
    tokens = [*CONTROL_TOKENS, *normal, *(f"<unused{i}>" for i in range(unused))]
    types = [3] * len(CONTROL_TOKENS) + [1] * len(normal) + [5] * unused
    return tokens, types, merges


def random_tensor(
    rng: np.random.Generator, rows: int, cols: int, tensor_type: TensorType, std: float
) -> npt.NDArray[np.generic]:
    """Random weights of about `std`, as GGUFWriter wants them: float32/float16 or raw bytes."""
    if tensor_type not in _SCALE_OFFSETS and tensor_type != TensorType.IQ1_M:
        weights = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(std)
        if tensor_type == TensorType.F32:
            return weights
        if tensor_type == TensorType.F16:
            return weights.astype(np.float16)
        if tensor_type != TensorType.NVFP4:
            return quants.quantize(weights, tensor_type)
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
    assert cols % block == 0, f"rows of {tensor_type.name} are multiples of {block}"
    raw = rng.integers(0, 256, (rows, cols // block, block_bytes), dtype=np.uint8)
    if tensor_type == TensorType.NVFP4:
        # Four unsigned e4m3 scales for 64 values of about +-3: 2**(e-7) with e near the spread.
        exponent = round(np.log2(std / 3)) + 7
        raw[:, :, :4] = np.clip(exponent, 1, 14) << 3
        return raw.reshape(rows, -1)
    _set_scale(raw, tensor_type, 1.0)
    spread = float(quants.dequantize(raw[:8].reshape(min(rows, 8), -1), tensor_type).std())
    _set_scale(raw, tensor_type, std / spread)
    return raw.reshape(rows, -1)


def _set_scale(raw: npt.NDArray[np.uint8], tensor_type: TensorType, scale: float) -> None:
    bits = np.float16(scale).view(np.uint16)
    if tensor_type == TensorType.IQ1_M:
        # The scale's four nibbles are the top nibbles of the last four 16-bit words.
        for word in range(4):
            nibble = np.uint8((int(bits) >> (4 * word)) & 15)
            high = raw[:, :, 49 + 2 * word]
            raw[:, :, 49 + 2 * word] = (high & 15) | (nibble << 4)
        return
    for offset in _SCALE_OFFSETS[tensor_type]:
        raw[:, :, offset : offset + 2] = np.frombuffer(bits.tobytes(), dtype=np.uint8)


def make_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    tensor_type: str = "Q8_0",
    tensor_types: Mapping[str, str] | None = None,
    head_type: str | None = None,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 96,
    vocab: int = 384,
    context_length: int = 512,
    tied: bool = True,
    rope_base: float = 10000.0,
    rope_dims: int | None = None,
    rope_factors: Sequence[float] | None = None,
    rope_scale_factor: float | None = None,
    chat_template: str | None = CHATML,
    add_bos: bool = False,
    pre: str = "gpt-2",
    metadata: Mapping[str, str | int | float | bool] | None = None,
    omit: Sequence[str] = (),
    extra_vectors: Mapping[str, Sequence[float]] | None = None,
    token_types: Mapping[str, int] | None = None,
    merges: Sequence[str] | None = None,
    same_layers: bool = False,
) -> Path:
    """Write a random Llama model to `path` and return it. The same arguments give the same bytes.

    tensor_type: of all matrices; tensor_types overrides it by tensor name ("blk.0.attn_q.weight")
    or role ("attn_q"); head_type is the embedding's (and an untied head's). Norms are F32.
    rope_scale_factor: linear scaling, as its GGUF key means it (positions are divided by it).
    metadata: further keys, of any name, that win over those written here; omit: keys left out.
    token_types: by token, instead of those of `tiny_vocab`; merges: instead of its merges.
    extra_vectors: further F32 tensors. same_layers: matrices of one shape hold the same numbers.
    """
    rng = np.random.default_rng(seed)
    head_dim = head_dim or hidden // heads
    fields: dict[str, str | int | float | bool] = {
        "general.name": "tiny",
        "llama.context_length": context_length,
        "llama.embedding_length": hidden,
        "llama.block_count": layers,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": rope_base,
        "llama.rope.dimension_count": rope_dims or head_dim,
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": IM_END_ID,
        "tokenizer.ggml.add_bos_token": add_bos,
    }
    if head_dim != hidden // heads:
        fields["llama.attention.key_length"] = head_dim
        fields["llama.attention.value_length"] = head_dim
    if rope_scale_factor is not None:
        fields["llama.rope.scaling.type"] = "linear"
        fields["llama.rope.scaling.factor"] = float(rope_scale_factor)
    if chat_template is not None:
        fields["tokenizer.chat_template"] = chat_template
    fields.update(metadata or {})

    writer = gguf.GGUFWriter(path, str(fields.pop("general.architecture", "llama")))
    for key, value in fields.items():
        if key not in omit:
            _add(writer, key, value)
    tokens, types, known_merges = tiny_vocab(vocab)
    changed = token_types or {}
    writer.add_token_list(tokens)
    writer.add_token_types(
        [changed.get(token, kind) for token, kind in zip(tokens, types, strict=True)]
    )
    writer.add_token_merges(known_merges if merges is None else merges)

    def type_of(name: str) -> TensorType:
        role = name.split(".")[-2]
        table = tensor_types or {}
        default = tensor_type
        if role in ("token_embd", "output"):
            default = head_type or tensor_type
        return TensorType[table.get(name, table.get(role, default))]

    made: dict[tuple[object, ...], npt.NDArray[np.generic]] = {}

    def matrix(name: str, rows: int, cols: int, gain: float) -> None:
        kind = type_of(name)
        key = (rows, cols, kind, None if same_layers else name)
        if key not in made:
            made[key] = random_tensor(rng, rows, cols, kind, gain / cols**0.5)
        writer.add_tensor(name, made[key], raw_dtype=kind)

    def vector(name: str, values: npt.NDArray[np.float32]) -> None:
        writer.add_tensor(name, values, raw_dtype=TensorType.F32)

    def norm(name: str) -> None:
        vector(name, (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32))

    # The gains make what a layer adds larger than the embedding, else a tied head would only
    # ever repeat its input.
    matrix("token_embd.weight", vocab, hidden, 2.5)
    for layer in range(layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm.weight")
        matrix(f"{block}.attn_q.weight", heads * head_dim, hidden, 1.5)
        matrix(f"{block}.attn_k.weight", kv_heads * head_dim, hidden, 1.5)
        matrix(f"{block}.attn_v.weight", kv_heads * head_dim, hidden, 2.0)
        matrix(f"{block}.attn_output.weight", hidden, heads * head_dim, 2.0)
        norm(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", ffn, hidden, 1.5)
        matrix(f"{block}.ffn_up.weight", ffn, hidden, 1.5)
        matrix(f"{block}.ffn_down.weight", hidden, ffn, 2.0)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", vocab, hidden, 2.5)
    if rope_factors is not None:
        vector("rope_freqs.weight", np.asarray(rope_factors, dtype=np.float32))
    for name, numbers in (extra_vectors or {}).items():
        vector(name, np.asarray(numbers, dtype=np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: str | int | float | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def make_large_gguf(path: Path, size: int, *, tensor_type: str = "Q4_0") -> Path:
    """Write a Llama file of at least `size` bytes in about a second a gigabyte.

    For measurements of loading and memory: Llama 2's proportions at a width of 2048, as many
    layers as it takes, all of the same weights, with the tiny vocabulary.
    """
    hidden, ffn, kv_dims = 2048, 5632, 512
    block, block_bytes = gguf.GGML_QUANT_SIZES[TensorType[tensor_type]]
    layer_bytes = hidden * (2 * hidden + 2 * kv_dims + 3 * ffn) // block * block_bytes
    return make_tiny_gguf(
        path,
        tensor_type=tensor_type,
        layers=-(-size // layer_bytes),
        hidden=hidden,
        heads=32,
        kv_heads=8,
        ffn=ffn,
        same_layers=True,
    )
