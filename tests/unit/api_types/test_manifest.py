"""Manifest files: what loads, and the words for what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright_api import (
    ManifestError,
    dump_manifest,
    load_manifests,
    parse_manifests,
    parse_override,
    revision,
)
from support.manifests import make_manifest, make_service

ROOT = Path(__file__).resolve().parents[3]


def problems_of(document: Any, **overrides: str) -> list[str]:
    """What parse_manifests says of one document, without the part that names it."""
    raw = yaml.safe_dump(document).encode()
    with pytest.raises(ManifestError) as caught:
        parse_manifests(raw, origin="x.yaml")
    prefix = f"x.yaml: ModelService default/{document['metadata']['name']}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


def text_problems(text: str | bytes) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ManifestError) as caught:
        parse_manifests(raw, origin="x.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_valid(path: Path) -> None:
    assert load_manifests([path])


def test_a_small_manifest_gets_every_default() -> None:
    service = make_service()
    assert service.served_name == "mine"
    assert service.spec.engine.max_batch == 32
    assert service.spec.engine.prefix_cache is True
    assert service.spec.access.mode == "ApiKey"
    assert service.metadata.namespace == "default"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            {"spec.engine.threads": 0},
            "spec.engine.threads: must be at least 1, but 0 came.",
            id="a number below its bound",
        ),
        pytest.param(
            {"spec.engine.threads": "2"},
            'spec.engine.threads: must be a whole number, but "2" came.',
            id="text where a number belongs",
        ),
        pytest.param(
            {"spec.engine.threads": True},
            "spec.engine.threads: must be a whole number, but true came.",
            id="a boolean where a number belongs",
        ),
        pytest.param(
            {"spec.limits.maxQueued": 1.5},
            "spec.limits.maxQueued: must be a whole number, but 1.5 came.",
            id="a fraction where a whole number belongs",
        ),
        pytest.param(
            {"spec.engine.threds": 1},
            "spec.engine.threds: is not a field of ModelService v1alpha1; did you mean threads?",
            id="a misspelt field",
        ),
        pytest.param(
            {"spec.zebra": 1},
            "spec.zebra: is not a field of ModelService v1alpha1; remove it.",
            id="a field like no other",
        ),
        pytest.param(
            {"spec.model.max_model_len": 1},
            "spec.model.max_model_len: is not a field of ModelService v1alpha1; remove it.",
            id="Python's spelling of a field",
        ),
        pytest.param(
            {"spec.scaling": {}},
            "spec.scaling: is planned and not in this version; leave it out.",
            id="a field of a later version",
        ),
        pytest.param(
            {"spec.model.format": "onnx"},
            "spec.model.format: onnx is planned and not in this version; only gguf is served.",
            id="a format of a later version",
        ),
        pytest.param(
            {"spec.model.format": []},
            "spec.model.format: must be gguf, but a list came.",
            id="a list where a word belongs",
        ),
        pytest.param(
            {"spec.a\nb": 1},
            "spec.'a\\nb': is not a field of ModelService v1alpha1; remove it.",
            id="a field name of two lines",
        ),
        pytest.param(
            {"spec.engine.kernel": "fast"},
            'spec.engine.kernel: must be Auto, Fused or Reference, but "fast" came.',
            id="an unknown word",
        ),
        pytest.param(
            {"spec.engine.kvCache": "12Q"},
            'spec.engine.kvCache: must be a quantity such as 512Mi or 1.5Gi, but "12Q" came.',
            id="a unit that does not exist",
        ),
        pytest.param(
            {"spec.engine.kvCache": "0"},
            "spec.engine.kvCache: must be a quantity such as 512Mi or 1.5Gi, above zero and at "
            'most 1Pi, but "0" came.',
            id="no memory at all",
        ),
        pytest.param(
            {"spec.engine.kvCache": "1m"},
            'spec.engine.kvCache: must be a quantity such as 512Mi or 1.5Gi, but "1m" came.',
            id="a thousandth of a byte",
        ),
        pytest.param(
            {"spec.model.digest": "sha256:12"},
            "spec.model.digest: must be sha256: and 64 lower-case hexadecimal digits, but "
            '"sha256:12" came.',
            id="a digest that is too short",
        ),
        pytest.param(
            {"spec.model": {}},
            "spec.model.source: is missing; it must be given.",
            id="no source",
        ),
        pytest.param(
            {"spec.limits": [1]},
            "spec.limits: must be a mapping of fields to values, but a list came.",
            id="a list where a group belongs",
        ),
        pytest.param(
            {"spec.model.source": "hf://org/model"},
            "spec.model.source: hf:// and s3:// are planned and not in this version; use https, "
            "pypi or pvc.",
            id="a scheme of a later version",
        ),
        pytest.param(
            {"spec.model.source": "ftp://host/x"},
            "spec.model.source: does not begin with https://, http://, pypi://, pvc://, file://; "
            "use one of these.",
            id="an unknown scheme",
        ),
        pytest.param(
            {"spec.model.source": "/models/x.gguf"},
            "spec.model.source: does not begin with https://, http://, pypi://, pvc://, file://; "
            "use one of these.",
            id="a bare path",
        ),
        pytest.param(
            {"spec.model.source": "file://models/x.gguf"},
            "spec.model.source: does not name a file on this machine; write file:///PATH with "
            "three slashes.",
            id="a file with a host",
        ),
        pytest.param(
            {"spec.model.source": "pypi://dist/x.gguf"},
            "spec.model.source: is not of the form pypi://DIST==VERSION/PATH; write it so.",
            id="a distribution without its version",
        ),
        pytest.param(
            {"spec.model.source": "http://host/x.gguf"},
            "spec.model.digest: is missing, and http:// is read only with a digest; give "
            "sha256:... of the file or use https://.",
            id="plain http without a digest",
        ),
        pytest.param(
            {"spec.access": {"mode": "Open", "secretRef": {"name": "keys"}}},
            "spec.access.secretRef: names API keys, but access.mode is Open; remove one of the "
            "two.",
            id="keys that nobody asks for",
        ),
        pytest.param(
            {"spec.engine": {"maxModelLen": 128}, "spec.limits": {"maxOutputTokens": 128}},
            "spec.limits.maxOutputTokens: is not below engine.maxModelLen, which counts the prompt "
            "too; choose less.",
            id="an answer as long as the context",
        ),
        pytest.param(
            {"metadata.name": "7b"},
            "metadata.name: must be lower-case letters, digits and inner hyphens, a letter first, "
            'such as smollm2, but "7b" came.',
            id="a name that begins with a digit",
        ),
        pytest.param(
            {"spec.pod.env": [{"name": "A", "value": 1}]},
            "spec.pod.env[0].value: must be text, but 1 came.",
            id="a number in an entry of a list",
        ),
        pytest.param(
            {"spec.pod.env": [{"name": "A", "valu": "1"}]},
            "spec.pod.env[0].valu: is not a field of ModelService v1alpha1; did you mean value?",
            id="a misspelt field in an entry of a list",
        ),
        pytest.param(
            {"spec.pod.env": {}},
            "spec.pod.env: must be a list, but a mapping came.",
            id="a mapping where a list belongs",
        ),
        pytest.param(
            {"spec.rollout.maxSurge": "110%"},
            "spec.rollout.maxSurge: must be a number of pods from 0 to 1000 or a percentage from "
            '0% to 100%, but "110%" came.',
            id="more than all pods",
        ),
        pytest.param(
            {"spec.resources.limits.cpu": "1.0001"},
            "spec.resources.limits.cpu: must be a number of CPUs such as 2, 0.5 or 500m, but "
            '"1.0001" came.',
            id="a part of a CPU that Kubernetes does not know",
        ),
        pytest.param(
            {"spec.resources.limits.cpu": 0.5},
            "spec.resources.limits.cpu: must be a whole number or text; put it in quotes, but 0.5 "
            "came.",
            id="a fraction without quotes",
        ),
        pytest.param(
            {"metadata.labels": {"-a": "b"}},
            'metadata.labels.-a: must be a label key such as team or example.com/team, but "-a" '
            "came.",
            id="a label key that Kubernetes refuses",
        ),
    ],
)
def test_a_mistake_is_told_with_its_field_and_cure(change: dict[str, Any], problem: str) -> None:
    assert problems_of(make_manifest(change)) == [problem]


def test_a_password_in_the_source_is_refused_and_not_repeated() -> None:
    problems = problems_of(make_manifest({"spec.model.source": "https://me:hunter2@host/x"}))
    assert "user name or password" in problems[0]
    assert "hunter2" not in problems[0]


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    first = make_manifest({"spec.engine.threads": 0, "spec.engine.maxBatch": 0})
    second = make_manifest({"metadata.name": "two", "spec.model.source": "x"})
    problems = text_problems(yaml.safe_dump_all([first, second]))
    assert [p.partition(": spec.")[0] for p in problems] == [
        "x.yaml: document 1, ModelService default/mine",
        "x.yaml: document 1, ModelService default/mine",
        "x.yaml: document 2, ModelService default/two",
    ]


def test_a_document_of_hundreds_of_mistakes_does_not_flood() -> None:
    document = make_manifest({"spec.engine": {f"field{i}": i for i in range(500)}})
    problems = problems_of(document)
    assert len(problems) == 21
    assert problems[-1] == "and 480 more errors."


def test_mistakes_of_all_files_are_told_and_good_files_are_not(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(make_manifest({"spec.engine.threads": 0})))
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(make_manifest()))
    with pytest.raises(ManifestError) as caught:
        load_manifests([good, bad, tmp_path / "none.yaml", tmp_path])
    assert [p.partition(": ")[0] for p in caught.value.problems] == [
        str(bad),
        str(tmp_path / "none.yaml"),
        str(tmp_path),
    ]


def test_the_same_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(make_manifest()))
    with pytest.raises(ManifestError, match=r"b\.yaml: .*is also in .*a\.yaml"):
        load_manifests([tmp_path / "a.yaml", tmp_path / "b.yaml"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "holds no ModelService", id="an empty file"),
        pytest.param("---\n---\n", "holds no ModelService", id="empty documents"),
        pytest.param("a: [1", "line 1", id="an open bracket"),
        pytest.param("a: 1\na: 2", "the key 'a' occurs twice", id="a key that occurs twice"),
        pytest.param("a: &x 1\nb: *x", "aliases (*name) are not read", id="an alias"),
        pytest.param("a: &x [*x]", "aliases (*name) are not read", id="a loop of aliases"),
        pytest.param("[" * 5000, "nested more than 32 deep", id="deep nesting"),
        pytest.param("1: 2", "a key must be text", id="a number as key"),
        pytest.param("? [a]\n: 2", "a key must be text", id="a list as key"),
        pytest.param("a: !!python/name:os.system x", "the tag", id="a Python object"),
        pytest.param("a: !!binary aGk=", "the tag", id="binary data"),
        pytest.param("a: " + "9" * 5000, "is not a number that can be read", id="a huge number"),
        pytest.param("- a\n" * 30_000, "more than 20000 values", id="too many values"),
        pytest.param("x" * 300_000, "holds more than 262144 bytes", id="a huge file"),
        pytest.param(b"\xff\xfe", "is not UTF-8 at byte 0", id="another encoding"),
        pytest.param("a: \x00", "is no YAML", id="a control character"),
        pytest.param("---\na: 1\n" * 65, "holds more than 64 documents", id="many documents"),
        pytest.param("- 1", "document 1: is a list", id="a list"),
        pytest.param("hello", 'document 1: is "hello"', id="plain text"),
        pytest.param("kind: Pod", 'kind: must be ModelService, but "Pod" came', id="a Pod"),
        pytest.param("a: 1", "kind: must be ModelService, but it is missing", id="no kind"),
        pytest.param(
            "kind: ModelService\napiVersion: servewright.io/v1",
            'apiVersion: must be servewright.io/v1alpha1, but "servewright.io/v1" came; change it',
            id="another version",
        ),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: str | bytes, words: str) -> None:
    (problem,) = text_problems(text)
    assert problem.startswith("x.yaml: ")
    assert words in problem
    assert "\n" not in problem


def test_json_is_a_manifest_too_and_a_date_is_text() -> None:
    (service,) = parse_manifests(
        b'{"apiVersion": "servewright.io/v1alpha1", "kind": "ModelService", "metadata": {"name": '
        b'"mine", "annotations": {"on": 2026-11-23}}, "spec": {"model": {"source": "file:///x"}}}',
        origin="x.json",
    )
    assert service.metadata.annotations == {"on": "2026-11-23"}


def test_what_is_dumped_loads_to_the_same() -> None:
    service = make_service({"spec.engine.threads": 2, "spec.probe.expect": "Paris"})
    (again,) = parse_manifests(yaml.safe_dump(dump_manifest(service)).encode(), origin="x.yaml")
    assert again == service
    assert revision(again) == revision(service)


def test_set_replaces_a_field_of_every_document() -> None:
    documents = [make_manifest(), make_manifest({"metadata.name": "two"})]
    services = parse_manifests(
        yaml.safe_dump_all(documents).encode(),
        origin="x.yaml",
        overrides=[
            parse_override("spec.engine.threads=3"),
            parse_override("spec.engine.prefixCache=false"),
            parse_override("spec.probe.expect=42"),
        ],
    )
    assert [s.spec.engine.threads for s in services] == [3, 3]
    assert [s.spec.engine.prefix_cache for s in services] == [False, False]
    assert [s.spec.probe.expect for s in services] == ["42", "42"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec.engine.threads=many", 'must be a whole number, but "many" came'),
        ("spec.engine.thread=1", "did you mean threads?"),
        ("spec.engine=1", "must be a mapping of fields"),
        ("spec.model.source.x=1", "spec.model.source: must be text, but a mapping came"),
        ("kind=Pod", "kind: must be"),
    ],
)
def test_a_wrong_set_is_told_like_a_mistake_in_the_file(text: str, words: str) -> None:
    raw = yaml.safe_dump(make_manifest({"spec.model": None})).encode()
    with pytest.raises(ManifestError) as caught:
        parse_manifests(raw, origin="x.yaml", overrides=[parse_override(text)])
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "x", "=1", "a..b=1", ".a=1"])
def test_a_set_without_path_or_value_names_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="path=value"):
        parse_override(text)
