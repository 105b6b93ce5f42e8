"""Manifest files to ModelServices, all errors at once.

Every error is one line that tells the file, the document, the field and the cure:
`examples/x.yaml: ModelService default/smollm2: spec.engine.threads: must be at least 1, ...`
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from servewright_api.documents import MAX_BYTES, Document, DocumentError, read_documents
from servewright_api.explain import field_path, plain, sentence, shown
from servewright_api.modelservice import API_VERSION, GROUP, KIND, ModelService
from servewright_api.overrides import Override
from servewright_api.rules import broken_rules

# Errors of one document that are told; a file of nonsense must not print thousands.
MAX_ERRORS = 20


class ManifestError(ValueError):
    """Manifests that cannot be served. `problems` are lines, each complete in itself."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load_manifests(
    paths: Sequence[str | os.PathLike[str]], *, overrides: Sequence[Override] = ()
) -> list[ModelService]:
    """All ModelServices of all files, in order; `overrides` apply to each of them.

    Raises ManifestError with every problem of every file.
    """
    services: list[ModelService] = []
    problems: list[str] = []
    origins: dict[tuple[str, str], str] = {}
    for path in paths:
        origin = os.fspath(path)
        try:
            loaded = parse_manifests(_read(Path(path)), origin=origin, overrides=overrides)
        except ManifestError as error:
            problems += error.problems
            continue
        except OSError as error:
            problems.append(f"{origin}: {_no_file(error)}")
            continue
        for service in loaded:
            key = (service.metadata.namespace, service.metadata.name)
            if key in origins:
                problems.append(
                    f"{origin}: {service.title}: metadata.name: is also in {origins[key]}; "
                    "rename one of the two."
                )
            origins[key] = origin
        services += loaded
    if problems:
        raise ManifestError(problems)
    return services


def parse_manifests(
    raw: bytes, *, origin: str, overrides: Sequence[Override] = ()
) -> list[ModelService]:
    """The ModelServices of one file; `origin` names it in messages. Raises ManifestError."""
    try:
        documents = read_documents(raw)
    except DocumentError as error:
        raise ManifestError([f"{origin}: {error}"]) from None
    if not documents:
        raise ManifestError([f"{origin}: holds no {KIND}; write one, as in examples/."])
    services, problems = [], []
    for document in documents:
        try:
            services.append(parse_manifest(document.value, overrides=overrides))
        except ManifestError as error:
            where = f"{origin}: {_who(document)}"
            problems += [f"{where}: {problem}" for problem in error.problems]
    if problems:
        raise ManifestError(problems)
    return services


def service_from_cluster(live: Mapping[str, Any]) -> ModelService:
    """The ModelService that a live object holds. Raises ManifestError.

    Of its metadata only name, namespace and our own annotations are looked at: the rest is for
    others, and has passed the API server's own rules.
    """
    metadata = live["metadata"]
    annotations = metadata.get("annotations", {})
    ours = {key: value for key, value in annotations.items() if key.startswith(f"{GROUP}/")}
    kept = {"name": metadata["name"], "namespace": metadata["namespace"], "annotations": ours}
    value = {key: live.get(key) for key in ("apiVersion", "kind", "spec")}
    return parse_manifest({**value, "metadata": kept}, in_cluster=True)


def parse_manifest(
    value: Any, *, overrides: Sequence[Override] = (), in_cluster: bool = False
) -> ModelService:
    """The ModelService of one document, read already; `overrides` are written into it.

    Raises ManifestError whose problems begin with a field path.
    """
    problems = list(_not_ours(value))
    if problems:
        raise ManifestError(problems)
    for override in overrides:
        override.apply(value)
    try:
        service = ModelService.model_validate(_without_nulls(value))
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [f"{field_path(d['loc'])}: {sentence(d)}" for d in details[:MAX_ERRORS]]
        if len(details) > MAX_ERRORS:
            problems.append(f"and {len(details) - MAX_ERRORS} more errors.")
        raise ManifestError(problems) from None
    problems = [f"{path}: {text}" for path, text in broken_rules(service, in_cluster=in_cluster)]
    if problems:
        raise ManifestError(problems)
    return service


def dump_manifest(service: ModelService) -> dict[str, Any]:
    """The manifest as JSON-ready data that loads to an equal ModelService."""
    return service.model_dump(mode="json", by_alias=True, exclude_none=True)


def _without_nulls(value: Any) -> Any:
    """A field without a value is a field left out, as for the API server."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _not_ours(value: Any) -> Iterator[str]:
    """Why a document is no ModelService at all; its fields are then not looked at."""
    if not isinstance(value, dict):
        yield f"is {shown(value)}, but a {KIND} is a mapping; write one, as in examples/."
        return
    kind, version = value.get("kind"), value.get("apiVersion")
    if kind != KIND:
        came = f"but {shown(kind)} came" if "kind" in value else "but it is missing"
        yield f"kind: must be {KIND}, {came}; only {KIND} documents are served."
    elif version != API_VERSION:
        came = f"but {shown(version)} came" if "apiVersion" in value else "but it is missing"
        cure = "change it" if str(version).startswith(GROUP) else "write it so"
        yield f"apiVersion: must be {API_VERSION}, {came}; {cure}."


def _who(document: Document) -> str:
    """ "ModelService default/smollm2", with the document's number where a file holds several."""
    metadata = document.value.get("metadata") if isinstance(document.value, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    number = f"document {document.index}"
    if (
        not isinstance(metadata, dict)
        or not isinstance(name, str)
        or document.value.get("kind") != KIND
    ):
        return number
    namespace = metadata.get("namespace", "default")
    title = f"{KIND} {plain(namespace)}/{plain(name)}"
    return title if document.count == 1 else f"{number}, {title}"


def _read(path: Path) -> bytes:
    """At most one byte more than the bound: whether it is too long is then known."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _no_file(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path."
    if isinstance(error, IsADirectoryError):
        return "is a folder; name the files in it."
    return f"cannot be read: {error.strerror or error}."
