"""A run that a whole module shares, as each costs seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import runs
from support.runs import Run

KEY = "sw-0123456789abcdef"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A ready run of two tiny models, `tiny` and behind a key `locked`. Leave it as it was."""
    folder = tmp_path_factory.mktemp("shared")
    keys = folder / "keys"
    keys.mkdir()
    (keys / "ann").write_text(KEY)
    locked = {
        "metadata.name": "locked",
        "spec.access.mode": "ApiKey",
        "spec.engine.kernel": "Auto",
    }
    run = runs.start(folder, {}, locked, arguments=["--api-keys", str(keys)])
    try:
        run.wait_until_ready()
        yield run
    finally:
        run.process.terminate()
        run.process.wait(timeout=60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """`runs.start` in the test's folder; whatever it started is ended with the test."""
    started = []

    def begin(*args: Any, **kwargs: Any) -> Run:
        run = runs.start(tmp_path, *args, **kwargs)
        started.append(run)
        return run

    yield begin
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
        run.process.wait(timeout=60)
