"""The proof of tests/gpu/prove.py, without its times, where a device is."""

from __future__ import annotations

import pytest

from gpu import prove
from servewright_runtime.cuda import availability


@pytest.mark.timeout(1800)
def test_every_number_is_right_on_the_device() -> None:
    if (why := availability.unavailable()) is not None:
        pytest.skip(f"needs a CUDA device: {why}")
    assert prove.main(["--numbers"]) == 0
