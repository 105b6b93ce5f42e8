"""README and docs say what is true: lengths, links, commands, manifests, function names."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from servewright_api import parse_manifests
from servewright_runtime.cli import app
from support.tree import ROOT, project_files, text_of

DOCS = [path for path in project_files() if path.suffix == ".md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", text_of(Path("Makefile")), re.MULTILINE))


def blocks(path: Path, language: str) -> list[str]:
    """Code blocks of a page in one language."""
    return [text for found, text in BLOCK.findall(text_of(path)) if found == language]


def commands_of(path: Path) -> list[list[str]]:
    """Shell commands in a page's console blocks, split into words."""
    joined = "\n".join(blocks(path, "console")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize(("name", "longest"), [("README.md", 150), ("CONTRIBUTING.md", 60)])
def test_a_page_that_all_read_is_short(name: str, longest: int) -> None:
    assert len(text_of(Path(name)).splitlines()) <= longest


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_every_link_into_the_project_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", text_of(path))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (ROOT / path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_every_manifest_in_a_page_is_valid(path: Path) -> None:
    for text in blocks(path, "yaml"):
        if "kind: ModelService" in text:
            assert parse_manifests(text.encode(), origin=str(path))


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_every_python_block_compiles(path: Path) -> None:
    for text in blocks(path, "python"):
        compile(text, str(path), "exec")


def test_the_readmes_commands_exist() -> None:
    found = commands_of(Path("README.md"))
    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in found:
        match words:
            case ["make", target, *_]:
                assert target in TARGETS
            case [".venv/bin/servewright", command, *_]:
                assert command in known
            case ["helm" | "kubectl", *arguments]:  # run by tests/node
                named = [word for word in arguments if word.startswith(("charts/", "examples/"))]
                assert [path for path in named if not (ROOT / path).exists()] == []
            case _:
                assert words[0] == "curl"
    assert ["make", "run"] in found
    assert ["make", "test"] in found


def test_make_has_the_houses_verbs() -> None:
    assert {
        "help",
        "run",
        "test",
        "check",
        "gen",
        "check-gen",
        "bench",
        "fuzz",
        "faults",
    } <= TARGETS


def test_the_life_of_a_request_names_functions_that_exist() -> None:
    page = text_of(Path("docs/request-life.md"))
    steps = re.split(r"^\d+\. ", page, flags=re.MULTILINE)[1:]
    assert 5 <= len(steps) <= 10
    for step in steps:
        names = re.findall(r"`([a-z_]+(?:\.\w+)+)`", step)
        names = [name for name in names if not name.startswith("limits.")]
        assert names
        for name in names:
            assert resolves(name), name


def resolves(name: str) -> bool:
    """Whether `api.envelope.Envelope` and the like is a thing of servewright_runtime."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module_name = ".".join(("servewright_runtime", *parts[:end]))
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and module_name.startswith(error.name):
                continue
            raise
        for attribute in parts[end:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False
