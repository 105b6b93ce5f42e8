"""The README's promise, kept word for word: one manifest, one command, a real model answers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.runs import START_S
from support.smollm2 import smollm2_path
from support.tree import ROOT, text_of
from support.waiting import eventually

EXAMPLE = "examples/01-smollm2.yaml"
README = text_of(Path("README.md"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `servewright run examples/01-smollm2.yaml` prints once it is ready; running."""
    smollm2_path()  # in the cache now, or the test is skipped
    stdout = tmp_path_factory.mktemp("readme") / "stdout"
    with stdout.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "servewright_runtime", "run", EXAMPLE),
                *("--port", "0", "--admin-port", "0"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
        try:

            def is_ready() -> bool:
                assert process.poll() is None, f"ended with {process.returncode}"
                return "Ctrl-C stops it." in stdout.read_text()

            eventually(is_ready, timeout_s=START_S, interval_s=0.1)
            yield stdout.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            ended = process.wait(timeout=60)
    assert ended == 0


def test_the_printed_curl_line_gets_a_sensible_english_answer(output: str) -> None:
    line = next(line for line in output.splitlines() if line.startswith("curl "))
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=True
    )
    answer = json.loads(result.stdout)
    # What every kernel says, fused or plain, greedily.
    assert "Rayleigh scattering" in answer["choices"][0]["message"]["content"]


def test_the_readmes_curl_line_gets_an_answer(output: str) -> None:
    line = re.search(r"^curl .*?[^\\]$", README, re.MULTILINE | re.DOTALL)
    assert line is not None
    command = at_this_port(line[0], output)
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(result.stdout)["choices"][0]["message"]["content"]


def test_the_readmes_python_streams_an_answer(output: str) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    printed = io.StringIO()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(at_this_port(block[1], output), "README.md", "exec"), names)  # noqa: S102
    names["client"].close()  # type: ignore[attr-defined]
    assert len(printed.getvalue().split()) > 2


def at_this_port(text: str, output: str) -> str:
    """The README's words with the run's own port."""
    url = re.search(r"http://127\.0\.0\.1:\d+", output)
    assert url is not None
    return text.replace("http://127.0.0.1:8000", url[0])
