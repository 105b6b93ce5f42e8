"""What servewright::sample draws, by the definition of it: models/sampling_reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from servewright_runtime.models import sampling_reference
from servewright_runtime.ops.torch_ops.sampling import Sample


def sample(
    logits: Tensor, temperature: Tensor, seed: Tensor, draw: Tensor, **others: Tensor
) -> tuple[Tensor, Tensor]:
    """As the op, of tensors in host memory; the id of a row that is not finite means nothing."""
    call = Sample(logits, temperature, seed, draw, **others)
    drawn = sampling_reference.sample(logits.nan_to_num().numpy(), call.batch())
    return torch.from_numpy(drawn.token_ids), logits.isfinite().all(-1)
