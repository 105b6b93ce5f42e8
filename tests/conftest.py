"""What holds for every test: tiers by folder, golden files, hypothesis profiles, no process left
behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

TESTS = Path(__file__).parent
LEFT_BEHIND_TIMEOUT_S = 10.0
# Folders with files that take a minute. Workers (hack/test.sh) take files in turn, so these come
# first: none is left alone with one of them in the end.
LONGEST = ("cuda", "parity")

# No deadline: these machines are shared, and a slow example is not a wrong one.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _COMMON)
settings.register_profile("ci", _COMMON, derandomize=True, database=None, print_blob=True)
settings.register_profile("fuzz", _COMMON, max_examples=5000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files are written by the tests that read them; the diff is read in review."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Asserts that a golden file holds a text; with --update-golden writes it."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        wanted = path.read_text() if path.exists() else ""
        assert text == wanted, f"{path.name} differs; if it should, run pytest --update-golden"

    return check


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder says what a test needs; `fuzz` is every property test. Longest files first."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        item.add_marker(tier)
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("fuzz")


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + LEFT_BEHIND_TIMEOUT_S
    while left := _children():
        if time.monotonic() > deadline:
            pytest.fail(f"processes left behind: {left}")
        psutil.wait_procs([process for process, _ in left], timeout=1.0)


def _children() -> list[tuple[psutil.Process, str]]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        # The interpreter's own helper, which ends with it.
        if command and "multiprocessing.resource_tracker" not in command:
            found.append((process, command))
    return found
