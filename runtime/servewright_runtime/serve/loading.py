"""Models from files into memory, one after another, with progress over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servewright_runtime.config import KvPlan, ReplicaModel, kv_plan
from servewright_runtime.errors import ServewrightError
from servewright_runtime.models import registry
from servewright_runtime.models.loaded import LoadedModel
from servewright_runtime.models.runner import LlamaConfig

_PROGRESS_STEP = 0.01  # of the whole; more would only be noise


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory and the size of the KV cache that it was given."""

    model: ReplicaModel
    loaded: LoadedModel
    plan: KvPlan


def load_all(models: Sequence[ReplicaModel], progress: Callable[[float], None]) -> list[Loaded]:
    """Load the models. Takes long: call it in a thread.

    progress: called with the fraction that is done. Raises ConfigError where a file, its format or
    a bound does not fit.
    """
    sizes = [Path(model.path).stat().st_size for model in models]
    whole = max(sum(sizes), 1)
    told = 0.0

    def tell(offset: int, size: int, done: int, total: int) -> None:
        nonlocal told
        fraction = (offset + size * done / max(total, 1)) / whole
        if fraction >= told + _PROGRESS_STEP:
            told = fraction
            progress(fraction)

    found = []
    for index, model in enumerate(models):
        # What comes later to the same accelerator; packed, a model is as large as its file.
        later = [
            size
            for other, size in zip(models[index + 1 :], sizes[index + 1 :], strict=True)
            if other.accelerator is not None
        ]
        progress_of = functools.partial(tell, sum(sizes[:index]), sizes[index])
        found.append(_load(model, later, progress_of))
    return found


def _load(
    model: ReplicaModel, later: Sequence[int], progress: Callable[[int, int], None]
) -> Loaded:
    """later: bytes of each model that the same accelerator is still to hold."""
    plans: list[KvPlan] = []

    def num_blocks(config: LlamaConfig) -> int:
        plans.append(kv_plan(config, model))
        return plans[-1].num_blocks

    def on_gpu(config: LlamaConfig, free_bytes: int) -> KvPlan:
        mine = max(0, free_bytes - sum(later)) // (1 + len(later))
        plans.append(kv_plan(config, model, device_bytes=mine))
        return plans[-1]

    gpu = None
    if model.accelerator is not None:
        gpu = registry.OnGpu(on_gpu, model.max_model_len, model.max_batch, model.max_step_tokens)
    try:
        loaded = registry.load(
            Path(model.path),
            format=model.format,
            kernel=model.kernel,
            num_blocks=num_blocks,
            threads=model.threads,
            progress=progress,
            gpu=gpu,
        )
    except ServewrightError as error:
        # The file's path, often one in the cache, does not tell which of several models it is.
        raise error.told_of(model.title) from error
    return Loaded(model, loaded, plans[-1])
