"""tests/gpu/prove.py: it refuses without a device, and what it checks tells right from wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from torch import Tensor

from gpu import prove
from gpu.op_numbers import OPS, Check, Ops, Sizes, checks
from servewright_runtime.cuda import availability
from support.cuda_runner import EmulatedDevice
from support.emulated import Array
from support.emulated_module import emulated_module
from support.tree import ROOT

SMALL = Sizes(
    projections=((96, 160), (33, 64)),
    tokens=(1, 9),
    vocabularies=(4099,),
    chunks=((0, 5), (20, 17)),
)


def test_without_a_device_it_refuses_in_one_sentence() -> None:
    if availability.unavailable() is None:
        pytest.skip("needs a machine without a CUDA device")
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu" / "prove.py"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Nothing is proved without a CUDA device: ")
    assert result.stderr.count("\n") == 1


def test_every_op_is_right_on_the_emulator() -> None:
    found = list(checks(emulated_module(), EmulatedDevice(), SMALL))
    assert [check for check in found if not check.is_right] == []
    for op in OPS:
        assert any(check.name.startswith(op) for check in found), op
    assert len(prove.numbers_table(found).splitlines()) == 2 + len(OPS)


def test_an_op_that_writes_nothing_or_something_else_is_wrong() -> None:
    class Broken(Ops):
        """Results come back a little off."""

        def get(self, tensor: Tensor) -> Array:
            return np.asarray(super().get(tensor) * np.float32(1.02))

    assert not Check("NaN", float("nan")).is_right
    assert not Check("off", 1.5).is_right
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpu.op_numbers.Ops", Broken)
        found = list(checks(emulated_module(), EmulatedDevice(), SMALL))
    right = {check.name.partition(" ")[0] for check in found if check.is_right}
    assert right == set()
