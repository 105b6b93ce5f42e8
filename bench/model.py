"""The model files that both engines are measured on.

The example model is shipped as Q4_1, for which llama.cpp has no repacked kernels. To compare each
engine at its best, its 4-bit tensors become Q4_0 with gguf's own quantiser; every other tensor (the
Q8_0 embedding, the F32 norms) is copied byte by byte, so both engines read one and the same file.
The same is done for the other types that decoding is measured with.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import cast

import gguf
import numpy as np
import yaml

from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch


def example_model(manifest: Path) -> Path:
    """Local path of the model that `manifest` names, fetched into the cache if it is not there."""
    spec = yaml.safe_load(manifest.read_text())["spec"]["model"]
    return fetch(spec["source"], digest=spec["digest"], cache=Cache.from_environment()).path


def requantised(source: Path, directory: Path, tensor_type: str) -> Path:
    """`source` with its 4-bit tensors as `tensor_type`, kept in `directory` under its hash."""
    with source.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    target = directory / f"{tensor_type.lower()}-{digest[:16]}.gguf"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        _write(source, partial, gguf.GGMLQuantizationType[tensor_type])
        partial.rename(target)
    return target


def _write(source: Path, target: Path, wanted: gguf.GGMLQuantizationType) -> None:
    four_bit = (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1)
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch=cast(str, architecture))
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue  # the writer's own
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType[f"MOSTLY_{wanted.name}"])
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(
            field.name, value, field.types[0], sub_type=field.types[-1] if is_array else None
        )
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind in four_bit and kind != wanted:
            values = gguf.quants.dequantize(np.ascontiguousarray(data), kind)
            data, kind = gguf.quants.quantize(values, wanted), wanted
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def word_tokens(path: Path) -> list[int]:
    """Ids of the file's tokens that are a space and small ASCII letters.

    Prompts made of them differ from each other, hold as many tokens as ids, and let the model go
    on in plain letters, so that hardly a token waits for the rest of a UTF-8 character.
    """
    reader = gguf.GGUFReader(path)
    # gpt2's byte alphabet writes a space as U+0120.
    tokens = cast(list[str], reader.fields["tokenizer.ggml.tokens"].contents())
    return [
        i
        for i, token in enumerate(tokens)
        if token.startswith("\u0120")
        and len(token) > 2
        and token[1:].isascii()
        and token[1:].isalpha()
        and token[1:].islower()
    ]
