"""Models from files into memory, one after another, with progress over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servewright_runtime.config import KvPlan, ReplicaModel, kv_plan
from servewright_runtime.errors import ConfigError, ServewrightError
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

    return [
        _load(model, functools.partial(tell, sum(sizes[:index]), sizes[index]))
        for index, model in enumerate(models)
    ]


def _load(model: ReplicaModel, progress: Callable[[int, int], None]) -> Loaded:
    if model.accelerator is not None:
        raise ConfigError(
            f"{model.title}: spec.accelerator asks for a GPU, but this version has no runner for "
            "one; remove spec.accelerator."
        )
    plans: list[KvPlan] = []

    def num_blocks(config: LlamaConfig) -> int:
        plans.append(kv_plan(config, model))
        return plans[-1].num_blocks

    try:
        loaded = registry.load(
            Path(model.path),
            format=model.format,
            kernel=model.kernel,
            num_blocks=num_blocks,
            threads=model.threads,
            progress=progress,
        )
    except ServewrightError as error:
        # The file's path, often one in the cache, does not tell which of several models it is.
        raise error.told_of(model.title) from error
    return Loaded(model, loaded, plans[-1])
