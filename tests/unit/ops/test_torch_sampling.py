"""servewright::sample draws what the definition draws, and CUDA's half, emulated, the same ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from servewright_runtime.ops import torch_ops
from servewright_runtime.ops.torch_ops import sampling_reference
from support.emulated_module import emulated_module
from support.sampling_rows import Rows, random_rows

torch_ops.register()
SAMPLE = torch.ops.servewright.sample


def tensors(rows: Rows) -> dict[str, Tensor]:
    """All arguments of the op but those about logprobs, which it has not."""
    names = (name for name in rows.columns if "logprobs" not in name)
    given = {name: torch.from_numpy(rows.columns[name]) for name in names}
    for name in ("seed", "draw"):
        given[name] = given[name].view(torch.int64)
    return {"logits": torch.from_numpy(rows.logits[:, : rows.vocab].copy()), **given}


def few(rows: int = 4, vocabulary: int = 50) -> dict[str, Tensor]:
    """The arguments that must be given."""
    random = torch.Generator().manual_seed(rows)
    whole = torch.iinfo(torch.int64)
    seeds = torch.randint(whole.min, whole.max, (2, rows), generator=random)
    return {
        "logits": torch.randn(rows, vocabulary, generator=random) * 3,
        "temperature": torch.ones(rows),
        "seed": seeds[0],
        "draw": seeds[1],
    }


@pytest.mark.parametrize(("seed", "vocabulary"), [(0, 1), (1, 7), (2, 300), (3, 1003), (4, 5000)])
def test_ids_are_those_of_the_definition_on_both_devices(seed: int, vocabulary: int) -> None:
    given = tensors(random_rows(seed, 40, vocabulary))
    ids, finite = SAMPLE(**given)
    wanted, is_finite = sampling_reference.sample(**given)
    assert torch.equal(finite, is_finite)
    assert torch.equal(ids[finite], wanted[finite])
    assert torch.equal(ids[~finite], highest(given["logits"])[~finite])
    on_cuda = torch_ops.Sample(**given).on_cuda(emulated_module(), 0)
    assert torch.equal(on_cuda[0], ids)
    assert torch.equal(on_cuda[1], finite)


def highest(logits: Tensor) -> Tensor:
    """What rows that are not finite give: the first of the highest numbers that are no NaN."""
    return logits.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax(-1).int()


def test_what_is_not_given_is_off() -> None:
    given = few()
    wanted, _ = sampling_reference.sample(**given)
    assert torch.equal(SAMPLE(**given)[0], wanted)
    assert torch.equal(torch_ops.Sample(**given).on_cuda(emulated_module(), 0)[0], wanted)
    greedy = given | {"temperature": torch.zeros(4)}
    assert torch.equal(SAMPLE(**greedy)[0], given["logits"].argmax(-1).int())
    strided = given | {"logits": given["logits"].T.contiguous().T}
    assert torch.equal(SAMPLE(**strided)[0], wanted)


def test_no_row_draws_nothing() -> None:
    given = {name: tensor[:0] for name, tensor in few().items()}
    for ids, finite in (SAMPLE(**given), torch_ops.Sample(**given).on_cuda(emulated_module(), 0)):
        assert (ids.shape, ids.dtype) == ((0,), torch.int32)
        assert (finite.shape, finite.dtype) == ((0,), torch.bool)


def test_torchs_own_checks_pass() -> None:
    for given in (few(), tensors(random_rows(5, 6, 30))):
        names = ("logits", "temperature", "seed", "draw")
        others = {name: tensor for name, tensor in given.items() if name not in names}
        torch.library.opcheck(SAMPLE.default, tuple(given[name] for name in names), others)


@pytest.mark.filterwarnings("ignore")  # torch's own compiler warns of what it finds
@pytest.mark.timeout(600)
def test_a_compiled_function_takes_the_op_whole() -> None:
    def step(given: dict[str, Tensor]) -> Tensor:
        ids, finite = SAMPLE(**given | {"logits": given["logits"] * 2, "draw": given["draw"] + 1})
        return torch.where(finite, ids, 0)

    compiled = torch.compile(step, fullgraph=True)
    with torch.no_grad():
        for given in (few(), few(7)):
            assert torch.equal(compiled(given), step(given))


def _i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


HISTORY = {"history_ids": _i32(1, 49, 2), "history_starts": _i32(0, 1, 1, 3, 3)}
BIAS = {"bias_ids": _i32(3), "bias_values": torch.ones(1), "bias_starts": _i32(0, 0, 0, 1, 1)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"logits": torch.zeros(4, 50).half()}, "logits must be float32, got float16"),
        ({"logits": torch.zeros(50)}, r"logits must be \[rows, vocabulary\], got \[50\]"),
        ({"logits": torch.zeros(4, 0)}, "logits must have 1 to 262144 columns, got 0"),
        ({"logits": torch.zeros(4, 1).expand(4, 2**18 + 1)}, "1 to 262144 columns, got 262145"),
        ({"temperature": torch.ones(3)}, r"temperature must be \[4\], got \[3\]"),
        ({"temperature": -torch.ones(4)}, r"temperature\[0\] must be finite and at least 0"),
        ({"seed": torch.zeros(4)}, "seed must be int64, got float32"),
        ({"top_k": torch.zeros(4, dtype=torch.int64)}, "top_k must be int32, got int64"),
        ({"top_k": _i32(0, 0, -3, 0)}, r"top_k\[2\] must be in 0..2147483647, got -3"),
        ({"top_p": torch.zeros(4)}, r"top_p\[0\] must be above 0 and at most 1"),
        ({"min_p": torch.full((4,), 1.5)}, r"min_p\[0\] must be in 0..1"),
        ({"repetition": torch.zeros(4)}, r"repetition\[0\] must be finite and above 0"),
        ({"presence": torch.full((4,), torch.nan)}, r"presence\[0\] must be finite"),
        (HISTORY | {"history_ids": _i32(1, 50, 2)}, r"history_ids\[1\] must be in 0..49, got 50"),
        (HISTORY | {"history_ids": _i32(-1, 9, 2)}, r"history_ids\[0\] must be in 0..49, got -1"),
        (HISTORY | {"history_starts": _i32(0, 2, 1, 3, 3)}, r"history_starts\[2\] must be at"),
        (HISTORY | {"history_starts": _i32(0, 1, 1, 3, 9)}, r"history_starts\[4\] must be 3"),
        (HISTORY | {"history_prompts": _i32(2, 0, 0, 0)}, r"history_prompts\[0\] must be in 0..1"),
        ({"history_ids": _i32(1)}, "history_ids, history_starts come together, and history_starts"),
        ({"history_prompts": _i32(0, 0, 0, 0)}, "history_prompts has no meaning without"),
        (BIAS | {"bias_ids": _i32(50)}, r"bias_ids\[0\] must be in 0..49, got 50"),
        (BIAS | {"bias_values": torch.ones(2)}, r"bias_values must be \[1\], got \[2\]"),
        ({"bias_ids": _i32(3)}, "bias_ids, bias_values, bias_starts come together, and bias_val"),
        ({"draw": torch.zeros(4, dtype=torch.int64, device="meta")}, "on cpu, as logits does, got"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SAMPLE(**few() | changed)


def test_penalties_and_biases_move_the_ids() -> None:
    """The test above compares with the definition; here it is seen that they count at all."""
    given = few() | {"temperature": torch.zeros(4)}
    best = given["logits"].argmax(-1)
    rows = torch.arange(5, dtype=torch.int32)
    pushed = given | {
        "bias_ids": ((best + 1) % 50).int(),
        "bias_values": torch.full((4,), 100.0),
        "bias_starts": rows,
    }
    np.testing.assert_array_equal(SAMPLE(**pushed)[0], (best + 1) % 50)
    punished = given | {
        "history_ids": best.int(),
        "history_starts": rows,
        "presence": torch.full((4,), 100.0),
    }
    assert (SAMPLE(**punished)[0] != best).all()
