"""The folder of a run: private, short, and swept up when every process of it was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from servewright_runtime.errors import StartError
from servewright_runtime.supervisor import rundir
from servewright_runtime.supervisor.rundir import RunDir


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rundir, "_LONGEST_PATH", 4096)
    return tmp_path


def test_it_is_private_and_holds_a_secret_of_its_own(root: Path) -> None:
    one, other = RunDir.create(), RunDir.create()
    assert one.path.stat().st_mode & 0o777 == 0o700
    assert one.token_file.stat().st_mode & 0o777 == 0o600
    assert one.token_file.read_text() != other.token_file.read_text()
    one.remove()
    assert [path.name for path in root.iterdir()] == [other.path.name]
    other.remove()


def test_a_folder_whose_supervisor_was_killed_is_swept_up_by_the_next_run(root: Path) -> None:
    script = (
        "import tempfile, sys\n"
        "from servewright_runtime.supervisor import rundir\n"
        "tempfile.tempdir, rundir._LONGEST_PATH = sys.argv[1], 4096\n"
        "run = rundir.RunDir.create()\n"
        "print(run.path, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().decode().strip())
        RunDir.create().remove()
        assert path.exists(), "its supervisor lives"
        other.kill()
    RunDir.create().remove()
    assert not path.exists()


def test_a_folder_whose_removal_was_cut_short_is_swept_up_by_the_next_run(root: Path) -> None:
    for left in ("servewright-run.of-old/ray/session", "servewright-run.empty"):
        (root / left).mkdir(parents=True)
    RunDir.create().remove()
    assert list(root.iterdir()) == []


def test_a_folder_that_another_run_sweeps_up_before_it_is_locked_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def swept_up(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            rundir._sweep(root)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_up)
    run = RunDir.create()
    assert [str(path) for path in root.iterdir()] == [str(run.path)] == made[1:]
    run.remove()


def test_ray_can_make_its_sockets_in_it() -> None:
    run = RunDir.create()
    try:
        socket = run.ray_dir / "session_2026-01-02_03-04-05_678901_1234567" / "sockets/plasma_store"
        assert len(str(socket)) <= 107
    finally:
        run.remove()


def test_a_folder_that_cannot_be_made_is_told_with_the_cure(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(root / "missing"))
    with pytest.raises(StartError, match="TMPDIR"):
        RunDir.create()
