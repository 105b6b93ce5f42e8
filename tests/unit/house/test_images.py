"""What the Dockerfiles promise and a build would show late: bases, users, labels, no compiler."""

from __future__ import annotations

import re

import pytest
from hack.requirements import requirements

from support.tree import ROOT

IMAGES = ("operator", "runtime")


def dockerfile(image: str) -> str:
    return (ROOT / image / "Dockerfile").read_text()


def stages(image: str) -> list[str]:
    """The text of each stage, its FROM first."""
    return re.split(r"^(?=FROM )", dockerfile(image), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("image", IMAGES)
def test_base_can_be_chosen_and_nothing_else_is_pulled(image: str) -> None:
    bases = [stage.split()[1] for stage in stages(image)]
    assert bases == ["scratch", "${BASE}", "${BASE}", "packages", "packages"]


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_as_a_numeric_user_with_version_and_commit(image: str) -> None:
    last = stages(image)[-1]
    assert "\nUSER 1000:0\n" in last
    assert 'opencontainers.image.version="$VERSION"' in last
    assert 'opencontainers.image.revision="$COMMIT"' in last
    assert "HEALTHCHECK" not in last


@pytest.mark.parametrize("image", IMAGES)
def test_dependencies_are_a_layer_that_our_code_does_not_touch(image: str) -> None:
    _, wanted, packages, code, last = stages(image)
    assert re.findall(r"^COPY (.+)$", wanted, re.MULTILINE) == [
        "pyproject.toml ./",
        "hack/requirements.py hack/",
    ]
    assert re.findall(r"^COPY (.+)$", packages, re.MULTILINE) == [
        "requirements.lock ./",
        "--from=wanted /opt/servewright/requirements.txt ./",
    ]
    assert "COPY . .\n" in code
    assert "COPY --from=code /opt/code /opt/venv\n" in last


def test_compiler_stays_in_the_stage_that_builds() -> None:
    for compiler in ("g++", "nvcc"):
        found = [compiler in stage for stage in stages("runtime")]
        assert found == [False, False, False, True, False]
    assert "SERVEWRIGHT_NATIVE=0" in dockerfile("operator")


def test_cuda_is_asked_for_and_no_container_of_the_image_has_devices_by_itself() -> None:
    """NVIDIA's own base images name all devices: then the fetcher would have them too."""
    _, _, packages, code, last = stages("runtime")
    for stage in (packages, code, last):
        assert "\nARG CUDA=\n" in stage
    assert "\nENV NVIDIA_DRIVER_CAPABILITIES=${CUDA:+compute,utility}\n" in last
    assert "NVIDIA_VISIBLE_DEVICES" not in dockerfile("runtime")


def test_requirements_are_those_of_the_extras_and_no_others() -> None:
    of_operator = requirements(ROOT / "pyproject.toml", ["operator"])
    of_runtime = requirements(ROOT / "pyproject.toml", ["runtime", "reference"])

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~ ]", line)[0] for line in lines}

    assert {"pydantic", "kopf"} < names(of_operator)
    assert {"pydantic", "ray", "torch"} < names(of_runtime)
    assert not names(of_operator) & {"ray", "torch", "pytest"}
    assert not names(of_runtime) & {"kopf", "pytest"}
