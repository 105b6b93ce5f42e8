"""What the operator gives a pod, and what of it is refused with a sentence."""

from __future__ import annotations

import json

import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.pod.given import Given
from support.manifests import make_manifest


def environment(*documents: object) -> dict[str, str]:
    return {"SERVEWRIGHT_MANIFEST": json.dumps(documents), "SERVEWRIGHT_REVISION": "0123456789"}


def manifest(**spec: object) -> dict[str, object]:
    return make_manifest({"spec.model.source": "pvc://models/mine.gguf", **spec})


def test_manifest_and_revision_are_taken_as_the_operator_gives_them() -> None:
    """The revision is not this image's own hash of the manifest."""
    prompt = "⛵ 🦙 \u2028\x85\x7f $(HOME)"  # what YAML would fold, refuse or split
    given = Given.from_environment(environment(manifest(**{"spec.probe.prompt": prompt})))
    assert given.revision == "0123456789"
    assert given.service.title == "ModelService default/mine"
    assert given.service.spec.probe.prompt == prompt


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "not both set.*servewright run FILE"),
        ({**environment(manifest()), "SERVEWRIGHT_REVISION": ""}, "not both set"),
        ({**environment(), "SERVEWRIGHT_MANIFEST": "{"}, "no JSON"),
        (environment(), "no list of one"),
        (environment(manifest(), manifest()), "no list of one"),
        ({**environment(), "SERVEWRIGHT_MANIFEST": "1"}, "no list of one"),
        (environment(manifest(**{"spec.novelty": 1})), r"another version.*spec\.novelty"),
        (environment(manifest(**{"spec.model.source": "file:///x"})), "file://"),
        (environment(manifest(**{"spec.model.source": "hf://a/b"})), "hf://"),
    ],
)
def test_what_no_restart_mends_is_one_sentence_and_exit_code_2(
    variables: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Given.from_environment(variables)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
