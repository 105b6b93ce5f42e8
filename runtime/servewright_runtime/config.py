"""From a manifest to numbers: what the replica needs of each model, resolved once.

`resolve` runs where the manifest is read, `kv_plan` in the replica, which knows the model's
header. Both return new objects and log each value that they chose or changed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from servewright_runtime.cuda import availability
from servewright_runtime.errors import ConfigError
from servewright_runtime.hardware import Hardware

if TYPE_CHECKING:
    from servewright_api import ModelService
    from servewright_runtime.models.runner import LlamaConfig

log = logging.getLogger(__name__)

Kernel = Literal["Auto", "Fused", "Reference"]
AcceleratorType = Literal["nvidia"]

# Tokens of one step: long enough that a prefill is bound by arithmetic and not by reading the
# weights, short enough that a newcomer's first token waits little for another's prompt.
MAX_STEP_TOKENS = 512
# Prefill tokens of a step in which others decode: all of them wait for it.
MIXED_PREFILL_TOKENS = 64
# Likewise on a GPU, where laying out the dense weights takes as long as the products of some 600
# tokens (cuda/prefill.py: an estimate).
GPU_STEP_TOKENS = 1024
# The KV cache takes at most this share of the memory, all models together, unless kvCache is given.
DEFAULT_KV_SHARE = 4  # a quarter


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One model as the replica is to serve it. Crosses processes as JSON."""

    title: str  # "ModelService default/smollm2", for messages
    name: str  # what clients write in `model`
    revision: str
    path: str  # of the verified model file on this machine
    digest: str | None  # "sha256:..."; None for a file:// source without one
    format: str | None  # None: detect
    kernel: Kernel
    accelerator: AcceleratorType | None  # one device of it computes; None: the CPU
    threads: int
    max_model_len: int | None  # None: the model's context length, reduced to what fits
    max_batch: int
    max_step_tokens: int
    mixed_prefill_tokens: int
    prefix_cache: bool
    kv_bytes: int | None  # None: enough for max_batch sequences, at most kv_limit_bytes
    kv_limit_bytes: int
    max_concurrency: int
    max_queued: int
    max_output_tokens: int | None
    probe_prompt: str
    probe_expect: str | None
    probe_timeout_s: int
    keys_dir: str | None  # folder of API keys, a file each; None: open to all

    @property
    def is_open(self) -> bool:
        """Whether requests need no API key."""
        return self.keys_dir is None


def resolve(
    service: ModelService,
    *,
    revision: str,
    path: Path,
    digest: str | None,
    keys_dir: Path | None,
    hardware: Hardware,
    models: int = 1,
) -> ReplicaModel:
    """What the replica needs of `service`, whose file lies verified at `path`.

    revision: what answers say they come from.
    keys_dir: folder of API keys, which access.mode ApiKey needs and Open ignores.
    models: how many share the machine; each may take its part of the memory for KV cache.
    Raises ConfigError for what this machine cannot do.
    """
    spec = service.spec
    assert spec.access.mode == "Open" or keys_dir is not None, "ApiKey needs a folder of keys"
    engine, limits = spec.engine, spec.limits
    kv_bytes = engine.kv_cache_bytes
    accelerator = None if spec.accelerator is None else spec.accelerator.type
    if kv_bytes is not None and accelerator is None and kv_bytes > hardware.memory_bytes:
        raise ConfigError(
            f"{service.title}: spec.engine.kvCache is {engine.kv_cache} ({kv_bytes} bytes), but "
            f"this machine has {hardware.memory_bytes} bytes of memory; choose less."
        )
    threads = engine.threads
    if threads is None:
        threads = hardware.cpus
        log.info("resolved", extra={"field": "engine.threads", "value": threads})
    return ReplicaModel(
        title=service.title,
        name=service.served_name,
        revision=revision,
        path=str(path),
        digest=digest,
        format=spec.model.format,
        kernel=engine.kernel,
        accelerator=accelerator,
        threads=threads,
        max_model_len=engine.max_model_len,
        max_batch=engine.max_batch,
        max_step_tokens=max(
            MAX_STEP_TOKENS if accelerator is None else GPU_STEP_TOKENS, engine.max_batch
        ),
        mixed_prefill_tokens=MIXED_PREFILL_TOKENS,
        prefix_cache=engine.prefix_cache,
        kv_bytes=kv_bytes,
        kv_limit_bytes=hardware.memory_bytes // DEFAULT_KV_SHARE // models,
        max_concurrency=limits.max_concurrency,
        max_queued=limits.max_queued,
        max_output_tokens=limits.max_output_tokens,
        probe_prompt=spec.probe.prompt,
        probe_expect=spec.probe.expect,
        probe_timeout_s=spec.probe.timeout_seconds,
        keys_dir=None if spec.access.mode == "Open" else str(keys_dir),
    )


def check_accelerators(services: Sequence[ModelService]) -> None:
    """Raise ConfigError where one of `services` wants a device that is not here or not usable."""
    for service in services:
        missing = availability.unavailable() if service.spec.accelerator else None
        if missing is not None:
            raise ConfigError(
                f"{service.title}: spec.accelerator asks for a GPU, but none can be used here "
                f"({missing.rstrip('.')}); mend that or remove spec.accelerator."
            )


def check_served_names(services: Sequence[ModelService]) -> None:
    """Raise ConfigError where one `model` of a request would mean two of `services`."""
    owners: dict[str, ModelService] = {}
    for service in services:
        other = owners.setdefault(service.served_name, service)
        if other is not service:
            raise ConfigError(
                f"{service.title}: spec.model.name {service.served_name} is served by "
                f"{other.title} already; give one of them another spec.model.name."
            )


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Size of the KV cache and the longest sequence it is made for."""

    num_blocks: int
    max_model_len: int  # tokens


def kv_plan(config: LlamaConfig, model: ReplicaModel, *, device_bytes: int | None = None) -> KvPlan:
    """Blocks of the KV cache for a model whose header says `config`.

    device_bytes: what weights and workspaces leave of an accelerator's memory, where the cache is
    there.
    At least one sequence of max_model_len fits. Raises ConfigError with the numbers, but without
    the model's title, where the manifest asks for more than the model or the memory has.
    """
    # Here, so that the supervisor, which resolves manifests too, does not load numpy.
    from servewright_runtime.models.runner import BLOCK_TOKENS

    block_bytes = config.kv_bytes_per_token * BLOCK_TOKENS
    wanted_len = model.max_model_len
    if wanted_len is not None and wanted_len > config.context_length:
        raise ConfigError(
            f"spec.engine.maxModelLen is {wanted_len}, but the model was made for "
            f"{config.context_length} tokens; choose at most that."
        )
    if config.context_length < 2:
        raise ConfigError(
            f"the model's header gives it a context of {config.context_length} "
            "token, but a prompt and an answer take two; use a whole model."
        )
    most_bytes = model.kv_limit_bytes if device_bytes is None else device_bytes
    if model.kv_bytes is not None and device_bytes is not None and model.kv_bytes > device_bytes:
        raise ConfigError(
            f"spec.engine.kvCache is {model.kv_bytes} bytes, but weights and workspaces leave "
            f"{device_bytes} bytes of the accelerator's memory; choose less."
        )
    limit_bytes = model.kv_bytes if model.kv_bytes is not None else most_bytes
    limit_blocks = limit_bytes // block_bytes
    if limit_blocks == 0:
        raise ConfigError(
            f"the KV cache may take {limit_bytes} bytes, but one block of "
            f"{BLOCK_TOKENS} tokens takes {block_bytes}; raise spec.engine.kvCache."
        )
    max_model_len = wanted_len or min(config.context_length, limit_blocks * BLOCK_TOKENS)
    sequence_blocks = -(-max_model_len // BLOCK_TOKENS)
    if sequence_blocks > limit_blocks:
        raise ConfigError(
            f"one sequence of spec.engine.maxModelLen {max_model_len} tokens takes "
            f"{sequence_blocks * block_bytes} bytes of KV cache, but it may take {limit_bytes}; "
            "raise spec.engine.kvCache or lower maxModelLen."
        )
    wanted_blocks = sequence_blocks * model.max_batch
    num_blocks = limit_blocks if model.kv_bytes is not None else min(wanted_blocks, limit_blocks)
    plan = KvPlan(num_blocks, max_model_len)
    log.info(
        "resolved",
        extra={
            "model": model.name,
            "kv_blocks": num_blocks,
            "kv_bytes": num_blocks * block_bytes,
            "max_model_len": max_model_len,
            "context_length": config.context_length,
        },
    )
    return plan


def dump_models(models: Sequence[ReplicaModel]) -> str:
    """JSON for `load_models` in another process."""
    return json.dumps([dataclasses.asdict(model) for model in models])


def load_models(text: str) -> list[ReplicaModel]:
    """The inverse of `dump_models`. Raises TypeError on another version's JSON."""
    documents: list[dict[str, Any]] = json.loads(text)
    return [ReplicaModel(**document) for document in documents]
