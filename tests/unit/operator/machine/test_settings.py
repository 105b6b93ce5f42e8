"""The operator's environment."""

from __future__ import annotations

import pytest

from servewright_operator.settings import Settings, SettingsError

RUNTIME = {"SERVEWRIGHT_RUNTIME_IMAGE": "registry.example/runtime:1"}
LEAST = {**RUNTIME, "SERVEWRIGHT_CUDA_IMAGE": "registry.example/runtime-cuda:1"}


def test_the_images_are_enough() -> None:
    settings = Settings.of(LEAST, "somewhere")
    assert settings.pods.image == "registry.example/runtime:1"
    assert settings.pods.cuda_image == "registry.example/runtime-cuda:1"
    assert settings.identity == "somewhere"
    assert settings.namespaces == ()
    assert settings.port == 8080


def test_every_variable_is_read() -> None:
    settings = Settings.of(
        {
            **LEAST,
            "SERVEWRIGHT_IMAGE_PULL_POLICY": "Always",
            "SERVEWRIGHT_IMAGE_PULL_SECRETS": "one, two",
            "SERVEWRIGHT_NAMESPACES": "a,b,",
            "SERVEWRIGHT_PORT": "9090",
            "SERVEWRIGHT_LOG_LEVEL": "Warning",
            "POD_NAME": "operator-0",
            "POD_NAMESPACE": "servewright",
        },
        "somewhere",
    )
    assert settings.pods.image_pull_policy == "Always"
    assert settings.pods.image_pull_secrets == ("one", "two")
    assert settings.namespaces == ("a", "b")
    assert (settings.port, settings.log_level) == (9090, "warning")
    assert (settings.identity, settings.lease_namespace) == ("operator-0", "servewright")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "SERVEWRIGHT_RUNTIME_IMAGE is not set: give it the image that replicas run."),
        (RUNTIME, "SERVEWRIGHT_CUDA_IMAGE is not set: .* that replicas with an accelerator run."),
        ({**LEAST, "SERVEWRIGHT_PORT": "http"}, "SERVEWRIGHT_PORT is 'http': give it a port's"),
        ({**LEAST, "SERVEWRIGHT_LOG_LEVEL": "loud"}, "'loud': give it one of debug, info"),
    ],
    ids=["no image", "no image for accelerators", "a port that is none", "a level that is none"],
)
def test_a_mistake_is_told_with_its_cure(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.of(environ, "somewhere")
