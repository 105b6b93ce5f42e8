"""What a local run tells: the lines when it is ready, the keys, the systems it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from servewright_runtime import local
from servewright_runtime.errors import StartError
from servewright_runtime.hardware import Hardware
from servewright_runtime.inventory import kernels
from servewright_runtime.supervisor import Phase, Settings, rundir
from support.manifests import make_service

URL = "http://127.0.0.1:8000"
MACHINE = Hardware(2, 2**30, "x86_64", "Linux", "A Fine CPU")


def test_an_open_model_is_told_with_a_curl_line_that_parses() -> None:
    service = make_service({"spec.access.mode": "Open"})
    lines = local.ready_lines([service], Settings(), None, URL)
    assert lines[0] == "Serving at http://127.0.0.1:8000/v1"
    words = shlex.split(next(line for line in lines if line.startswith("curl")))
    assert words[1] == f"{URL}/v1/chat/completions"
    assert json.loads(words[words.index("-d") + 1])["model"] == "mine"
    assert not any("authorization" in word for word in words)


def test_the_curl_line_asks_for_no_more_than_the_model_gives() -> None:
    service = make_service({"spec.limits.maxOutputTokens": 8})
    words = shlex.split(local.curl_line(service, URL))
    assert json.loads(words[words.index("-d") + 1])["max_tokens"] == 8


def test_a_made_key_is_shown_once_and_lies_in_the_folder() -> None:
    service = make_service()
    with local.local_keys([service], None) as keys:
        assert keys is not None
        (file,) = keys.folder.iterdir()
        key = file.read_text()
        assert keys.folder.stat().st_mode & 0o777 == 0o700
        text = "\n".join(local.ready_lines([service], Settings(), keys, URL))
        assert text.count(key) == 1
        assert f"API_KEY={key}" in text
        assert '"authorization: Bearer $API_KEY"' in text
    assert not file.exists()


def test_two_runs_make_two_keys() -> None:
    made = []
    for _ in range(2):
        with local.local_keys([make_service()], None) as keys:
            assert keys is not None
            made.append((keys.folder / "local").read_text())
    assert made[0] != made[1]
    assert all(len(key) > 40 for key in made)


def test_a_folder_of_keys_is_named_and_no_key_is_shown(tmp_path: Path) -> None:
    (tmp_path / "ann").write_text("s3cret")
    (tmp_path / "..data").mkdir()  # as in a mounted Secret
    (tmp_path / "a-folder").mkdir()
    with local.local_keys([make_service()], tmp_path) as keys:
        text = "\n".join(local.ready_lines([make_service()], Settings(), keys, URL))
    assert "s3cret" not in text
    assert f'API_KEY="$(cat {tmp_path / "ann"})"' in text


def test_fields_without_effect_here_are_listed_once() -> None:
    services = [
        make_service({"metadata.labels": {"a": "b"}, "spec.access.secretRef": {"name": "keys"}}),
        make_service({"metadata.name": "two", "metadata.labels": {"a": "b"}}),
    ]
    assert local.without_effect(services) == [
        "metadata.labels",
        "spec.access.secretRef (locally: --api-keys DIR)",
    ]
    assert local.without_effect([make_service()]) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata.annotations": {"a": "b"}}, "metadata.annotations"),
        ({"spec.replicas": 3}, "spec.replicas"),
        ({"spec.resources.limits.memory": "4Gi"}, "spec.resources"),
        ({"spec.rollout.maxSurge": "25%"}, "spec.rollout"),
        ({"spec.probe.intervalSeconds": 5}, "spec.probe.intervalSeconds"),
        ({"spec.pod.priorityClassName": "high"}, "spec.pod"),
        (
            {
                "spec.model.source": "https://host/x",
                "spec.model.credentialsSecret": {"name": "token"},
            },
            "spec.model.credentialsSecret",
        ),
    ],
)
def test_what_only_a_cluster_obeys_is_told(change: dict[str, Any], field: str) -> None:
    assert local.without_effect([make_service(change)]) == [field]


def test_defaults_written_out_are_not_told() -> None:
    change = {"spec.replicas": 1, "spec.rollout": {"maxSurge": 1}, "spec.pod": {"env": []}}
    assert local.without_effect([make_service(change)]) == []


def test_an_open_model_beyond_loopback_is_said() -> None:
    service = make_service({"spec.access.mode": "Open"})
    settings = Settings(host="192.0.2.7")
    lines = local.ready_lines([service], settings, None, URL)
    assert "Open to everyone who reaches 192.0.2.7: mine" in lines


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_are_told_what_is_missing(system: str) -> None:
    other = dataclasses.replace(MACHINE, system=system)
    with pytest.raises(StartError, match=f"needs Linux's process control, and this is {system}"):
        local.refuse_other_systems(other)
    assert kernels(other) == f"none: serving needs Linux, and this is {system}"
    local.refuse_other_systems(MACHINE)


@pytest.mark.parametrize("at_terminal", [True, False])
def test_phases_are_told_at_a_terminal_and_left_to_the_log_elsewhere(at_terminal: bool) -> None:
    out, err = io.StringIO(), io.StringIO()
    service = make_service({"spec.access.mode": "Open"})
    voice = local.Voice(
        [service],
        Settings(),
        None,
        out=Console(file=out, width=200),
        err=Console(file=err, force_terminal=at_terminal, color_system=None),
    )
    with voice:
        for fraction in (0.0, 0.5, 1.0):
            voice.on_phase(Phase.LOADING, fraction)
        voice.on_phase(Phase.WARMING, None)
        voice.on_ready(URL)
        voice.on_phase(Phase.DRAINING, None)
    told = ("Loading the weights", "Waiting for the probe's answer", "Draining: finishing what is")
    if at_terminal:
        assert all(line in err.getvalue() for line in told)
    else:
        assert err.getvalue() == ""
    assert "\x1b" not in out.getvalue()


def test_a_key_that_finds_no_room_is_told_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(rundir, "_LONGEST_PATH", 4096)
    with (
        pytest.raises(StartError, match=r"No private folder .*: No such file .* TMPDIR"),
        local.local_keys([make_service()], None),
    ):
        pass
