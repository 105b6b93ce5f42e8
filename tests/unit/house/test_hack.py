"""The scripts that make and CI trust."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from support.tree import ROOT


def script(name: str) -> ModuleType:
    """hack/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"hack_{name}", ROOT / "hack" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*cases: tuple[str, str | None]) -> str:
    """A JUnit report of (class name, reason of a skip)."""
    inner = "".join(
        f'<testcase classname="{name}" name="test_x">'
        + (f'<skipped type="pytest.skip" message="{reason}"/>' if reason is not None else "")
        + "</testcase>"
        for name, reason in cases
    )
    return f"<testsuites><testsuite>{inner}</testsuite></testsuites>"


TIERS = ("unit", "fake", "runtime", "api", "node")
ALL_RAN = [(f"tests.{tier}.a", None) for tier in TIERS]


def test_generated_files_are_up_to_date() -> None:
    for path, text in script("gen").generated(ROOT).items():
        assert (ROOT / path).read_text() == text, f"run make gen: {path}"


def test_a_run_of_every_tier_is_fine() -> None:
    assert script("verdict").verdict([report(*ALL_RAN)]) == []


def test_tiers_may_run_one_after_another() -> None:
    assert script("verdict").verdict([report(case) for case in ALL_RAN]) == []


def test_what_one_run_skipped_another_does_not_make_good() -> None:
    newest, oldest = report(*ALL_RAN), report(("tests.api.a", "too old"))
    assert script("verdict").verdict([newest, oldest]) != []


@pytest.mark.parametrize(
    ("reason", "wrong"),
    [
        ("this CPU lacks amx", False),
        ("fused kernels: this CPU has no AVX2", False),
        ("make faults runs it", False),
        ("needs a machine without a CUDA device", False),
        ("needs nodes without GPUs", False),
        ("needs nodes", True),
        ("needs nvcc 13: on PATH, or in $NVCC (docs/kernels.md)", False),
        ("needs nvcc 13: and nvdisasm, which `pip install -e .[dev]` brings", True),
        ("too slow", True),
        ("SmolLM2 cannot be fetched: no network", True),
        ("", True),
    ],
)
def test_only_what_the_machine_explains_may_be_skipped(reason: str, wrong: bool) -> None:
    found = script("verdict").verdict([report(*ALL_RAN, ("tests.unit.b", reason))])
    assert bool(found) == wrong


def test_a_tier_that_was_skipped_whole_is_told() -> None:
    found = script("verdict").verdict([report(*ALL_RAN[:-1], ("tests.node.a", "this CPU is odd"))])
    assert found == ["no test of tests/node ran"]


def test_what_failed_is_told_once_more_at_the_end() -> None:
    failed = (
        '<s><testcase classname="tests.api.b" name="test_y">'
        '<failure message="AssertionError: 1 is not 2"/></testcase></s>'
    )
    found = script("verdict").verdict([report(*ALL_RAN), failed])
    assert found == ["tests.api.b.test_y failed: AssertionError: 1 is not 2"]


def test_the_closing_line_tells_all_runs_together() -> None:
    api = '<s><testsuite tests="5" failures="1" skipped="1" errors="0" time="1.5"/></s>'
    node = '<s><testsuite tests="3" failures="0" skipped="0" errors="1" time="2"/></s>'
    closing_line = script("verdict").closing_line
    told = "===== 1 failed, 5 passed, 1 skipped, 1 error in 3.50s ====="
    assert closing_line([api, node]) == told
    assert closing_line([]) == "===== no tests ran in 0.00s ====="


@pytest.mark.parametrize(
    ("ended", "status", "calls"),
    [
        ((0, 0), 0, 2),
        ((1, 0), 1, 2),  # the second part runs all the same
        ((0, 1), 1, 2),
        ((5, 0), 0, 2),  # what was asked for lies in the other part
        ((0, 5), 0, 2),
        ((5, 5), 5, 2),  # it lies nowhere
        ((1, 5), 1, 2),
        ((2, 0), 2, 1),  # Ctrl-C ends it all
        ((4, 0), 4, 1),
    ],
)
def test_a_part_that_fails_or_is_empty_is_neither_forgotten_nor_the_end(
    tmp_path: Path, ended: tuple[int, int], status: int, calls: int
) -> None:
    for folder in ("hack", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "hack" / "test.sh", tmp_path / "hack")
    fake = tmp_path / ".venv" / "bin" / "pytest"
    fake.write_text(
        f'#!/bin/sh\necho "$2" >>marks\n[ "$2" = unit ] && exit {ended[0]}\nexit {ended[1]}\n'
    )
    fake.chmod(0o755)
    done = subprocess.run([tmp_path / "hack" / "test.sh"], capture_output=True, timeout=60)
    assert done.returncode == status
    assert (tmp_path / "marks").read_text().splitlines() == ["unit", "fake or runtime"][:calls]


def test_the_lock_leaves_out_what_only_a_platform_adds() -> None:
    names = [
        ("torch", "2.13.0+cpu"),
        ("nvidia-cudnn-cu13", "1"),
        ("triton", "3"),
        ("cuda-bindings", "13"),
        ("Typing_Extensions", "4.16.0"),
        ("servewright", "0.1.0"),
    ]
    installs = [{"metadata": {"name": name, "version": version}} for name, version in names]
    assert script("lock").locked(installs) == ["torch==2.13.0", "typing-extensions==4.16.0"]
