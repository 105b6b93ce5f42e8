"""An API server that fails on demand, and operators on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fake_kubernetes import FakeKubernetes, fake_kubernetes


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    """A fresh API server."""
    with fake_kubernetes() as made:
        yield made
